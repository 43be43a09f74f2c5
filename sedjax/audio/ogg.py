"""Whether an Ogg file (Vorbis, Opus) is whole: its decoder leaves out damaged and incomplete pages without a word."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sedjax.core.errors import UserError
from sedjax.core.files import MEBIBYTE

CAPTURE = b"OggS"
HEADER = struct.Struct("<4sBBqIIIB")  # capture, version, flags, end, stream, number, checksum, segments
FIRST, LAST = 2, 4  # flags
SOUND = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex")  # how the first page of a stream of sound begins
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """A page of an Ogg file.

    Attributes:
      flags, stream, number: of its header.
      end: samples of the stream up to its end; -1 if no packet ends in it.
      is_whole: False if the file ends before it does; then the header may be missing too, and all of it is -1.
      content: of the page.
    """

    flags: int
    end: int
    stream: int
    number: int
    is_whole: bool
    content: bytes


class Ending(NamedTuple):
    """How the stream of sound in a file ends.

    Attributes:
      missing_samples: those of an incomplete page, at the stream's own rate (48 kHz if it is Opus).
      is_marked: whether the last page says that it is the last.
    """

    missing_samples: int
    is_marked: bool


def ending(raw: io.BufferedIOBase, name: str) -> Ending:
    """How the stream of sound ends. Raises UserError if a page of it is damaged or missing, or there are several."""
    last, end, longest = None, 0, 0
    for page in _pages(raw, name):
        if page.flags & FIRST and page.is_whole and page.content.startswith(SOUND):
            if last:
                raise UserError(f"{name} holds several streams of sound, of which only the first would be read: split "
                                "it into files.")
            last = page
        elif last and not page.is_whole and page.stream in (last.stream, -1):
            return Ending(page.end - end if page.end > end else longest, False)
        elif last and page.stream == last.stream:
            if page.number != last.number + 1:
                raise UserError(f"{name} is damaged: of the pages {last.number:,} to {page.number:,}, those in between "
                                "are missing.")
            last = page
            if page.end > 0:
                longest, end = max(longest, page.end - end), page.end
    return Ending(0, bool(last and last.flags & LAST))


def _pages(raw: io.BufferedIOBase, name: str) -> Iterator[Page]:
    """The pages of a file, of which the last may be incomplete. Raises UserError if one is damaged."""
    position, length = 0, raw.seek(0, io.SEEK_END)
    ended = False
    while position < length:
        raw.seek(position)
        header = raw.read(HEADER.size)
        if not CAPTURE.startswith(header[:4]):
            found = _next_capture(raw, position)
            if found is None and not ended:
                yield Page(0, -1, -1, -1, False, b"")
            if found is None:
                return
            position = found
            continue
        if len(header) < HEADER.size:
            yield Page(0, -1, -1, -1, False, b"")
            return
        _, _, flags, end, stream, number, checksum, segments = HEADER.unpack(header)
        sizes = raw.read(segments)
        content = raw.read(sum(sizes))
        position += HEADER.size + segments + sum(sizes)
        if position > length:
            yield Page(flags, end, stream, number, False, content)
            return
        if _checksum(header[:22] + bytes(4) + header[26:] + sizes + content) != checksum:
            raise UserError(f"{name} is damaged: the checksum of its page {number:,} is wrong.")
        ended = bool(flags & LAST)
        yield Page(flags, end, stream, number, True, content)


def _next_capture(raw: io.BufferedIOBase, position: int) -> int | None:
    """Where the next page seems to begin, after `position`."""
    raw.seek(position)
    held = b""
    while block := raw.read(MEBIBYTE):
        held += block
        if (found := held.find(CAPTURE)) >= 0:
            return position + found
        position += len(held) - 3
        held = held[-3:]
    return None


def _checksum(page: bytes) -> int:
    """The CRC of Ogg: zlib's with the bits of each byte the other way round, and without its two inversions."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
