"""Frame probabilities -> active segments."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sedjax.core import grid
from sedjax.core.config import DecisionConfig
from sedjax.core.task import Task
from sedjax.scoring.metrics import cost_per_class


def candidates(config: DecisionConfig, task: Task) -> Float[np.ndarray, "candidate class"]:
    """The candidate thresholds, the same ones for every class."""
    return np.repeat(np.asarray(config.thresholds, np.float32)[:, None], len(task.classes), axis=1)


def default(config: DecisionConfig, task: Task) -> Float[np.ndarray, "class"]:
    """The thresholds of a model before its first evaluation: 0.5 if that is a candidate, else the middle one."""
    ordered = sorted(config.thresholds)
    threshold = 0.5 if 0.5 in ordered else ordered[len(ordered) // 2]
    return np.full(len(task.classes), threshold, np.float32)


def pool_segments(probabilities: Float[Array, "clip frame class"], frame_mask: Bool[Array, "clip frame"],
                  pooling: str, task: Task) -> Float[Array, "clip segment class"]:
    """The probability of each segment: the maximum or mean over its real frames; 0 for a segment without any.

    The number of frames must be a multiple of task.frames_per_segment.
    """
    mask = grid.by_segment(frame_mask[..., None], task)
    probabilities = jnp.where(mask, grid.by_segment(probabilities, task), 0)
    if pooling == "max":
        return probabilities.max(-2)
    return probabilities.sum(-2) / jnp.maximum(mask.sum(-2), 1)


def active(probabilities: Float[Array, "clip unit class"],
           thresholds: Float[Array | np.ndarray, "candidate class"]) -> Bool[Array, "clip candidate unit class"]:
    """Whether each unit (frame or segment) is above each candidate threshold."""
    return probabilities[:, None] > thresholds[None, :, None]


def tune(counts: Int[np.ndarray, "candidate class outcome"], thresholds: Float[np.ndarray, "candidate class"],
         task: Task) -> tuple[Float[np.ndarray, "class"], float]:
    """The threshold with the lowest cost for each class, and the total cost at these thresholds.

    Ties are resolved to the middle of the longest run of neighbouring thresholds, furthest from any change in cost.
    """
    costs = cost_per_class(counts, task)
    lowest = costs.min(0)
    best = np.array([_middle(np.flatnonzero(column <= low + 1e-12)) for column, low in zip(costs.T, lowest)])
    return thresholds[best, np.arange(len(best))], float(lowest.sum())


def _middle(numbers: Int[np.ndarray, "number"]) -> int:
    """The middle of the longest run of consecutive numbers."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[len(longest) // 2])
