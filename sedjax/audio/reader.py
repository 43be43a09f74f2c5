"""Reads recordings as 16 kHz mono float32, in blocks of bounded size."""

import contextlib
import functools
import io
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from sedjax.audio import containers, flac, mp3, ogg
from sedjax.core import errors, files
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div
from sedjax.core.task import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE_HZ

log = logging.getLogger("sedjax")

# Suffixes of audio files, including formats that libsndfile cannot read: those are reported as bad, not skipped.
SUFFIXES = {".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus",
            ".rf64", ".w64", ".wav", ".webm", ".wma"}
BLOCK_SAMPLES = 10 * SAMPLE_RATE_HZ
FEATURE = "audio"  # name of the output of `frames` as a feature in directories, records and batches
FULL_SCALE = 32768  # 16-bit samples
MOST_MISSING_SECONDS = FRAME_SECONDS  # a recording that lacks no more is read with a warning
PIECE_SAMPLES = 64
CHUNK_VALUES = 1 << 20  # values read at once, over all channels
RATES_HZ = (1_000, 1_000_000)
MOST_SAMPLES = 1 << 62  # libsndfile reports a larger number for an unknown length
LOUDEST = 1000.0  # full scale is 1; samples 60 dB above it were never scaled
NO_LENGTH = "does not say how long it is"
MOST_CHANNELS = 64  # of an array; a larger number means that the axes are swapped

SampleRate = float | np.integer | np.floating  # a whole number
Recording = Any  # a path or array-like, see `blocks`


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The audio files in a folder, sorted by name. Raises UserError if the folder is missing or has none."""
    if not folder.is_dir():
        raise UserError(f"There is no directory {folder}.")
    paths = sorted(path for path in folder.iterdir()
                   if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir())
    if not paths:
        raise UserError(f"There are no recordings in {folder}: no file has one of the suffixes "
                        f"{', '.join(sorted(SUFFIXES))}.")
    return paths


def find(places: Iterable[str | os.PathLike]) -> list[pathlib.Path]:
    """The recordings at the paths of files and folders, without duplicates; those in a folder are sorted by name.

    Raises UserError if a path does not exist, or a folder has no recordings.
    """
    paths: dict[str, pathlib.Path] = {}
    for source in map(pathlib.Path, places):
        if not os.path.exists(source):
            raise UserError(f"There is no recording or folder {source}.")
        for path in files_in(source) if os.path.isdir(source) else [source]:
            paths.setdefault(os.path.realpath(path), path)
    return list(paths.values())


def blocks(recording: Recording, sample_rate_hz: SampleRate | None = None) -> Iterator[Float[np.ndarray, "samples"]]:
    """Yields a recording as 16 kHz mono in blocks of 10 s; the last may be shorter.

    n samples at rate r become round(n x 16000 / r), at least 1. Channels are averaged. Silence is a valid recording,
    and samples beyond full scale are kept. If at most 120 ms are missing, a recording is read with a warning.

    Args:
      recording: a file that libsndfile reads (wav, flac, ogg, opus, mp3, aiff and more), or an array or array-like of
        floats with full scale 1, or of integers with the full scale of their type; (samples,) or (samples, channels).
      sample_rate_hz: sample rate of an array; files state their own.

    Raises:
      UserError: the recording is missing, not audio, empty, truncated or damaged, or has samples that are not finite or
        far beyond full scale. Damage found while decoding raises after the blocks before it.
    """
    if isinstance(recording, str | os.PathLike):
        return _in_blocks(_file_chunks(pathlib.Path(recording)))
    return _in_blocks(_array_chunks(recording, sample_rate_hz))


def read(recording: Recording, sample_rate_hz: SampleRate | None = None) -> Float[np.ndarray, "samples"]:
    """Reads a whole recording, as `blocks` yields it."""
    return np.concatenate(list(blocks(recording, sample_rate_hz)))


def rows(blocks: Iterable[Float[np.ndarray, "_"]]) -> Iterator[Float[np.ndarray, "frame 1920"]]:
    """Regroups the blocks of a recording into rows, one per frame of 120 ms; the last is padded with silence."""
    buffer = np.zeros(0, np.float32)
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        complete = len(buffer) // FRAME_SAMPLES * FRAME_SAMPLES
        if complete:
            yield buffer[:complete].reshape(-1, FRAME_SAMPLES)
        buffer = buffer[complete:]
    if len(buffer):
        yield np.pad(buffer, (0, FRAME_SAMPLES - len(buffer)))[None]


def as_16_bits(samples: Float[np.ndarray, "*shape"]) -> Int16[np.ndarray, "*shape"]:
    """Converts samples x to round(32768 x), which is lossless for 16-bit files; clips samples beyond full scale."""
    return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def frames(recording: Recording, sample_rate_hz: SampleRate | None = None) -> Int16[np.ndarray, "frame 1920"]:
    """Reads a whole recording as 16-bit samples, one row per frame of 120 ms."""
    return np.concatenate([as_16_bits(piece) for piece in rows(blocks(recording, sample_rate_hz))])


def num_frames(recording: Recording, sample_rate_hz: SampleRate | None = None) -> int:
    """Number of rows of `frames`; the recording is read, but not kept in memory."""
    return ceil_div(sum(map(len, blocks(recording, sample_rate_hz))), FRAME_SAMPLES)


def windows(blocks: Iterable[Float[np.ndarray, "_"]], size: int,
            hop: int) -> Iterator[tuple[Float[np.ndarray, "size"], int]]:
    """Yields the windows that cover the blocks of a recording; window k starts at sample k x `hop`.

    Each has `size` samples, padded with silence at the end of the recording, and comes with its number of real samples.
    """
    buffer = np.zeros(0, np.float32)
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) > size:
            yield buffer[:size], size
            buffer = buffer[hop:]
    yield np.pad(buffer, (0, size - len(buffer))), len(buffer)


def _in_blocks(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    parts, samples = [], 0
    for chunk in chunks:
        while samples + len(chunk) >= BLOCK_SAMPLES:
            rest = BLOCK_SAMPLES - samples
            yield np.concatenate([*parts, chunk[:rest]])
            parts, samples, chunk = [], 0, chunk[rest:]
        parts.append(chunk)
        samples += len(chunk)
    if samples:
        yield np.concatenate(parts)


def _resampled(chunks: Iterable[np.ndarray], rate_hz: int, name: str) -> Iterator[np.ndarray]:
    """Converts (samples, channels) chunks of a recording to mono chunks (samples,) at 16 kHz."""
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise UserError(f"{name} has a sample rate of {rate_hz:,} Hz, not {RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz.")
    stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1) if rate_hz != SAMPLE_RATE_HZ else None
    samples = yielded = 0
    for chunk in chunks:
        with np.errstate(invalid="ignore"):
            mono = np.ascontiguousarray(chunk.mean(axis=1)) if chunk.shape[1] > 1 else chunk[:, 0].copy()
        _require_audible(mono, samples / rate_hz, name)
        samples += len(mono)
        result = stream.resample_chunk(mono) if stream else mono
        yielded += len(result)
        yield result
    if not samples:
        raise UserError(f"{name} has no samples.")
    if stream:
        # The stream rounds differently: it may yield a sample more or less, and none for the shortest recordings.
        expected = max(round(samples * SAMPLE_RATE_HZ / rate_hz), 1)
        rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)[: max(expected - yielded, 0)]
        yield np.pad(rest, (0, max(expected - yielded - len(rest), 0)))


def _require_audible(mono: np.ndarray, start_seconds: float, name: str) -> None:
    with np.errstate(invalid="ignore"):
        loudest = np.abs(mono).max()
    if not np.isfinite(loudest):
        raise UserError(f"{name} holds NaN or infinity in the ten seconds from {start_seconds:.1f} s on.")
    if loudest > LOUDEST:
        raise UserError(f"{name} has samples up to {loudest:,.0f}, but full scale is 1: scale them to [-1, 1].")


def _chunk_samples(rate_hz: int, channels: int) -> int:
    return max(min(10 * rate_hz, CHUNK_VALUES // max(channels, 1)), 1)


def _array_chunks(recording: Any, sample_rate_hz: Any) -> Iterator[np.ndarray]:
    array, rate_hz = _as_array(recording), _as_rate(sample_rate_hz)

    def chunks() -> Iterator[np.ndarray]:
        size = _chunk_samples(rate_hz, array.shape[1])
        for start in range(0, len(array), size):
            chunk = array[start : start + size]
            if chunk.dtype.kind == "f":
                with np.errstate(over="ignore"):  # _resampled rejects infinity
                    chunk = chunk.astype(np.float32)
                yield chunk
            else:
                half = 2.0 ** (8 * chunk.dtype.itemsize - 1)
                yield ((chunk - (half if chunk.dtype.kind == "u" else 0)) / half).astype(np.float32)

    yield from _resampled(chunks(), rate_hz, "The array")


def _as_array(recording) -> np.ndarray:
    """The recording as an array (samples, channels)."""
    try:
        array = np.asarray(recording) if not isinstance(recording, bytes | bytearray | dict | set) else None
    except Exception as error:  # objects may raise anything when converted to an array
        raise UserError(f"A recording must be a path or an array of numbers, not {type(recording).__name__} "
                        f"({errors.printable(str(error))[:200]}).") from error
    if array is None or array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or (
            array.shape[1:] == (0,)):
        description = type(recording).__name__ if array is None else f"{array.dtype} of shape {array.shape}"
        raise UserError("A recording must be a path, or numbers of shape (samples,) or (samples, channels), not "
                        f"{description}.")
    if array.ndim == 1:
        return array[:, None]
    samples, channels = array.shape
    if samples and channels > min(samples, MOST_CHANNELS):
        raise UserError(f"An array of shape {array.shape} has {channels:,} channels of {samples:,} samples: the "
                        "axes must be (samples, channels), so transpose an array of (channels, samples).")
    return array


def _as_rate(rate_hz) -> int:
    if rate_hz is None:
        raise UserError("An array needs a sample rate: set sample_rate_hz.")
    try:
        is_whole = not isinstance(rate_hz, bool | np.bool_ | str | bytes) and np.ndim(rate_hz) == 0 and (
            int(rate_hz) == rate_hz)
    except (TypeError, ValueError, OverflowError):
        is_whole = False
    if not is_whole:
        raise UserError(f"The sample rate must be a whole number of Hz, not {errors.printable(repr(rate_hz))[:50]}.")
    return int(rate_hz)


class _Stream(soundfile.SoundFile):
    """Reads sequentially: the seek after each block in the parent class fails in some codecs and clicks in others."""

    def seekable(self) -> bool:
        return False


class _Promise(NamedTuple):
    """The number of samples per channel that a file states or seems to have.

    Attributes:
      samples: number of samples; None if unknown.
      is_least: whether the original may have had more samples.
      doubt: reason for a warning even if nothing is known to be missing.
    """

    samples: int | None
    is_least: bool = False
    doubt: str = ""


def _file_chunks(path: pathlib.Path) -> Iterator[np.ndarray]:
    name = errors.printable(path)
    with files.open_file(path) as raw, contextlib.ExitStack() as stack:
        if not os.fstat(raw.fileno()).st_size:
            raise UserError(f"{name} is empty.")
        try:
            file, promise = _opened(path, raw, name, stack)
            _require_whole(file.frames, promise, file.samplerate, name)
            yield from _resampled(_read_chunks(path, file, promise, name), file.samplerate, name)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a suffix of headerless files
            reason = getattr(error, "error_string", "no header")
            if "does not exist" in reason:  # libsndfile's message for anything it wrongly assumed to be mp3
                reason = "no mp3 frame"
            raise UserError(f"{name} is damaged or not supported by libsndfile: {reason.rstrip('.')}.") from error


def _opened(path: pathlib.Path, raw: io.BufferedIOBase, name: str,
            stack: contextlib.ExitStack) -> tuple[_Stream, _Promise]:
    """The open file, which the stack closes, and its stated length. Raises UserError if it is damaged."""
    with mp3.quiet():
        file = stack.enter_context(_Stream(os.fsencode(path)))  # names need not be UTF-8
    if file.format == "MP3":
        frames = mp3.scan(raw)
        if not frames:
            return file, _Promise(None, doubt=NO_LENGTH)
        if frames.is_layer_3 and (frames.missing or frames.stated is None):
            with mp3.quiet():
                file = stack.enter_context(_Stream(stack.enter_context(mp3.clean(raw, frames))))
        return file, _Promise(frames.samples, True) if frames.stated is None else _Promise(file.frames)
    if file.format == "OGG":
        missing, is_marked = ogg.ending(raw, name)
        if file.subtype == "OPUS":
            missing = ceil_div(missing * file.samplerate, 48000)
        doubt = "" if is_marked else "is not marked as complete (no end of stream)"
        return file, _Promise(file.frames + missing, True, doubt)
    if file.format == "FLAC":
        stated = file.frames if file.frames < MOST_SAMPLES else 0
        samples = max(stated, flac.num_samples(raw) or 0) or None
    else:
        samples = containers.promised_samples(raw, file)
    return file, _Promise(samples, doubt=NO_LENGTH if samples is None else "")


def _read_chunks(path: pathlib.Path, file: _Stream, promise: _Promise, name: str) -> Iterator[np.ndarray]:
    count = 0
    for chunk in _readable_chunks(path, file, promise):
        count += len(chunk)
        yield chunk
    missing = _require_whole(count, promise, file.samplerate, name)
    if missing:
        least = "at least " if promise.is_least else ""
        _warn(f"{name} is truncated or damaged: {least}{missing / file.samplerate:.4f} s are missing out of "
              f"{promise.samples / file.samplerate:.3f} s.")
    elif promise.doubt:
        _warn(f"{name} {promise.doubt}: audio may be missing after {count / file.samplerate:.3f} s.")


def _readable_chunks(path: pathlib.Path, file: _Stream, promise: _Promise) -> Iterator[np.ndarray]:
    """Yields the readable chunks. Raises soundfile.LibsndfileError if more is unreadable than may be missing."""
    count, size = 0, _chunk_samples(file.samplerate, file.channels)
    while count < file.frames:
        try:
            with mp3.quiet() if "MPEG" in file.subtype else contextlib.nullcontext():
                chunk = file.read(min(size, file.frames - count), "float32", always_2d=True)
        except soundfile.LibsndfileError:
            if "MPEG" in file.subtype or promise.samples is None or promise.samples - count > 2 * size:
                raise
            # An error discards the samples read before it, so the end is read again in small pieces.
            with soundfile.SoundFile(os.fsencode(path)) as again:
                again.seek(count)
                with contextlib.suppress(soundfile.LibsndfileError):
                    while len(piece := again.read(PIECE_SAMPLES, "float32", always_2d=True)):
                        count += len(piece)
                        yield piece
            if promise.samples - count > MOST_MISSING_SECONDS * file.samplerate:
                raise
            return
        if not len(chunk):
            return
        count += len(chunk)
        yield chunk


def _require_whole(count: int, promise: _Promise, rate_hz: int, name: str) -> int:
    """The number of missing samples. Raises UserError if more are missing than allowed."""
    missing = max((promise.samples or 0) - count, 0)
    if missing > MOST_MISSING_SECONDS * rate_hz:
        raise UserError(f"{name} is truncated or damaged: only {count:,} of its {promise.samples:,} samples can be "
                        "read.")
    return missing


@functools.lru_cache(maxsize=10_000)
def _warn(message: str) -> None:
    """Logs a warning once, however often a recording is read."""
    log.warning(message)
