"""A figure of the detections in one recording."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from sedjax.audio.frontend import power_to_db
from sedjax.core.numbers import ceil_div
from sedjax.inference.detection import Detection

if TYPE_CHECKING:
    import matplotlib.figure

WIDTH_INCHES = (10, 24)
SECONDS_PER_INCH = 20  # between these widths
MOST_COLUMNS = 2400
RANGE_DB = 60
TICKS_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)


def draw_recording(melspectrogram: Float[np.ndarray, "frame band"],
                   detection: Detection) -> "matplotlib.figure.Figure":
    """The spectrogram in dB above the probability of each class, with detected events as bars.

    For long recordings, neighbouring frames are reduced to their maximum.

    Args:
      melspectrogram: (T, bands) linear power.
      detection: detection with the same T frames.
    """
    from matplotlib import pyplot as plt  # slow to import
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    task = detection.task
    seconds, classes = len(melspectrogram) * task.frame_seconds, len(task.classes)
    step = ceil_div(len(melspectrogram), MOST_COLUMNS)
    size = float(np.clip(seconds / SECONDS_PER_INCH, *WIDTH_INCHES)), 2.7 + 0.29 * classes
    figure, (top, bottom) = plt.subplots(2, 1, figsize=size, sharex=True, layout="constrained",
                                         gridspec_kw={"height_ratios": [2, 0.8 + 0.29 * classes]})
    decibels = power_to_db(_highest(melspectrogram, step))
    top.imshow(decibels.T, origin="lower", aspect="auto", extent=(0, seconds, 0, decibels.shape[1]), cmap="magma",
               vmin=decibels.max() - RANGE_DB, vmax=decibels.max())
    top.set(ylabel="mel band", title="Level")
    bottom.imshow(_highest(detection.frames, step).T, aspect="auto", extent=(0, seconds, classes, 0), cmap="Blues",
                  vmin=0, vmax=1, interpolation="nearest")
    bottom.hlines(np.arange(1, classes), 0, seconds, color="0.85", linewidth=0.5)
    thinnest = seconds / (100 * size[0])  # one pixel
    for label, name in enumerate(task.classes):
        bars = [(event.onset, max(event.offset - event.onset, thinnest)) for event in detection if event.label == name]
        bottom.broken_barh(bars, (label + 0.06, 0.14), facecolors="#D55E00")
    bottom.set(yticks=np.arange(classes) + 0.5, yticklabels=task.classes, ylim=(classes, 0),
               xlim=(0, detection.seconds), xlabel="seconds" if seconds < 120 else "time",
               title="Probability (blue), detected (orange)")
    ticks = next((ticks for ticks in TICKS_SECONDS if seconds <= 2 * size[0] * ticks), TICKS_SECONDS[-1])
    bottom.xaxis.set_major_locator(MultipleLocator(ticks))
    if seconds >= 120:
        bottom.xaxis.set_major_formatter(FuncFormatter(_clock))
    return figure


def _highest(x: np.ndarray, step: int) -> np.ndarray:
    """The maximum of every `step` rows, by column."""
    return np.maximum.reduceat(x, np.arange(0, len(x), step))


def _clock(seconds: float, position: int | None = None) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
