"""Speed of feature extraction: front ends against librosa, the encoder of ATST-Frame, a folder of recordings."""

import contextlib
import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sedjax.audio import frontend, mel, reader, spectral
from sedjax.audio.clips import Clip
from sedjax.benchmarks import timing
from sedjax.core.errors import UserError
from sedjax.core.task import SAMPLE_RATE_HZ
from sedjax.models.atst_frame import WINDOW_SAMPLES, AtstFrame

CLIPS = 16  # batch of 10 s clips for the front ends
BATCH_SIZES = (1, 4)  # for the encoder
TURN_SECONDS = 0.3  # minimum
RECORDINGS = 200  # read from a folder, at most
TOLERANCE = 0.01  # mean absolute difference of decibels or tokens that is attributed to rounding
UNIT = "times_real_time"  # seconds of audio per second


def bench(folder: str | os.PathLike, turns: int, against: bool = False) -> dict:
    """All figures of a folder of recordings, in a form that can be written as JSON.

    Args:
      folder: folder of recordings.
      turns: number of turns of each contestant.
      against: also time the encoder's peer in PyTorch.

    Raises:
      UserError: there are no recordings, none can be read, or the peer is not installed.
    """
    if against:
        timing.require_torch()
    paths = reader.files_in(pathlib.Path(folder))[:RECORDINGS]
    extracted = extraction(paths)
    clips = first_windows(paths, CLIPS)
    contestants = encoders(AtstFrame(), against)
    device = jax.devices()[0]
    return {"device": {"platform": device.platform, "kind": device.device_kind}, "turns": turns,
            "extraction": extracted,
            "frontend": {name: speeds(peers, clips, turns) for name, peers in front_ends().items()},
            "encoder": {f"batch {size}": speeds(contestants, np.asarray(log_mel(clips[:size])), turns)
                        for size in BATCH_SIZES}}


def extraction(paths: Sequence[pathlib.Path]) -> dict:
    """Hours of audio per hour of reading, resampling and computing spectral features, one recording at a time."""
    next((clip for clip in spectral.clips(paths, spectral.SPECTRAL) if isinstance(clip, Clip)), None)  # compiles
    began = time.perf_counter()
    seconds = [clip.seconds for clip in spectral.clips(paths, spectral.SPECTRAL) if isinstance(clip, Clip)]
    if not seconds:
        raise UserError(f"None of the {len(paths)} recordings can be read.")
    return {"recordings": len(seconds), "damaged": len(paths) - len(seconds), "hours": sum(seconds) / 3600,
            UNIT: sum(seconds) / (time.perf_counter() - began)}


def first_windows(paths: Sequence[pathlib.Path], count: int) -> np.ndarray:
    """(count, 160000) samples, the first 10 s of `count` recordings, repeated if there are fewer."""
    def windows() -> Iterator[np.ndarray]:
        for path in paths:
            with contextlib.suppress(UserError):
                yield next(reader.windows(reader.blocks(path), WINDOW_SAMPLES, WINDOW_SAMPLES))[0]

    return np.stack(list(itertools.islice(itertools.cycle(windows()), count)))


def speeds(contestants: dict[str, Callable], inputs: np.ndarray, turns: int) -> dict[str, dict[str, float]]:
    """Seconds of audio per second of functions of 10 s clips, after a first run that also compares their results."""
    results = [np.asarray(run(inputs)) for run in contestants.values()]
    assert all(np.abs(result - results[0]).mean() < TOLERANCE for result in results)

    def speed(run: Callable, inputs: np.ndarray | jax.Array) -> float:
        # Shorter turns would measure the caches that the previous contestant left. All copy their results to the host.
        calls = timing.calls_per_second(lambda: np.asarray(run(inputs)), TURN_SECONDS)
        return calls * len(inputs) * WINDOW_SAMPLES / SAMPLE_RATE_HZ

    # Each gets its inputs where it works: sedjax on the device, the others as numpy arrays.
    return timing.compare({name: functools.partial(speed, run, jnp.asarray(inputs) if name == "sedjax" else inputs)
                           for name, run in contestants.items()}, UNIT, turns)


def front_ends() -> dict[str, dict[str, Callable]]:
    """Functions of clips (clip, sample) by definition and contestant: the level in bands; librosa's clip by clip."""
    try:
        import librosa
    except ModuleNotFoundError as error:
        raise UserError("bench --audio compares with librosa, which is not installed: pip install 'sedjax[train]'."
                        ) from error

    @jax.jit
    def levels(clips: jax.Array) -> jax.Array:
        return frontend.power_to_db(frontend.mel_power(clips, jnp.ones(clips.shape, bool))[0])

    def power(clip: np.ndarray, definition: mel.Mel) -> np.ndarray:
        return librosa.feature.melspectrogram(
            y=clip, sr=SAMPLE_RATE_HZ, n_fft=definition.window_samples, hop_length=definition.hop_samples,
            n_mels=definition.bands, fmin=definition.low_hz, fmax=definition.high_hz, htk=definition.htk,
            norm=None if definition.htk else "slaney", center=definition.reflect, pad_mode="reflect")

    def atst(clip: np.ndarray) -> np.ndarray:
        decibels = librosa.power_to_db(power(clip, mel.ATST), amin=1e-10, ref=1.0, top_db=frontend.ATST_RANGE_DB)
        low, high = frontend.ATST_SCALE_DB
        return ((np.clip(decibels, *frontend.ATST_CLAMP_DB) - low) / (high - low) * 2 - 1).T

    def mlpc(clip: np.ndarray) -> np.ndarray:
        windows = mel.MLPC.num_frames(len(clip)) * mel.MLPC.windows_per_frame
        missing = (windows - 1) * mel.MLPC.hop_samples + mel.MLPC.window_samples - mel.MLPC.samples_before - len(clip)
        bands = power(np.pad(clip, (mel.MLPC.samples_before, max(missing, 0))), mel.MLPC)[:, :windows]
        frames = bands.reshape(mel.MLPC.bands, -1, mel.MLPC.windows_per_frame).mean(axis=2)
        return librosa.power_to_db(frames, amin=1e-10, ref=1.0, top_db=None).T

    def by_clip(run: Callable) -> Callable:
        return lambda clips: np.stack([run(clip) for clip in clips])

    return {"log-mel of ATST-Frame": {"sedjax": log_mel, "librosa": by_clip(atst)},
            "mel bands of 120 ms": {"sedjax": levels, "librosa": by_clip(mlpc)}}


@jax.jit
def log_mel(clips: jax.Array) -> jax.Array:
    """The log-mel input of ATST-Frame for clips without padding."""
    return frontend.atst_log_mel(clips, jnp.ones(clips.shape, bool))[0]


def encoders(model: AtstFrame, against: bool) -> dict[str, Callable]:
    """Functions (clip, frame, band) log-mel -> tokens by contestant, with the same random weights."""
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, mel.ATST.bands)))["params"]
    encode = jax.jit(model.apply)
    functions: dict[str, Callable] = {"sedjax": lambda x: encode({"params": params}, x)}
    if against:
        from sedjax.benchmarks import torch_atst

        functions["PyTorch"] = torch_atst.encoder(model, params)
    return functions
