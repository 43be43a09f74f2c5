"""A figure of the detections in one recording."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from sedjax.audio.frontend import power_to_db
from sedjax.audio.mel import MLPC, hz_to_mel
from sedjax.core.errors import printable
from sedjax.core.numbers import ceil_div
from sedjax.inference.detection import MOST_CLASSES, Detection

if TYPE_CHECKING:
    import matplotlib.figure

WIDTH_INCHES = (10, 24)
SECONDS_PER_INCH = 20  # between these widths
MOST_COLUMNS = 2400
RANGE_DB = 60
SILENCE_DB = -40  # a recording whose loudest band is quieter is drawn dark
CURVE_HEIGHT = 0.8  # of probability 1; the bars of events are above
TICKS_HZ = (250, 500, 1000, 2000, 4000)
MOST_TITLE = 90
TICKS_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)


def draw_recording(melspectrogram: Float[np.ndarray, "frame band"],
                   detection: Detection) -> "matplotlib.figure.Figure":
    """The spectrogram in dB above the probability and threshold of each class, with detected events as bars.

    For long recordings, neighbouring frames are reduced to their maximum. Of many classes, those with the highest
    probabilities are shown. The title is the name of the recording.

    Args:
      melspectrogram: (T, bands) linear power.
      detection: detection with the same T frames.
    """
    from matplotlib import pyplot as plt  # slow to import
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    task = detection.task
    shown = np.sort(np.argsort(-detection.frames.max(axis=0), kind="stable")[:MOST_CLASSES])
    seconds, classes = len(melspectrogram) * task.frame_seconds, len(shown)
    step = ceil_div(len(melspectrogram), MOST_COLUMNS)
    size = float(np.clip(seconds / SECONDS_PER_INCH, *WIDTH_INCHES)), 2.9 + 0.29 * classes
    figure, (top, bottom) = plt.subplots(2, 1, figsize=size, sharex=True, layout="constrained",
                                         gridspec_kw={"height_ratios": [2, 0.8 + 0.29 * classes]})
    values, low, high = decibels(_highest(melspectrogram, step))
    image = top.imshow(values.T, origin="lower", aspect="auto", extent=(0, seconds, 0, 1), cmap="magma", vmin=low,
                       vmax=high)
    ticks_hz, heights = zip(*frequency_ticks())
    top.set(yticks=heights, yticklabels=[f"{hz:,}" for hz in ticks_hz], ylabel="Hz")
    top.set_title(_title(detection.recording), parse_math=False)
    # Beside the axes, which thus remain as wide as those below.
    figure.colorbar(image, cax=top.inset_axes((1.01, 0, 8 / (100 * size[0]), 1)), label="dB")

    edges = np.minimum(np.arange(0, len(melspectrogram) + step, step), len(melspectrogram)) * task.frame_seconds
    bottom.set_title("Probability (blue), threshold (dotted), detected (orange)")
    bottom.hlines(np.arange(1, classes), 0, seconds, color="0.85", linewidth=0.5)
    bottom.hlines(np.arange(1, classes + 1) - CURVE_HEIGHT * detection.rules.thresholds[shown], 0, seconds, color="0.4",
                  linewidth=0.7, linestyle="dotted", label="threshold")
    thinnest = seconds / (100 * size[0])  # one pixel
    names = [task.classes[label] for label in shown]
    for place, (name, column) in enumerate(zip(names, _highest(detection.frames[:, shown], step).T)):
        bottom.stairs(place + 1 - CURVE_HEIGHT * column, edges, baseline=place + 1, fill=True, color="#9DB9E8")
        bars = [(event.onset, max(event.offset - event.onset, thinnest)) for event in detection if event.label == name]
        bottom.broken_barh(bars, (place + 0.06, 0.14), facecolors="#D55E00", label="detected")
    bottom.set(yticks=np.arange(classes) + 0.5, yticklabels=names, ylim=(classes, 0),
               xlim=(0, detection.seconds), xlabel="seconds" if seconds < 120 else "time")
    ticks = next((ticks for ticks in TICKS_SECONDS if seconds <= 2 * size[0] * ticks), TICKS_SECONDS[-1])
    bottom.xaxis.set_major_locator(MultipleLocator(ticks))
    if seconds >= 120:
        bottom.xaxis.set_major_formatter(FuncFormatter(_clock))
    return figure


def decibels(power: Float[np.ndarray, "frame band"]) -> tuple[Float[np.ndarray, "frame band"], float, float]:
    """The spectrogram in dB, and the lowest and highest level to show: the loudest RANGE_DB, darkness for silence."""
    values = np.asarray(power_to_db(power))
    high = max(float(values.max()), SILENCE_DB)
    return values, high - RANGE_DB, high


def frequency_ticks() -> list[tuple[int, float]]:
    """Frequencies in Hz to write beside a spectrogram, and how high they are in it, from 0 to 1."""
    # Band k is centred on corner k + 1 of bands + 2, which are evenly spaced in mel.
    low, high = hz_to_mel(np.array([MLPC.low_hz, MLPC.high_hz]), MLPC.htk)
    corners = (hz_to_mel(np.array(TICKS_HZ, float), MLPC.htk) - low) / (high - low) * (MLPC.bands + 1)
    return list(zip(TICKS_HZ, ((corners - 0.5) / MLPC.bands).tolist()))


def _title(recording: str) -> str:
    name = printable(pathlib.PurePath(recording).name)
    return name if len(name) <= MOST_TITLE else f"{name[:MOST_TITLE]}..."


def _highest(x: np.ndarray, step: int) -> np.ndarray:
    """The maximum of every `step` rows, by column."""
    return np.maximum.reduceat(x, np.arange(0, len(x), step))


def _clock(seconds: float, position: int | None = None) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
