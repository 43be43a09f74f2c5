"""How fast audio becomes features here: front ends against librosa, ATST-Frame's encoder, a folder of recordings."""

import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sedjax.audio import frontend, mel, reader, spectral
from sedjax.audio.clips import Clip, Unreadable
from sedjax.benchmarks.timing import ratios, take_turns
from sedjax.core.errors import UserError
from sedjax.core.task import SAMPLE_RATE_HZ
from sedjax.models.atst_frame import WINDOW_SAMPLES, AtstFrame

CLIPS = 16  # of 10 s, that a front end takes at once
BATCH_SIZES = (1, 4)  # of the encoder
TURN_SECONDS = 0.3  # at least
RECORDINGS = 200  # of a folder, at most
SAME = 0.01  # mean difference of decibels or tokens, of numbers that are the same but for rounding
UNIT = "times_real_time"  # seconds of audio per second


def bench(folder: str | os.PathLike, turns: int, against: str | None = None) -> dict:
    """All figures of a folder of recordings, as JSON can hold them.

    Args:
      folder: the recordings.
      turns: that each contestant takes.
      against: "torch" for the encoder's peer in PyTorch.

    Raises:
      UserError: there are no recordings, none can be read, or the peer is not installed.
    """
    if against:
        _require_torch()
    paths = reader.files_in(pathlib.Path(folder))[:RECORDINGS]
    found = extraction(paths)
    clips = first_windows(paths, CLIPS)
    contestants = encoders(AtstFrame(), against)
    device = jax.devices()[0]
    return {"device": {"platform": device.platform, "kind": device.device_kind}, "turns": turns, "extraction": found,
            "frontend": {name: speeds(each, clips, turns) for name, each in front_ends().items()},
            "encoder": {f"batch {size}": speeds(contestants, np.asarray(log_mel(clips[:size])), turns)
                        for size in BATCH_SIZES}}


def extraction(paths: Sequence[pathlib.Path]) -> dict:
    """Hours of audio per hour that are read, resampled and made spectral features of, one recording after the other."""
    seconds, bad, warm = 0.0, 0, False
    began = time.perf_counter()
    for path in paths:
        if not warm:  # what is compiled is compiled
            warm, began = isinstance(_spectral(path), Clip), time.perf_counter()
        clip = _spectral(path)
        if isinstance(clip, Unreadable):
            bad += 1
        else:
            seconds += clip.seconds
    if not seconds:
        raise UserError(f"None of the {len(paths)} recordings can be read.")
    return {"recordings": len(paths) - bad, "damaged": bad, "hours": seconds / 3600,
            UNIT: seconds / (time.perf_counter() - began)}


def _spectral(path: pathlib.Path) -> Clip | Unreadable:
    (clip,) = spectral.clips([path], spectral.SPECTRAL)
    return clip


def first_windows(paths: Sequence[pathlib.Path], count: int) -> np.ndarray:
    """(count, 160000) samples, the first 10 s of as many recordings; from the first on again where there are fewer."""
    found = []
    for path in paths:
        if len(found) == count:
            break
        try:
            found.append(next(reader.windows(reader.blocks(path), WINDOW_SAMPLES, WINDOW_SAMPLES))[0])
        except UserError:
            continue
    return np.stack(list(itertools.islice(itertools.cycle(found), count)))


def speeds(contestants: dict[str, Callable], inputs: np.ndarray, turns: int) -> dict[str, dict[str, float]]:
    """Seconds of audio per second of functions of clips of 10 s, after a run that also compares their results."""
    results = [np.asarray(run(inputs)) for run in contestants.values()]
    assert all(np.abs(found - results[0]).mean() < SAME for found in results)

    def timed(run: Callable, inputs: np.ndarray | jax.Array) -> float:
        began, calls, seconds = time.perf_counter(), 0, 0.0
        while seconds < TURN_SECONDS:  # a turn of milliseconds would time how cold the other left the caches
            np.asarray(run(inputs))  # and on the host, for all
            calls, seconds = calls + 1, time.perf_counter() - began
        return calls * len(inputs) * WINDOW_SAMPLES / SAMPLE_RATE_HZ / seconds

    # Each finds its inputs where it works: sedjax on the device, the others in arrays of numpy.
    each = {name: functools.partial(timed, run, jnp.asarray(inputs) if name == "sedjax" else inputs)
            for name, run in contestants.items()}
    return ratios(take_turns(each, turns), "sedjax", UNIT)


def front_ends() -> dict[str, dict[str, Callable]]:
    """Functions of clips (clip, sample) by definition and contestant: the level in bands; librosa's clip by clip."""
    import librosa

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
        found = power(np.pad(clip, (mel.MLPC.samples_before, max(missing, 0))), mel.MLPC)[:, :windows]
        frames = found.reshape(mel.MLPC.bands, -1, mel.MLPC.windows_per_frame).mean(axis=2)
        return librosa.power_to_db(frames, amin=1e-10, ref=1.0, top_db=None).T

    def each(run: Callable) -> Callable:
        return lambda clips: np.stack([run(clip) for clip in clips])

    return {"log-mel of ATST-Frame": {"sedjax": log_mel, "librosa": each(atst)},
            "mel bands of 120 ms": {"sedjax": levels, "librosa": each(mlpc)}}


@jax.jit
def log_mel(clips: jax.Array) -> jax.Array:
    """The input of ATST-Frame for whole clips."""
    return frontend.atst_log_mel(clips, jnp.ones(clips.shape, bool))[0]


def encoders(model: AtstFrame, against: str | None) -> dict[str, Callable]:
    """Functions of log-mel (clip, frame, band) by contestant: the tokens, by one set of random weights."""
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, mel.ATST.bands)))["params"]
    encode = jax.jit(model.apply)
    found: dict[str, Callable] = {"sedjax": lambda x: encode({"params": params}, x)}
    if against:
        from sedjax.benchmarks import torch_atst

        found["PyTorch"] = torch_atst.encoder(model, params)
    return found


def format_result(result: dict) -> str:
    """A short table: each figure with a line that says what it is."""
    device, found = result["device"], result["extraction"]
    lines = [f"audio to features, on {device['kind']} ({device['platform']})", ""]

    def row(value: str, text: str) -> None:
        lines.append(f"{value:>20}  {text}")

    row(f"{found[UNIT]:,.0f} h/h", f"reading, resampling, mel and MFCC: {found['recordings']:,} recordings of "
        f"{found['hours']:.2f} h, {found['damaged']} damaged, one at a time")
    for what, contestants in (*result["frontend"].items(),
                              *((f"encoder of ATST-Frame, {name}", each) for name, each in result["encoder"].items())):
        speed = contestants["sedjax"][UNIT]
        row(f"{speed:,.1f} x real time", f"{what}: {1 / speed:.4f} s for a second of audio")
        for name, each in contestants.items():
            if name != "sedjax":
                row(f"{each['ratio']:.2f} x", f"as fast as {name}, which takes {1 / each[UNIT]:.4f} s "
                    f"({each['lowest_ratio']:.2f} to {each['highest_ratio']:.2f} in {result['turns']} turns)")
    return "\n".join(lines)


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError("--against=torch needs PyTorch: pip install 'sedjax[bench]'.") from error
