"""Confusion counts -> cost per minute and the figures per class (SPEC section 2).

Counts are made where the predictions are, on the device or in numpy; money is counted once, in float64, on the host.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from sedjax.task import OUTCOMES, Task

Array = jax.Array | np.ndarray


def confusion_counts(predicted: Bool[Array, "*#batch unit class"], actual: Bool[Array, "*#batch unit class"],
                     mask: Bool[Array, "*#batch unit"]) -> Int[Array, "*batch class outcome"]:
    """Confusion counts per class over the real units (segments or frames), outcomes in the order TP, FP, TN, FN.

    A padded unit (mask False) counts nowhere. Counts are int32: exact up to 2**31 segments, 81 years of audio.
    """
    xp = jnp if isinstance(predicted, jax.Array) else np
    mask = mask[..., None]
    outcomes = (predicted & actual, predicted & ~actual, ~predicted & ~actual, ~predicted & actual)
    return xp.stack([(outcome & mask).sum(-2, dtype=xp.int32) for outcome in outcomes], axis=-1)


def outcomes_per_minute(counts: Shaped[np.ndarray, "*batch class outcome"],
                        task: Task) -> Float64[np.ndarray, "*batch class outcome"]:
    """How often each outcome occurs in a minute of audio: its share of all segments x segments per minute."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum(-1, keepdims=True)
    return counts / np.maximum(total, 1) * task.segments_per_minute


def cost_per_class(counts: Shaped[np.ndarray, "*batch class outcome"],
                   task: Task) -> Float64[np.ndarray, "*batch class"]:
    """Cost per minute of each class from counts of segments; the task's cost is their sum."""
    return (outcomes_per_minute(counts, task) * task.cost_matrix).sum(-1)


def bootstrap_interval(clip_counts: Int[np.ndarray, "clip class outcome"], task: Task, resamples: int = 2000,
                       seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the total cost, recordings drawn with replacement (Efron 1979).

    Segments of a recording are not independent, so whole recordings are drawn.
    """
    weights = _resamples(np.random.default_rng(seed), len(clip_counts), resamples)
    return _interval(_resampled_cost(clip_counts, weights, task))


def difference_interval(runs: Int[np.ndarray, "run clip class outcome"],
                        baseline: Int[np.ndarray, "baseline_run clip class outcome"], task: Task,
                        resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean total cost of some runs minus that of a baseline's runs.

    Recordings are drawn with replacement, the same ones for both; so are the runs of each, which differ by their seed.
    """
    rng = np.random.default_rng(seed)
    weights = _resamples(rng, runs.shape[1], resamples)

    def mean_cost(runs: np.ndarray) -> np.ndarray:
        costs = np.stack([_resampled_cost(counts, weights, task) for counts in runs], axis=1)
        drawn = rng.integers(len(runs), size=costs.shape)
        return np.take_along_axis(costs, drawn, axis=1).mean(1)

    return _interval(mean_cost(runs) - mean_cost(baseline))


def _resamples(rng: np.random.Generator, clips: int, resamples: int) -> Float64[np.ndarray, "resample clip"]:
    """How often each recording is drawn, which is all that matters: one matrix product makes all resamples."""
    return rng.multinomial(clips, np.full(clips, 1 / clips), size=resamples).astype(np.float64)


def _resampled_cost(clip_counts: Int[np.ndarray, "clip class outcome"], weights: Float64[np.ndarray, "resample clip"],
                    task: Task) -> Float64[np.ndarray, "resample"]:
    return cost_per_class(np.tensordot(weights, np.asarray(clip_counts, np.float64), axes=1), task).sum(-1)


def _interval(values: Float64[np.ndarray, "resample"]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Score:
    """Cost per minute, its 95 % interval over recordings, and per class the cost and outcomes per minute."""

    cost: float
    interval: tuple[float, float]
    classes: dict[str, dict[str, float]]

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def score(clip_counts: Int[np.ndarray, "clip class outcome"], task: Task) -> Score:
    """The score of counts of segments, one row per recording."""
    counts = np.asarray(clip_counts, np.int64).sum(0)
    costs, rates = cost_per_class(counts, task), outcomes_per_minute(counts, task)
    classes = {name: {"cost": float(cost), **dict(zip(OUTCOMES, map(float, row)))}
               for name, cost, row in zip(task.classes, costs, rates)}
    return Score(float(costs.sum()), bootstrap_interval(clip_counts, task), classes)


def detection_figures(counts: Shaped[np.ndarray, "class outcome"], task: Task) -> dict[str, dict[str, float | None]]:
    """Balanced accuracy, precision, recall and F1 of each class; None where a figure has no denominator."""
    figures = {}
    for name, (tp, fp, tn, fn) in zip(task.classes, np.asarray(counts, np.float64)):
        recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
        both = None if recall is None or specificity is None else (recall + specificity) / 2
        figures[name] = {"balanced_accuracy": both, "precision": _ratio(tp, tp + fp), "recall": recall,
                         "f1": _ratio(2 * tp, 2 * tp + fp + fn)}
    return figures


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None
