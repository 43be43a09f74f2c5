"""Number of samples that the header of a recording states; libsndfile often reads a truncated file as if it were whole.

The samples that are read are compared with that number, so that a recording whose end is missing, or whose header
states less than the file holds, is never mistaken for a shorter one.
"""

import io
import math
import re
import struct
from typing import NamedTuple

import soundfile

from sedjax.audio.window import Window

# 32-bit sizes that programs write if they do not know the length, as in a pipe: about 2 or 4 GiB.
UNKNOWN_SIZES = (range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000000))
MPEG_EDGES = 2 * 1152  # samples that a decoder may omit at the edges
MOST_CHUNKS = 10_000
PADDING_BYTES = 4096  # most trailing zeros that count as padding, as of a disk or tape block
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4,
                "DOUBLE": 8}
# Formats whose header has the number of samples: patterns for libsndfile's log of the header; the last match counts.
LOGGED = {"AVR": r"Frames +: (\d+)", "MPC2K": r"Frames +: (\d+)", "MAT4": r"Cols +: (\d+)", "MAT5": r"Cols +: (\d+)",
          "HTK": r"Sample Count +: (\d+)", "WVE": r"Data length (\d+) should be"}


class _Chunks(NamedTuple):
    """Layout of a container of chunks, each with a name and a size.

    Attributes:
      first: position of the first chunk.
      name_bytes: length of a chunk's name.
      size: struct format of a chunk's size.
      align: alignment of chunks, in bytes.
      with_header: whether the size of a chunk includes its header.
      sound: name of the chunk that holds the samples.
      before: bytes in that chunk before the first sample.
    """

    first: int
    name_bytes: int
    size: str
    align: int
    with_header: bool
    sound: bytes
    before: int = 0


_RIFF = _Chunks(12, 4, "<I", 2, False, b"data")
_AIFF = _Chunks(12, 4, ">I", 2, False, b"SSND", before=8)
_CHUNKS = {b"RIFF": _RIFF, b"RF64": _RIFF, b"BW64": _RIFF, b"RIFX": _RIFF._replace(size=">I"), b"FORM": _AIFF,
           b"caff": _Chunks(8, 4, ">q", 1, False, b"data", before=4), b"riff": _Chunks(40, 16, "<Q", 8, True, b"data")}


class _Sound(NamedTuple):
    """Location of the samples in a file.

    Attributes:
      start: position of the first sample.
      size: bytes of samples that the header states.
      unclaimed: bytes after the samples that belong to nothing else.
      samples: number of samples per channel, if the container states it too.
      block: number of bytes that are decoded together.
    """

    start: int
    size: int
    unclaimed: int = 0
    samples: int | None = None
    block: int = 1


def promised_samples(raw: io.BufferedIOBase, file: soundfile.SoundFile) -> int | None:
    """Number of samples per channel that the file states or seems to hold; None if it states none.

    Args:
      raw: the file.
      file: the same file, opened by libsndfile; not FLAC, Ogg or MP3.
    """
    window = Window(raw)
    magic = window.at(0, 12)
    if magic[:4] in _CHUNKS:
        sound = _sound_of_chunks(window, magic)
    elif magic[:4] in (b".snd", b"dns."):
        start, size = struct.unpack("<II" if magic[:1] == b"d" else ">II", magic[4:])
        sound = _Sound(start, size, _unclaimed(window, start + size)) if size != 0xFFFFFFFF else None
    elif magic == b"Creative Voi":
        sound = _sound_of_voc(window)
    else:
        return _promised_otherwise(window, file)
    if sound is None:
        return None
    promised = _samples_in(sound, file, window.length)
    if file.subtype.startswith("MPEG"):  # libsndfile guesses the length
        return promised if promised > file.frames else max(promised - MPEG_EDGES, 0)
    return max(promised, sound.samples or 0)


def _samples_in(sound: _Sound, file: soundfile.SoundFile, length: int) -> int:
    """Number of samples in the bytes that the header states, plus those that nothing else claims."""
    width = SAMPLE_BYTES.get(file.subtype, 0) * file.channels
    present = min(sound.size, length - sound.start)
    # libsndfile reads W64 files to the end of the file, others to the end of the samples.
    if width and any(abs(size - file.frames * width) < max(width, 8) for size in (present, length - sound.start)):
        samples = (sound.size + sound.unclaimed) / width
        return math.ceil(samples) if sound.samples is None else int(samples)  # AIFF counts a byte of padding
    missing = max(sound.start + sound.size - length, 0) + sound.unclaimed
    if present <= 0 or not file.frames:
        return max(file.frames, missing)
    blocks = max(present // sound.block, 1)
    return math.ceil((present + missing) / sound.block) * math.ceil(file.frames / blocks) if missing else file.frames


def _sound_of_chunks(window: Window, magic: bytes) -> _Sound | None:
    form = _CHUNKS[magic[:4]]
    if magic[8:] in (b"8SVX", b"16SV"):
        form = form._replace(sound=b"BODY", before=0)
    header_bytes = form.name_bytes + struct.calcsize(form.size)
    container_end = window.number(16, form.size) if form.with_header else 8 + window.number(4, form.size)
    sound, samples, size_64, block = None, None, 0, 1
    position = form.first
    for _ in range(MOST_CHUNKS):
        start, name = position + header_bytes, window.at(position, 4)
        size = window.number(position + form.name_bytes, form.size) - header_bytes * form.with_header
        if start > window.length or not name.isascii() or not name.decode("ascii").isprintable():
            break
        if name == form.sound and sound is None:
            if size == 0xFFFFFFFF and size_64:
                size = size_64
            if not _is_stated(size, form, start, window.length):
                return None
            sound = _Sound(start + form.before, size - form.before)
        elif size < 0 or (start + size > window.length and start + size != container_end and magic[:4] != b"caff"):
            break  # neither a chunk nor one whose end is missing
        elif name == b"ds64":
            size_64 = window.number(start + 8, "<Q")
        elif name == b"fmt ":
            block = max(window.number(start + 12, form.size[0] + "H"), 1)
        elif name == b"COMM":
            samples = window.number(start + 2, ">I")
        elif name == b"pakt":
            samples = window.number(start + 8, ">q")
        position = start + size
        if position > window.length:
            break
        padding = window.at(position, -position % form.align)
        position += len(padding) if not padding.strip(b"\0") else 0
    return sound and sound._replace(unclaimed=_unclaimed(window, position), samples=samples, block=block)


def _is_stated(size: int, form: _Chunks, start: int, length: int) -> bool:
    """Whether `size` is a real size of the samples, not a placeholder."""
    if struct.calcsize(form.size) == 4 and any(size in sizes for sizes in UNKNOWN_SIZES):
        return False
    return size > form.before or (size == form.before and length <= start + form.before)


def _sound_of_voc(window: Window) -> _Sound | None:
    """The range from the first sound block to the end of the last block, as libsndfile reads it."""
    position, start, blocks = window.number(20, "<H"), None, 0
    while blocks < MOST_CHUNKS:
        header = window.at(position, 4)
        if not header or header[0] == 0 or header[0] > 9:
            break
        if header[0] in (1, 9) and start is None:
            start = position + (6 if header[0] == 1 else 16)
        position += 4 + int.from_bytes(header[1:], "little")
        blocks += 1
    is_ended = window.at(position, 1) == b"\0"
    if start is None or (blocks > 1 and not is_ended):  # there may have been more blocks
        return None
    return _Sound(start, position - start, _unclaimed(window, position + is_ended))


def _unclaimed(window: Window, start: int) -> int:
    """Number of bytes from `start` on; 0 if they are padding or a tag."""
    rest = window.at(start, PADDING_BYTES + 1)
    is_padding = len(rest) <= PADDING_BYTES and not rest.strip(b"\0")
    return 0 if is_padding or rest.startswith(TAGS) else max(window.length - start, 0)


def _promised_otherwise(window: Window, file: soundfile.SoundFile) -> int | None:
    promised = None
    header_bytes = 68 if file.format == "MAT4" else 4096  # at most; of NIST, for example
    if file.format in LOGGED:
        numbers = re.findall(LOGGED[file.format], file.extra_info)
        promised = int(numbers[-1]) if numbers else file.frames
    elif file.format == "NIST":
        number = re.search(rb"\nsample_count -i (\d{1,18})\s", window.at(0, header_bytes))
        promised = int(number[1]) if number else None
    elif file.format == "SDS":
        blocks, per_block = (re.search(rf"{name} *: (\d+)", file.extra_info) for name in ("Blocks", "Samples/Block"))
        stated = int(blocks[1]) * int(per_block[1]) if blocks and per_block else 0
        return stated if per_block and stated >= file.frames + int(per_block[1]) else file.frames
    width = SAMPLE_BYTES.get(file.subtype, 0) * file.channels
    if promised is not None and width:
        promised = max(promised, (window.length - header_bytes) // width)
    return promised
