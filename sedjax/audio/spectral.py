"""From recordings to clips of audio and spectral features; each recording is decoded once."""

import functools
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sedjax.audio import frontend, reader
from sedjax.audio.clips import Clip, Unreadable, require_wanted
from sedjax.audio.mel import MFCC_COEFFICIENTS, MLPC
from sedjax.core import task
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div

SPECTRAL = ("melspectrogram", "mfcc", "mfcc_delta", "mfcc_delta2")
WIDTHS = {"melspectrogram": MLPC.bands, **dict.fromkeys(SPECTRAL[1:], MFCC_COEFFICIENTS),
          reader.FEATURE: task.FRAME_SAMPLES}
SAMPLES = "samples"  # audio as float32, one row per frame; reader.FEATURE is 16-bit
SOUND = {reader.FEATURE: reader.as_16_bits, SAMPLES: lambda rows: rows}
DELTAS = {"mfcc_delta": 1, "mfcc_delta2": 2}  # order of each
CHUNK_FRAMES = 100
FRAME = MLPC.frame_samples
PIECE_SAMPLES = (CHUNK_FRAMES + 2) * FRAME


def clips(recordings: Iterable[reader.Recording], keys: Sequence[str], extras: Sequence[str] = (),
          sample_rate_hz: reader.SampleRate | None = None) -> Iterator[Clip | Unreadable]:
    """Yields recordings as clips of any length.

    For audio alone, memory holds a few seconds; with spectral features, it holds those of one recording and its audio.

    Args:
      recordings: files or arrays, as for `reader.blocks`.
      keys: features of each clip, from SPECTRAL and SOUND.
      extras: additional features for Clip.extras, from SPECTRAL.
      sample_rate_hz: sample rate of arrays.
    """
    wanted = [key for key in SPECTRAL if key in keys or key in extras]
    for number, recording in enumerate(recordings):
        stream = FeatureStream(reader.blocks(recording, sample_rate_hz), wanted)
        name = os.fspath(recording) if isinstance(recording, str | os.PathLike) else ""
        try:
            yield from _clips(number, name, stream, keys, extras)
        except UserError as error:
            yield Unreadable(number, name, error)


def _clips(number: int, name: str, stream: "FeatureStream", keys: Sequence[str],
           extras: Sequence[str]) -> Iterator[Clip]:
    sound = {key: SOUND[key] for key in keys if key in SOUND}
    pieces = reader.rows(stream)
    if 0 < len(sound) < len(keys):  # spectral features are only known at the end
        pieces = [np.concatenate(list(pieces))]
    piece: dict[str, np.ndarray] = {}
    for rows in pieces:
        if piece:
            yield Clip(number, name, piece)
        piece = {key: convert(rows) for key, convert in sound.items()}
    features = piece | {key: stream.features[key] for key in keys if key not in sound}
    yield Clip(number, name, {key: features[key] for key in keys}, stream.seconds,
               {key: stream.features[key] for key in extras})


class FeatureStream:
    """Passes on the blocks of a recording while computing its spectral features and length.

    So a recording is decoded once, and memory holds twelve seconds of it.
    """

    def __init__(self, blocks: Iterable[np.ndarray], wanted: Sequence[str]):
        """`wanted`: features to compute, from SPECTRAL."""
        self._blocks, self._wanted = blocks, wanted
        self._power: list[np.ndarray] = []
        self._held = np.zeros(FRAME, np.float32)
        self.samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            require_wanted()
            self.samples += len(block)
            if self._wanted:
                self._held = np.concatenate([self._held, block])
                while len(self._held) >= PIECE_SAMPLES:
                    self._flush()
            yield block
        while self._wanted and len(self._held) > FRAME:
            self._flush()

    def _flush(self) -> None:
        """Mel power of CHUNK_FRAMES frames, from a piece with one more frame on each side; keeps the remainder."""
        piece, size = self._held[:PIECE_SAMPLES], CHUNK_FRAMES * FRAME
        frames = min(ceil_div(len(piece) - FRAME, FRAME), CHUNK_FRAMES)
        power = _mel_power(np.pad(piece, (0, PIECE_SAMPLES - len(piece)))[None])
        self._power.append(np.asarray(power)[0, 1 : 1 + frames])
        self._held = self._held[size:]

    @property
    def seconds(self) -> float:
        return self.samples / task.SAMPLE_RATE_HZ

    @functools.cached_property
    def features(self) -> dict[str, np.ndarray]:
        """The wanted features, each (T, D), available after all blocks have been read.

        `melspectrogram` is linear power in float32; `mfcc`, `mfcc_delta` and `mfcc_delta2` are float16.
        """
        if not self._wanted:
            return {}
        power = np.concatenate(self._power)
        features = {"melspectrogram": power}
        if set(self._wanted) != {"melspectrogram"}:
            mfcc = np.concatenate([np.asarray(_mfcc(row)) for row in _equal_rows(power)])[: len(power)]
            mask = np.ones((1, len(mfcc)), bool)
            features["mfcc"] = mfcc.astype(np.float16)
            for name, order in DELTAS.items():
                if name in self._wanted:
                    features[name] = frontend.deltas(mfcc[None], mask, order)[0].astype(np.float16)
        return features


@jax.jit
def _mel_power(samples):
    return frontend.mel_power(samples, jnp.ones(samples.shape, bool))[0]


_mfcc = jax.jit(frontend.mfcc)


def _equal_rows(power: np.ndarray) -> Iterator[np.ndarray]:
    """Chunks of equal shape, so that only one shape is compiled."""
    for start in range(0, len(power), CHUNK_FRAMES):
        require_wanted()
        chunk = power[start : start + CHUNK_FRAMES]
        yield np.pad(chunk, [(0, CHUNK_FRAMES - len(chunk)), (0, 0)])
