"""A picture of what a model heard in one recording."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from sedjax import grid
from sedjax.frontend import level
from sedjax.predict import Prediction
from sedjax.task import Task

if TYPE_CHECKING:
    import matplotlib.figure


def draw_recording(melspectrogram: Float[np.ndarray, "frame band"], prediction: Prediction, task: Task,
                   truth: Bool[np.ndarray, "frame class"] | None = None) -> "matplotlib.figure.Figure":
    """The spectrogram in dB above the probability of each class, with detected segments and true events outlined.

    Args:
      melspectrogram: (T, bands) linear power.
      prediction: of the same T frames.
      task: names the classes.
      truth: the frames in which each class is really active, if known.
    """
    from matplotlib import pyplot as plt  # slow to import

    seconds = len(melspectrogram) * task.frame_seconds
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 5.6), sharex=True, layout="constrained",
                                         gridspec_kw={"height_ratios": [1, 1.4]})
    decibels = level(melspectrogram)
    top.imshow(decibels.T, origin="lower", aspect="auto", extent=(0, seconds, 0, decibels.shape[1]), cmap="magma",
               vmin=decibels.max() - 60, vmax=decibels.max())
    top.set(ylabel="mel band", title="Level")
    classes = len(task.classes)
    bottom.imshow(prediction.frames.T, aspect="auto", extent=(0, seconds, classes, 0), cmap="Blues", vmin=0, vmax=1)
    line = {"linewidth": 3, "solid_capstyle": "butt"}
    for label, onset, offset in grid.events(prediction.active, task.segment_seconds):
        bottom.plot([onset, min(offset, seconds)], [label + 0.12] * 2, color="#D55E00", **line)
    for label, onset, offset in grid.events(truth, task.frame_seconds) if truth is not None else ():
        bottom.plot([onset, offset], [label + 0.88] * 2, color="#009E73", **line)
    bottom.set(yticks=np.arange(classes) + 0.5, yticklabels=task.classes, ylim=(classes, 0), xlabel="seconds",
               title="Probability (blue), detected (orange)" + (", true (green)" if truth is not None else ""))
    return figure
