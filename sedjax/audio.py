"""Any recording -> 16 kHz mono float32, in blocks of bounded memory."""

import os
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16, Shaped

from sedjax import mp3
from sedjax.errors import UserError

# What people call audio, also where libsndfile cannot read it: then it is listed as bad, not passed over.
SUFFIXES = {".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus",
            ".rf64", ".w64", ".wav", ".webm", ".wma"}
SAMPLE_RATE_HZ = 16000
BLOCK_SAMPLES = 10 * SAMPLE_RATE_HZ
FEATURE = "audio"  # what `frames` gives, as a feature of a directory, of records and of batches
FRAME_SAMPLES = 1920  # 120 ms
FULL_SCALE = 32767  # of 16-bit samples
CHUNK_VALUES = 1 << 20  # read at once, all channels together
RATES_HZ = (1_000, 1_000_000)
LOUDEST = 1000.0  # full scale is 1; what is 60 dB above it was never scaled
# A program that writes to a pipe cannot know the length: it puts about 2 or 4 GiB into the header.
UNKNOWN_BYTES = 0x7FFF0000

Recording = str | os.PathLike | Shaped[np.ndarray, "_recorded"] | Shaped[np.ndarray, "_recorded _channels"]


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The audio files of a folder, by name. Raises UserError if there is no folder, or none in it."""
    if not folder.is_dir():
        raise UserError(f"There is no directory {folder}.")
    paths = sorted(path for path in folder.iterdir()
                   if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir())
    if not paths:
        raise UserError(f"There are no recordings in {folder}: no file has one of the suffixes "
                        f"{', '.join(sorted(SUFFIXES))}.")
    return paths


def blocks(recording: Recording, sample_rate_hz: int | None = None) -> Iterator[Float[np.ndarray, "samples"]]:
    """A recording as 16 kHz mono in blocks of 10 s, of which the last may be shorter.

    n samples at rate r become round(n x 16000 / r), at least 1. Channels are averaged. Silence is a recording like any
    other; what exceeds full scale is kept as it is.

    Args:
      recording: a file that libsndfile reads (wav, flac, ogg, opus, mp3, aiff and more), or an array of floats with
        full scale 1, or of integers with that of their type.
      sample_rate_hz: of an array; a file says it itself.

    Raises:
      UserError: it is missing, no audio, empty, truncated, damaged, or has samples that are not finite or out of all
        scale. Damage that only reading finds raises after the blocks before it.
    """
    if isinstance(recording, np.ndarray):
        if sample_rate_hz is None:
            raise UserError("The sample rate of an array must be given.")
        return _in_blocks(_resampled(_array_chunks(recording, sample_rate_hz), sample_rate_hz, "The array"))
    return _in_blocks(_file_chunks(pathlib.Path(recording)))


def read(recording: Recording, sample_rate_hz: int | None = None) -> Float[np.ndarray, "samples"]:
    """The whole of a recording, as `blocks` gives it."""
    return np.concatenate(list(blocks(recording, sample_rate_hz)))


def rows(blocks: Iterable[Float[np.ndarray, "_"]]) -> Iterator[Int16[np.ndarray, "frame 1920"]]:
    """A recording given in blocks as 16-bit samples, one row a frame of 120 ms; silence fills up the last.

    A sample x is round(32767 x); what exceeds full scale is clipped.
    """
    held = np.zeros(0, np.int16)
    for block in blocks:
        held = np.concatenate([held, np.rint(np.clip(block, -1, 1) * FULL_SCALE).astype(np.int16)])
        whole = len(held) // FRAME_SAMPLES * FRAME_SAMPLES
        if whole:
            yield held[:whole].reshape(-1, FRAME_SAMPLES)
        held = held[whole:]
    if len(held):
        yield np.pad(held, (0, FRAME_SAMPLES - len(held)))[None]


def frames(recording: Recording, sample_rate_hz: int | None = None) -> Int16[np.ndarray, "frame 1920"]:
    """The whole of a recording as `rows` gives it."""
    return np.concatenate(list(rows(blocks(recording, sample_rate_hz))))


def num_frames(recording: Recording, sample_rate_hz: int | None = None) -> int:
    """How many rows `frames` gives, for which the recording is read, but not held in memory."""
    return -(-sum(map(len, blocks(recording, sample_rate_hz))) // FRAME_SAMPLES)


def windows(blocks: Iterable[Float[np.ndarray, "_"]], size: int,
            hop: int) -> Iterator[tuple[Float[np.ndarray, "size"], int]]:
    """The windows that cover a recording given in blocks: number k begins at sample k x `hop`, as many as it takes.

    Yields `size` samples each, silence where the recording has ended, and how many of them are real.
    """
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > size:
            yield held[:size], size
            held = held[hop:]
    yield np.pad(held, (0, size - len(held))), len(held)


def _in_blocks(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    held, samples = [], 0
    for chunk in chunks:
        while samples + len(chunk) >= BLOCK_SAMPLES:
            rest = BLOCK_SAMPLES - samples
            yield np.concatenate([*held, chunk[:rest]])
            held, samples, chunk = [], 0, chunk[rest:]
        held.append(chunk)
        samples += len(chunk)
    if samples:
        yield np.concatenate(held)


def _resampled(chunks: Iterable[np.ndarray], rate_hz: int, name: str) -> Iterator[np.ndarray]:
    """(samples, channels) chunks of any recording as (samples,) at 16 kHz."""
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise UserError(f"{name} has a sample rate of {rate_hz:,} Hz; {RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz are read.")
    stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1) if rate_hz != SAMPLE_RATE_HZ else None
    samples = given = 0
    for chunk in chunks:
        mono = np.ascontiguousarray(chunk.mean(axis=1)) if chunk.shape[1] > 1 else chunk[:, 0].copy()
        _require_audible(mono, samples / rate_hz, name)
        samples += len(mono)
        result = stream.resample_chunk(mono) if stream else mono
        given += len(result)
        yield result
    if not samples:
        raise UserError(f"{name} holds no samples.")
    if stream:
        # The stream's own rounding may give a sample more or less, and none at all for the shortest recordings.
        wanted = max(round(samples * SAMPLE_RATE_HZ / rate_hz), 1)
        rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)[: max(wanted - given, 0)]
        yield np.pad(rest, (0, max(wanted - given - len(rest), 0)))


def _require_audible(mono: np.ndarray, start_seconds: float, name: str) -> None:
    with np.errstate(invalid="ignore"):
        loudest = np.abs(mono).max()
    if not np.isfinite(loudest):
        raise UserError(f"{name} holds NaN or infinity, within the ten seconds from {start_seconds:.1f} s on.")
    if loudest > LOUDEST:
        raise UserError(f"{name} holds samples up to {loudest:,.0f}, but full scale is 1: it was never scaled.")


def _chunk_samples(rate_hz: int, channels: int) -> int:
    return max(min(10 * rate_hz, CHUNK_VALUES // max(channels, 1)), 1)


def _array_chunks(recording: np.ndarray, rate_hz: int) -> Iterator[np.ndarray]:
    array = recording[:, None] if recording.ndim == 1 else recording
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        raise UserError(f"A recording must be numbers of shape (samples,) or (samples, channels), "
                        f"not {recording.dtype} {recording.shape}.")
    size = _chunk_samples(rate_hz, array.shape[1])
    for start in range(0, len(array), size):
        chunk = array[start : start + size]
        if chunk.dtype.kind == "f":
            yield chunk.astype(np.float32)
        else:
            half = 2.0 ** (8 * chunk.dtype.itemsize - 1)
            yield ((chunk - (half if chunk.dtype.kind == "u" else 0)) / half).astype(np.float32)


def _file_chunks(path: pathlib.Path) -> Iterator[np.ndarray]:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty.")
        with soundfile.SoundFile(os.fsencode(path)) as file:  # a name need not be UTF-8
            _require_whole_container(path, file)
            yield from _resampled(_read_chunks(path, file), file.samplerate, str(path))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a suffix that means samples without a header
        reason = getattr(error, "error_string", "no header")
        if "does not exist" in reason:  # what libsndfile says of anything that it took for mp3 in vain
            reason = "no frame of mp3"
        raise UserError(f"{path} is damaged, or no audio that libsndfile reads: {reason.rstrip('.')}.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def _read_chunks(path: pathlib.Path, file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    size, count = _chunk_samples(file.samplerate, file.channels), 0
    while len(chunk := file.read(size, "float32", always_2d=True)):
        count += len(chunk)
        yield chunk
    if count < file.frames and (file.format != "MP3" or mp3.says_its_length(path)):
        raise UserError(f"{path} is truncated: {count:,} of its {file.frames:,} samples are there.")


def _require_whole_container(path: pathlib.Path, file: soundfile.SoundFile) -> None:
    """Raises UserError if the header, or the last page, shows that the end of the file is missing."""
    for promised, found in re.findall(r"(?i)\b(?:data|ssnd|riff|form) *: *(\d+) \(should be (\d+)\)", file.extra_info):
        if int(found) < int(promised) < UNKNOWN_BYTES:
            raise UserError(f"{path} is truncated: {int(found):,} of its {int(promised):,} bytes are there.")
    if file.format == "MP3":
        if mp3.ends_within_a_frame(path):
            raise UserError(f"{path} is truncated: it ends in the middle of a frame.")
        # libsndfile reads no further than its estimate of the length, which is wrong where the bit rate varies.
        if not mp3.says_its_length(path) and mp3.num_samples(path) > 1.05 * file.frames:
            raise UserError(f"{path} has a varying bit rate and no header that says its length: only part of it "
                            "would be read, so encode it again.")
    if file.format == "OGG":
        with open(path, "rb") as raw:
            raw.seek(max(path.stat().st_size - (1 << 17), 0))  # a page has 65,307 bytes at most
            tail = raw.read()
        page = tail.rfind(b"OggS")
        if not tail[page + 5 : page + 6] or not tail[page + 5] & 4:
            raise UserError(f"{path} is truncated: its last page is missing.")
