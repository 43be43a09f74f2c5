"""From a recording to its features: mel power and MFCC, and the embeddings of a frozen model."""

import dataclasses
import functools
import itertools
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from sedjax import audio, frontend, grid, input_pipeline, predict
from sedjax.errors import UserError
from sedjax.mel import MFCC_COEFFICIENTS, MLPC
from sedjax.models import atst_frame
from sedjax.task import Task

SPECTRAL = ("melspectrogram", "mfcc", "mfcc_delta", "mfcc_delta2")
SPECTRAL_VERSION = "1"  # raise it whenever the same recording gives other numbers
CHUNK_FRAMES = 100
FRAME = MLPC.frame_samples


@runtime_checkable
class Extractor(Protocol):
    """A frozen model that embeds recordings, one row for each 120 ms.

    Attributes:
      parameters: whatever its numbers depend on.
      group: how many recordings it takes at once.
    """

    parameters: str
    group: int

    def embed(self, paths: Sequence[pathlib.Path], features: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
        """The embeddings of recordings, of which these are the spectral features."""


def spectral_features(path: pathlib.Path) -> tuple[dict[str, np.ndarray], float]:
    """Features (T, D) of a recording by name, for which memory holds twelve seconds of it; and its length in seconds.

    `melspectrogram` is linear power in float32; `mfcc`, `mfcc_delta` and `mfcc_delta2` are float16.

    Raises UserError that names the file if it cannot be read.
    """
    rows, samples = [], 0
    for piece, real in _chunks(audio.blocks(path)):
        frames = -(-real // FRAME)
        rows.append(np.asarray(_mel_power(piece[None]))[0, 1 : 1 + frames])
        samples += real
    power = np.concatenate(rows)
    mfcc = np.concatenate([np.asarray(_mfcc(row)) for row in _equal_rows(power)])[: len(power)]
    mask = np.ones((1, len(mfcc)), bool)
    first, second = (frontend.deltas(mfcc[None], mask, order)[0] for order in (1, 2))
    half = {"mfcc": mfcc, "mfcc_delta": first, "mfcc_delta2": second}
    return ({"melspectrogram": power, **{key: value.astype(np.float16) for key, value in half.items()}},
            samples / audio.SAMPLE_RATE_HZ)


@jax.jit
def _mel_power(samples):
    return frontend.mel_power(samples, jnp.ones(samples.shape, bool))[0]


_mfcc = jax.jit(frontend.mfcc)


def _equal_rows(power: np.ndarray) -> Iterator[np.ndarray]:
    """Chunks of one shape, so that one is compiled."""
    for start in range(0, len(power), CHUNK_FRAMES):
        chunk = power[start : start + CHUNK_FRAMES]
        yield np.pad(chunk, [(0, CHUNK_FRAMES - len(chunk)), (0, 0)])


def _chunks(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of CHUNK_FRAMES frames with one more before and after, and how many of the samples between are real."""
    size, whole = CHUNK_FRAMES * FRAME, (CHUNK_FRAMES + 2) * FRAME
    held = np.zeros(FRAME, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= whole:
            yield held[:whole], size
            held = held[size:]
    while len(held) > FRAME:
        yield np.pad(held[:whole], (0, max(whole - len(held), 0))), min(len(held) - FRAME, size)
        held = held[size:]


@dataclasses.dataclass(frozen=True)
class _InMemory:
    """Recordings whose features are in memory, as a sedjax.input_pipeline.Source."""

    task: Task
    held: Sequence[dict[str, np.ndarray]]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(next(iter(features.values()))) for features in self.held], np.int32)

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        votes = np.zeros((int(self.lengths[index]), len(self.task.classes)), np.float16)
        return {key: self.held[index][key] for key in keys}, votes


@dataclasses.dataclass(frozen=True)
class DetectorExtractor:
    """What the head of a trained sedjax model sees, of a model that takes spectral features."""

    detector: predict.Detector
    group: int = 64  # each call compiles anew

    @classmethod
    def of(cls, workdir: str) -> "DetectorExtractor":
        """Raises UserError if it is no workdir, or its model takes what is not extracted from audio."""
        detector = predict.load(workdir)
        for key in detector.model.features:
            if key not in SPECTRAL:
                raise UserError(f"The model in {workdir} takes {key!r}, which it cannot also give: name one that takes "
                                f"some of {list(SPECTRAL)}.")
        widths = {"melspectrogram": MLPC.bands, "mfcc": MFCC_COEFFICIENTS}
        found = {key: widths[key.partition("_")[0]] for key in SPECTRAL}
        input_pipeline.require_features(found, detector.model.features, detector.widths, where="a recording")
        return cls(detector)

    @functools.cached_property
    def parameters(self) -> str:
        return f"{self.detector.config.model['name']} {fingerprint(self.detector.variables)}"

    def embed(self, paths: Sequence[pathlib.Path], features: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
        return self.detector.embed(_InMemory(self.detector.task, features))


@dataclasses.dataclass(frozen=True)
class AtstExtractor:
    """ATST-Frame: windows of 10 s on the grid of segments, 40 ms tokens grouped into frames by absolute time.

    Attributes:
      model, weights: of the encoder.
      hop_samples: from one window to the next, a multiple of a segment; where windows overlap, their mean is taken.
      batch_size: windows at once.
      group: recordings at once; the windows of one make a batch.
    """

    model: atst_frame.AtstFrame
    weights: dict
    hop_samples: int
    batch_size: int = 4
    group: int = 1

    @functools.cached_property
    def parameters(self) -> str:
        return f"atst_frame {fingerprint(self.weights)} hop {self.hop_samples} dropped {self.model.drop_layers}"

    def embed(self, paths: Sequence[pathlib.Path], features: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
        return [self.embed_recording(path, dtype=np.float16) for path in paths]

    def embed_recording(self, recording: audio.Recording, sample_rate_hz: int | None = None,
                        dtype: type = np.float32) -> np.ndarray:
        """(T, width) of a file or an array, T = ceil(seconds / 0.12)."""
        hop_tokens = self.hop_samples // atst_frame.TOKEN_SAMPLES
        rows = grid.stitch(self._tokens(audio.blocks(recording, sample_rate_hz)), hop_tokens)
        return np.concatenate([grid.mean_by_group(each, atst_frame.TOKENS_PER_FRAME).astype(dtype) for each in rows])

    def _tokens(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The tokens of each window in which there is a real sample."""
        windows = audio.windows(blocks, atst_frame.WINDOW_SAMPLES, self.hop_samples)
        while batch := list(itertools.islice(windows, self.batch_size)):
            # Few sizes of batch, so that few are compiled.
            size = min(1 << (len(batch) - 1).bit_length(), self.batch_size)
            samples = np.zeros((size, atst_frame.WINDOW_SAMPLES), np.float32)
            samples[: len(batch)] = [window for window, _ in batch]
            for tokens, (_, real) in zip(np.asarray(self._encode(self.weights, samples)), batch):
                yield tokens[: -(-real // atst_frame.TOKEN_SAMPLES)]

    @functools.cached_property
    def _encode(self):
        return jax.jit(functools.partial(atst_frame.encode, self.model))


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
