"""The field's metrics: segment-based and event-based F1, PSDS and average precision, with intervals over recordings.

Classes without an event in the ground truth have no value and are left out of averages.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypedDict

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.sparse import csgraph, csr_array

from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.scoring import score_metrics
from sedjax.scoring.events import Event, Events
from sedjax.scoring.frame_scores import FrameScores
from sedjax.scoring.metrics import resampled

COST, FROM_EVENTS, FROM_SCORES = "cost", ("segment_f1", "event_f1"), ("psds", "map")
METRICS = (COST, *FROM_EVENTS, *FROM_SCORES)
SEGMENT_SECONDS = 1.0  # the parameters of DCASE's task 4
COLLAR_SECONDS = 0.2
COLLAR_SHARE = 0.2  # of the length: the offset may differ by that much, if it is more than the collar
DECIMALS = 6  # of seconds, as in sed_scores_eval; smaller differences are rounding errors
RESAMPLES = 2000
PSDS_RESAMPLES = 200  # each takes some 10 ms for 120 recordings


class Figure(TypedDict):
    """A value and its 95 % interval over recordings; both are None if the ground truth has no event."""

    value: float | None
    interval: tuple[float, float] | None


class Metric(TypedDict):
    """The figures of all classes together, by kind of average, and of each class."""

    overall: dict[str, Figure]
    classes: dict[str, Figure]


def require(names: Collection[str]) -> None:
    """Raises UserError if a metric is unknown, or needs a package that is not installed."""
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"--metrics takes any of {', '.join(METRICS)}, not {unknown[0]!r}.")
    if needing := [name for name in names if name in FROM_SCORES]:
        score_metrics.require_package(needing[0])


def compute(names: Collection[str], truth: Events, task: Task, predicted: Events | None = None,
            scores: Mapping[str, FrameScores] | None = None) -> dict[str, Metric]:
    """The given metrics of METRICS except the cost, by name; psds gives psds1 and psds2.

    Args:
      names: metrics.
      truth: true events of every recording.
      task: task with the classes.
      predicted: predicted events, for FROM_EVENTS; a recording that is missing has none.
      scores: frame scores of the recordings in `truth`, for FROM_SCORES.

    Raises:
      UserError: there is no true event, or one begins after the frame scores of its recording.
    """
    if not any(truth.values()):
        raise UserError("The ground truth has no event, so only the cost can be computed.")
    results = {}
    for name, outcomes in (("segment_f1", segment_outcomes), ("event_f1", event_outcomes)):
        if name in names:
            results[name] = f1(recording_counts(predicted, truth, task, outcomes), task)
    if "psds" in names:
        for name, scenario in score_metrics.PSDS.items():
            values, resample = score_metrics.psds(scores, truth, task, scenario)
            results[name] = _metric(("overall",), task, values, resample, len(truth), PSDS_RESAMPLES)
    if "map" in names:
        values, resample = score_metrics.average_precision(scores, truth, task, SEGMENT_SECONDS)
        results["map"] = _metric(("macro",), task, values, resample, len(truth), RESAMPLES)
    return results


def recording_counts(predicted: Events, truth: Events, task: Task,
                     outcomes: Callable) -> Int[np.ndarray, "recording class 3"]:
    """True positives, false positives and false negatives of each class in each recording of `truth`.

    Args:
      predicted, truth: events.
      task: task with the classes.
      outcomes: segment_outcomes or event_outcomes.
    """
    number = {label: i for i, label in enumerate(task.classes)}
    counts = np.zeros((len(truth), len(task.classes), 3), np.int64)
    for recording, filename in enumerate(truth):
        sides = [_by_class(events.get(filename, ())) for events in (predicted, truth)]
        for label in sides[0] | sides[1]:
            counts[recording, number[label]] = outcomes(*(side.get(label, np.zeros((0, 2))) for side in sides))
    return counts


def _by_class(events: Iterable[Event]) -> dict[str, np.ndarray]:
    """Onsets and offsets (event, 2) of each class, by onset."""
    times: dict[str, list[tuple[float, float]]] = {}
    for onset, offset, label, *_ in events:
        times.setdefault(label, []).append((onset, offset))
    return {label: np.array(sorted(rows), np.float64) for label, rows in times.items()}


def segment_outcomes(predicted: Float[np.ndarray, "predicted 2"],
                     actual: Float[np.ndarray, "actual 2"]) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of one class among the segments of a recording.

    A segment is active if an event overlaps it (Mesaros et al. 2016, as in sed_eval).
    """
    edges = [np.stack([np.floor(np.round(times[:, 0] / SEGMENT_SECONDS, DECIMALS)),
                       np.ceil(np.round(times[:, 1] / SEGMENT_SECONDS, DECIMALS))], axis=1).astype(np.int64)
             for times in (predicted, actual)]
    active = np.zeros((2, max(int(side.max(initial=0)) for side in edges)), bool)
    for row, side in zip(active, edges):
        for first, end in side:
            row[first:end] = True
    true_positives = int((active[0] & active[1]).sum())
    return true_positives, int(active[0].sum()) - true_positives, int(active[1].sum()) - true_positives


def event_outcomes(predicted: Float[np.ndarray, "predicted 2"],
                   actual: Float[np.ndarray, "actual 2"]) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of one class among the events of a recording, by onset.

    Events match if their onsets differ by at most the collar, and their offsets by at most the collar or a share of the
    true event's length; the largest matching counts (Mesaros et al. 2016, as in sed_eval).
    """
    onsets = actual[:, 0]
    first = np.searchsorted(onsets, predicted[:, 0] - COLLAR_SECONDS - 10.0**-DECIMALS)
    near = np.searchsorted(onsets, predicted[:, 0] + COLLAR_SECONDS + 10.0**-DECIMALS) - first
    rows = np.repeat(np.arange(len(predicted)), near)
    columns = np.repeat(first - np.cumsum(near) + near, near) + np.arange(len(rows))
    distance = np.abs(predicted[rows] - actual[columns])
    allowed = np.maximum(COLLAR_SECONDS, COLLAR_SHARE * (actual[columns, 1] - actual[columns, 0]))
    hits = (np.round(distance - np.stack([np.full_like(allowed, COLLAR_SECONDS), allowed], axis=1), DECIMALS) <= 0)
    hits = hits.all(axis=1)
    graph = csr_array((np.ones(hits.sum(), np.int8), (rows[hits], columns[hits])),
                      (len(predicted), len(actual)))
    true_positives = int((csgraph.maximum_bipartite_matching(graph) >= 0).sum()) if hits.any() else 0
    return true_positives, len(predicted) - true_positives, len(actual) - true_positives


def f1(counts: Int[np.ndarray, "recording class 3"], task: Task) -> Metric:
    """F1 over all recordings: of each class, their mean (macro), and of the summed counts (micro)."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)

    def resample(weights: Float64[np.ndarray, "recording"]) -> Float64[np.ndarray, "figure"]:
        weighted = (weights @ flat).reshape(counts.shape[1:])
        of_classes = _f1(weighted)
        return np.array([_mean(of_classes), _f1(weighted.sum(0)), *of_classes])

    return _metric(("macro", "micro"), task, resample(np.ones(len(counts))), resample, len(counts), RESAMPLES)


def _f1(counts: Float64[np.ndarray, "*batch 3"]) -> np.ndarray:
    true_positives, false_positives, false_negatives = np.moveaxis(counts, -1, 0)
    actual = true_positives + false_negatives
    score = 2 * true_positives / np.maximum(true_positives + false_positives + actual, 1)
    return np.where(actual > 0, score, np.nan)


def _mean(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else np.nan


def _metric(overall: tuple[str, ...], task: Task, values: np.ndarray, resample: Callable, recordings: int,
            resamples: int) -> Metric:
    """The figures with percentile intervals of a bootstrap over recordings (Efron 1979).

    Args:
      overall: names of the first values; the others are those of the classes.
      task: task with the classes.
      values: the values, NaN where undefined.
      resample: function of the number of times that each recording occurs, which gives the values.
      recordings: number of recordings.
      resamples: number of resamples.
    """
    drawn = np.array([resample(weights) for block in resampled(recordings, resamples) for weights in block])
    figures = [Figure(value=None, interval=None) if np.isnan(value) else
               Figure(value=float(value), interval=tuple(map(float, np.nanpercentile(column, [2.5, 97.5]))))
               for value, column in zip(values, drawn.T)]
    return Metric(overall=dict(zip(overall, figures)), classes=dict(zip(task.classes, figures[len(overall):])))


def format_metrics(metrics: Mapping[str, Metric]) -> str:
    """A table of all figures with their intervals, one column per metric."""
    averages = dict.fromkeys(name for metric in metrics.values() for name in metric["overall"])
    rows = {label: [metric["classes"][label] for metric in metrics.values()]
            for label in next(iter(metrics.values()))["classes"]}
    rows |= {f"({name})": [metric["overall"].get(name) for metric in metrics.values()] for name in averages}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name:>24}" for name in metrics)]
    for label, row in rows.items():
        lines.append(f"{label:{width}}" + "".join(f"{_cell(figure):>24}" for figure in row))
    return "\n".join([*lines, "Brackets: 95 % intervals over recordings."])


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    if figure["value"] is None:
        return "-"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"
