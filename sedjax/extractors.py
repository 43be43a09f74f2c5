"""From a recording to its features: mel power and MFCC, and the embeddings of a frozen model."""

import collections
import dataclasses
import functools
import itertools
import operator
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from sedjax import audio, frontend, grid, input_pipeline
from sedjax.clips import Clip, ahead, recut, require_wanted
from sedjax.detector import Detector, load
from sedjax.errors import UserError
from sedjax.mel import MFCC_COEFFICIENTS, MLPC, SPECTRAL_VERSION
from sedjax.models import atst_frame

SPECTRAL = ("melspectrogram", "mfcc", "mfcc_delta", "mfcc_delta2")
WIDTHS = {"melspectrogram": MLPC.bands, **dict.fromkeys(SPECTRAL[1:], MFCC_COEFFICIENTS),
          audio.FEATURE: audio.FRAME_SAMPLES}
DELTAS = {"mfcc_delta": 1, "mfcc_delta2": 2}  # and their order
CHUNK_FRAMES = 100
FRAME = MLPC.frame_samples
PIECE_SAMPLES = (CHUNK_FRAMES + 2) * FRAME


class Pass:
    """One pass over the blocks of a recording: whoever takes them leaves behind its spectral features and its length.

    So a recording is decoded once whatever is made of it, and memory holds twelve seconds of it.
    """

    def __init__(self, blocks: Iterable[np.ndarray], wanted: Sequence[str]):
        """`wanted`: some of SPECTRAL."""
        self._blocks, self._wanted = blocks, wanted
        self._power: list[np.ndarray] = []
        self._held = np.zeros(FRAME, np.float32)
        self.samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            require_wanted()
            self.samples += len(block)
            self._listen(block)
            yield block
        while self._wanted and len(self._held) > FRAME:
            self._take()

    def _listen(self, block: np.ndarray) -> None:
        if not self._wanted:
            return
        self._held = np.concatenate([self._held, block])
        while len(self._held) >= PIECE_SAMPLES:
            self._take()

    def _take(self) -> None:
        """Mel power of CHUNK_FRAMES frames, from a piece with one more before and after; what is left is held."""
        piece, size = self._held[:PIECE_SAMPLES], CHUNK_FRAMES * FRAME
        frames = min(-(-(len(piece) - FRAME) // FRAME), CHUNK_FRAMES)
        power = _mel_power(np.pad(piece, (0, PIECE_SAMPLES - len(piece)))[None])
        self._power.append(np.asarray(power)[0, 1 : 1 + frames])
        self._held = self._held[size:]

    @property
    def seconds(self) -> float:
        return self.samples / audio.SAMPLE_RATE_HZ

    @functools.cached_property
    def features(self) -> dict[str, np.ndarray]:
        """The wanted features, each (T, D), after the pass.

        `melspectrogram` is linear power in float32; `mfcc`, `mfcc_delta` and `mfcc_delta2` are float16.
        """
        if not self._wanted:
            return {}
        power = np.concatenate(self._power)
        found = {"melspectrogram": power}
        if set(self._wanted) != {"melspectrogram"}:
            mfcc = np.concatenate([np.asarray(_mfcc(row)) for row in _equal_rows(power)])[: len(power)]
            mask = np.ones((1, len(mfcc)), bool)
            found["mfcc"] = mfcc.astype(np.float16)
            for name, order in DELTAS.items():
                if name in self._wanted:
                    found[name] = frontend.deltas(mfcc[None], mask, order)[0].astype(np.float16)
        return {name: found[name] for name in self._wanted}


@runtime_checkable
class Extractor(Protocol):
    """A frozen model that embeds recordings, one row for each 120 ms.

    Attributes:
      parameters: whatever its numbers depend on.
      width: columns of the embeddings.
      features: the spectral features that it takes; none if it takes the sound itself.
    """

    parameters: str
    width: int
    features: tuple[str, ...]

    def embed(self, passes: Iterator[Pass], dtype: type = np.float32) -> Iterator[np.ndarray | UserError]:
        """For each recording in turn its embeddings (T, width), or why it cannot be read.

        The passes must hold `features`; each is over before its embeddings are given.
        """


def features_of(recordings: Iterable[audio.Recording], wanted: Sequence[str], extractor: Extractor | None = None,
                sample_rate_hz: audio.SampleRate | None = None
                ) -> Iterator[tuple[dict[str, np.ndarray], float] | UserError]:
    """For each recording in turn its features (T, D) by name and its length in seconds, or why it cannot be read.

    Each is decoded once, and only what is wanted is computed.

    Args:
      recordings: files or arrays, as sedjax.audio takes them.
      wanted: some of SPECTRAL, and `embeddings`, float16, if there is an extractor.
      extractor: from `of`.
      sample_rate_hz: of arrays.
    """
    needed = {*wanted, *(extractor.features if extractor else ())}
    spectral = tuple(name for name in SPECTRAL if name in needed)
    begun: collections.deque[tuple[audio.Recording, Pass]] = collections.deque()

    def passes() -> Iterator[Pass]:
        for recording in recordings:
            begun.append((recording, Pass(audio.blocks(recording, sample_rate_hz), spectral)))
            yield begun[-1][1]

    for found in extractor.embed(passes(), np.float16) if extractor else map(_finish, passes()):
        recording, one = begun.popleft()
        try:
            if isinstance(found, UserError):
                raise found
            if extractor:
                require_finite(found, "an array" if isinstance(recording, np.ndarray) else os.fspath(recording))
        except UserError as error:
            yield error
            continue
        features = one.features | {"embeddings": found}
        yield {name: features[name] for name in wanted}, one.seconds


def spectral_features(path: pathlib.Path,
                      wanted: Sequence[str] = SPECTRAL) -> tuple[dict[str, np.ndarray], float]:
    """The spectral features of one recording, as `features_of`. Raises UserError if it cannot be read."""
    found = next(features_of([path], wanted))
    if isinstance(found, UserError):
        raise found
    return found


def narrowed(embeddings: np.ndarray, dtype: type = np.float16) -> np.ndarray:
    """Embeddings in another type; what it cannot hold becomes infinity, for `require_finite` to find."""
    with np.errstate(over="ignore"):
        return embeddings.astype(dtype, copy=False)


def require_finite(embeddings: np.ndarray, name: str) -> None:
    """Raises UserError if the embeddings of the recording `name` are not finite numbers."""
    if not np.isfinite(embeddings).all():
        raise UserError(f"The embeddings of {name} hold NaN, or numbers beyond the range of {embeddings.dtype}: use "
                        "another extractor.")


def _finish(one: Pass) -> UserError | None:
    """Passes over a whole recording of which nobody wants the sound; why it cannot be read, if so."""
    try:
        for _ in one:
            pass
    except UserError as error:
        return error


@jax.jit
def _mel_power(samples):
    return frontend.mel_power(samples, jnp.ones(samples.shape, bool))[0]


_mfcc = jax.jit(frontend.mfcc)


def _equal_rows(power: np.ndarray) -> Iterator[np.ndarray]:
    """Chunks of one shape, so that one is compiled."""
    for start in range(0, len(power), CHUNK_FRAMES):
        require_wanted()
        chunk = power[start : start + CHUNK_FRAMES]
        yield np.pad(chunk, [(0, CHUNK_FRAMES - len(chunk)), (0, 0)])


def _whole_frames(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks, and after them the silence that fills up the last frame."""
    samples = 0
    for block in blocks:
        samples += len(block)
        yield block
    yield np.zeros(-samples % FRAME, np.float32)


def clips_of(number: int, one: Pass, keys: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Clip]:
    """A recording in clips of any length, decoded once; those of its sound alone while it is read.

    Args:
      number: of the recording.
      one: not begun, with the spectral features among `keys` and `keep`.
      keys: features to be had in each clip: spectral ones, and the sound.
      keep: spectral features to be had besides, of the whole recording.

    Raises:
      UserError: it cannot be read, maybe after clips were given.
    """
    if tuple(keys) == (audio.FEATURE,):
        held = None
        for rows in audio.rows(one):
            if held is not None:
                yield Clip(number, {audio.FEATURE: held})
            held = rows
        found = {audio.FEATURE: held}
    elif audio.FEATURE in keys:
        found = {audio.FEATURE: np.concatenate(list(audio.rows(one)))} | one.features
    else:
        for _ in one:
            pass
        found = one.features
    yield Clip(number, {key: found[key] for key in keys}, one.seconds, {key: one.features[key] for key in keep})


@dataclasses.dataclass(frozen=True)
class DetectorExtractor:
    """What the head of a trained sedjax model sees, of a model that takes spectral features or the sound."""

    detector: Detector

    @classmethod
    def of(cls, workdir: str) -> "DetectorExtractor":
        """Raises UserError if it is not a workdir, or its model takes what audio does not give or has no embeddings."""
        detector = load(workdir)
        audio.require_frame_seconds(detector.task)
        for key in detector.model.features:
            if key not in WIDTHS:
                raise UserError(f"The model in {workdir} takes {key!r}, which it cannot also give: name one that takes "
                                f"some of {list(WIDTHS)}.")
        input_pipeline.require_features(WIDTHS, detector.model.features, detector.widths, where="a recording")
        extractor = cls(detector)
        _ = extractor.width
        return extractor

    @functools.cached_property
    def parameters(self) -> str:
        spectral = f" of spectral features {SPECTRAL_VERSION}" if self.features else ""
        return f"{self.detector.config.model['name']} {fingerprint(self.detector.variables)}{spectral}"

    @property
    def width(self) -> int:
        return self.detector.embedding_width

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(key for key in self.detector.model.features if key in SPECTRAL)

    def embed(self, passes: Iterator[Pass], dtype: type = np.float32) -> Iterator[np.ndarray | UserError]:
        errors: list[UserError | None] = []  # of the recordings that were begun

        def clips() -> Iterator[Clip]:
            for number, one in enumerate(passes):
                errors.append(None)
                try:
                    yield from clips_of(number, one, self.detector.model.features)
                except UserError as error:
                    errors[number] = error

        parts: list[np.ndarray] = []
        given, number = 0, None
        cut = ahead(recut(clips(), self.detector.config.data.max_frames))
        for clip, rows in self.detector.embed_clips(cut):
            if clip.recording != number:  # what was there of one that turned out to be damaged is dropped
                number, parts = clip.recording, []
            parts.append(narrowed(rows, dtype))
            if clip.is_last:
                yield from errors[given:number]
                given = number + 1
                yield np.concatenate(parts)
        yield from errors[given:]


@dataclasses.dataclass(frozen=True)
class AtstExtractor:
    """ATST-Frame: windows of 10 s on the grid of frames, 40 ms tokens grouped into frames by absolute time.

    The last frame of a recording is filled up with silence, as in records of audio, so that a model that computes the
    same inside (models.atst_detector) sees the same.

    Attributes:
      model, weights: of the encoder.
      hop_samples: from one window to the next, a multiple of a frame; where windows overlap, their mean is taken.
      batch_size: windows at once, of one recording or several.
    """

    model: atst_frame.AtstFrame
    weights: dict
    hop_samples: int
    batch_size: int = 4
    features: tuple[str, ...] = ()

    @functools.cached_property
    def parameters(self) -> str:
        return f"atst_frame {fingerprint(self.weights)} hop {self.hop_samples} dropped {self.model.drop_layers}"

    @property
    def width(self) -> int:
        return self.model.width

    def embed(self, passes: Iterator[Pass], dtype: type = np.float32) -> Iterator[np.ndarray | UserError]:
        tokens = self._tokens(self._windows(passes))
        for _, windows in itertools.groupby(tokens, key=operator.itemgetter(0)):
            yield self._stitched(windows, dtype)

    def _windows(self, passes: Iterator[Pass]) -> Iterator[tuple[int, np.ndarray | UserError, int]]:
        """The windows of all recordings: number of the recording, samples, how many are real.

        What cannot be read ends in an error, without real samples.
        """
        for number, one in enumerate(passes):
            try:
                for samples, real in audio.windows(_whole_frames(one), atst_frame.WINDOW_SAMPLES, self.hop_samples):
                    yield number, samples, real
            except UserError as error:
                yield number, error, 0

    def _tokens(self, windows: Iterator[tuple[int, np.ndarray | UserError, int]]
                ) -> Iterator[tuple[int, np.ndarray | UserError]]:
        """The tokens of each window in which there is a real sample; errors as they come."""
        while batch := list(itertools.islice(windows, self.batch_size)):
            sounds = [samples for _, samples, real in batch if real]
            encoded = iter(self._encoded(sounds) if sounds else ())
            for number, samples, real in batch:
                yield number, next(encoded)[: real // atst_frame.TOKEN_SAMPLES] if real else samples

    def _encoded(self, sounds: list[np.ndarray]) -> np.ndarray:
        # Few sizes of batch, so that few are compiled.
        size = min(1 << (len(sounds) - 1).bit_length(), self.batch_size)
        samples = np.zeros((size, atst_frame.WINDOW_SAMPLES), np.float32)
        samples[: len(sounds)] = sounds
        return np.asarray(_encode(self.model, self.weights, samples))

    def _stitched(self, windows: Iterator[tuple[int, np.ndarray | UserError]], dtype: type) -> np.ndarray | UserError:
        def tokens() -> Iterator[np.ndarray]:
            for _, found in windows:
                if isinstance(found, UserError):
                    raise found
                yield found

        rows = grid.stitch(tokens(), self.hop_samples // atst_frame.TOKEN_SAMPLES)
        try:
            return np.concatenate([narrowed(grid.mean_by_group(each, atst_frame.TOKENS_PER_FRAME), dtype)
                                   for each in rows])
        except UserError as error:
            return error


_encode = jax.jit(atst_frame.encode, static_argnums=0)


def of(path: str, hop_seconds: float, drop_layers: int) -> Extractor:
    """The extractor at `path`: an npz file of ATST-Frame, or the workdir of a trained model.

    Raises UserError if it is neither, or not whole.
    """
    if path.endswith(".npz"):
        return AtstExtractor(*atst_frame.load(path, drop_layers), round(hop_seconds * audio.SAMPLE_RATE_HZ))
    return DetectorExtractor.of(path)


def fingerprint(variables) -> str:
    """A number that tells weights apart."""
    total = 0
    for leaf in jax.tree.leaves(variables):
        total = zlib.crc32(np.ascontiguousarray(leaf), total)
    return f"{total:08x}"
