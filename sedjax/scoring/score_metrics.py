"""PSDS and average precision from frame scores, by sed_scores_eval (Ebbers et al. 2022), from the extra `metrics`.

The package computes what each recording contributes at each threshold, and from that the values. A bootstrap needs the
same sums with each recording counted a number of times, which the package does not offer: what it calls bootstrap
leaves out a fifth of the recordings, which gives intervals about half as wide.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.scoring.events import Events
from sedjax.scoring.frame_scores import FrameScores

SECONDS_PER_HOUR = 3600
MOST_FALSE_POSITIVES = 100.0  # per hour; the PSD ROC ends there


class Scenario(NamedTuple):
    """Parameters of PSDS (Bilen et al. 2020): tolerance criteria, and weights of cross triggers and instability."""

    dtc: float
    gtc: float
    cttc: float | None
    alpha_ct: float
    alpha_st: float


# The scenarios of DCASE's task 4: reaction time, and confusion of classes.
PSDS = {"psds1": Scenario(0.7, 0.7, None, 0.0, 1.0), "psds2": Scenario(0.1, 0.1, 0.3, 0.5, 1.0)}

Resample = Callable[[Float64[np.ndarray, "recording"]], Float64[np.ndarray, "figure"]]


def require_package(name: str) -> None:
    """Raises UserError unless sed_scores_eval, which computes the metric `name`, can be imported."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what it depends on, which uses the old pkg_resources
            import sed_scores_eval  # noqa: F401
    except ImportError as error:
        raise UserError(f"The metric {name!r} needs the package sed_scores_eval, which cannot be imported "
                        f"({error}): pip install sed_scores_eval 'setuptools<82'.") from error


class _Inputs(NamedTuple):
    """What sed_scores_eval takes, with the classes that have events, called by their numbers.

    Their names may contain what the package uses itself, such as a backslash or the word mean.
    """

    labels: Int[np.ndarray, "label"]
    names: list[str]
    scores: dict
    truth: dict[str, list[tuple[float, float, str]]]
    seconds: dict[str, float]


def _prepare(scores: Mapping[str, FrameScores], truth: Events, task: Task) -> _Inputs:
    import pandas

    numbers = {label: str(i) for i, label in enumerate(task.classes)}
    labels = np.array(sorted({int(numbers[event.label]) for events in truth.values() for event in events}))
    names, frames, seconds = list(map(str, labels)), {}, {}
    for filename, events in truth.items():
        times, values = scores[filename]
        for event in events:
            if event.onset >= times[-1]:
                raise UserError(f"An event of {filename!r} begins at {event.onset:g} s, but its frame scores end at "
                                f"{times[-1]:g} s.")
        # As float32: the package cannot use the read-only float64 arrays that a data frame of pandas 3 hands out.
        frames[filename] = pandas.DataFrame({"onset": times[:-1], "offset": times[1:],
                                             **{str(i): values[:, i] for i in labels}})
        seconds[filename] = float(times[-1])
    events = {filename: [(onset, offset, numbers[label]) for onset, offset, label in rows]
              for filename, rows in truth.items()}
    return _Inputs(labels, names, frames, events, seconds)


def psds(scores: Mapping[str, FrameScores], truth: Events, task: Task,
         scenario: Scenario) -> tuple[Float64[np.ndarray, "figure"], Resample]:
    """PSDS of all classes and of each class, NaN for those without events; and the same of a resample.

    Raises UserError if an event begins after the frame scores of its recording.
    """
    from sed_scores_eval import intersection_based

    inputs = _prepare(scores, truth, task)
    if len(inputs.labels) == 1:  # no other class can be triggered
        scenario = scenario._replace(cttc=None, alpha_ct=0.0)
    criteria = {"dtc_threshold": scenario.dtc, "gtc_threshold": scenario.gtc, "cttc_threshold": scenario.cttc}
    deltas = intersection_based.intermediate_statistics_deltas(inputs.scores, inputs.truth, **criteria)
    overall, of_classes, *_ = intersection_based.psds(
        None, inputs.truth, inputs.seconds, deltas=deltas, **criteria, alpha_ct=scenario.alpha_ct,
        alpha_st=scenario.alpha_st, max_efpr=MOST_FALSE_POSITIVES)
    summed = [_summed(deltas, name, ["tps", "fps", *(f"cts\\{other}" for other in inputs.names
                                                      if other != name and scenario.cttc is not None)])
              for name in inputs.names]
    events, durations = np.zeros((2, len(deltas), len(inputs.names)))
    for recording, filename in enumerate(deltas):
        for onset, offset, name in inputs.truth[filename]:
            events[recording, inputs.names.index(name)] += 1
            durations[recording, inputs.names.index(name)] += offset - onset
    seconds = np.array([inputs.seconds[filename] for filename in deltas])

    def resample(weights: Float64[np.ndarray, "recording"]) -> Float64[np.ndarray, "figure"]:
        of_class, class_seconds, hours = weights @ events, weights @ durations, weights @ seconds / SECONDS_PER_HOUR
        curves, areas = [], np.full(len(of_class), np.nan)
        for i in np.flatnonzero(of_class):
            true_positives, false_positives, *cross_triggers = summed[i](weights)
            rate = false_positives / hours
            others = np.flatnonzero(np.delete(of_class, i))
            if cross_triggers and len(others):
                rates = np.stack(cross_triggers)[others] / np.delete(class_seconds, i)[others, None]
                rate = rate + scenario.alpha_ct * rates.mean(0) * SECONDS_PER_HOUR
            curves.append(_roc(true_positives / of_class[i], rate))
            areas[i] = _area(*curves[-1])
        if not curves:
            return np.full(1 + len(task.classes), np.nan)
        rates = np.unique(np.concatenate([rate for rate, _ in curves]))
        ratios = np.stack([ratio[np.searchsorted(rate, rates, side="right") - 1] for rate, ratio in curves])
        effective = np.maximum(ratios.mean(0) - scenario.alpha_st * ratios.std(0), 0)
        return _of_all_classes(_area(rates, effective), areas, inputs, task)

    return _of_all_classes(overall, [of_classes[name] for name in inputs.names], inputs, task), resample


def _summed(deltas: dict, name: str, keys: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Function of recordings' weights: the statistics `keys` of a class (key, threshold), highest threshold first."""
    parts = [of_recording[name] for of_recording in deltas.values()]
    thresholds = np.concatenate([part[0] for part in parts])
    recordings = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    changes = np.concatenate([np.stack([part[1][key] for key in keys]) for part in parts], axis=1).astype(np.float64)
    order = np.argsort(-thresholds, kind="stable")
    ends = np.flatnonzero(np.diff(thresholds[order], append=np.nan) != 0)  # the last of equal thresholds
    recordings, changes = recordings[order], changes[:, order]
    return lambda weights: np.cumsum(weights[recordings] * changes, axis=1)[:, ends]


def _roc(ratio: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest true positive ratio at each false positive rate where it rises, from (0, 0)."""
    order = np.argsort(rate, kind="stable")
    rate, ratio = np.append(0.0, rate[order]), np.append(0.0, np.maximum.accumulate(ratio[order]))
    kept = (np.diff(ratio, prepend=-1.0) > 0) & (rate <= MOST_FALSE_POSITIVES)
    return rate[kept], ratio[kept]


def _area(rate: np.ndarray, ratio: np.ndarray) -> float:
    """The area under a staircase from 0 to MOST_FALSE_POSITIVES, as a share of the largest."""
    return float((ratio * np.diff(rate, append=MOST_FALSE_POSITIVES)).sum() / MOST_FALSE_POSITIVES)


def _of_all_classes(overall: float, of_classes: Sequence[float] | np.ndarray, inputs: _Inputs,
                    task: Task) -> np.ndarray:
    """The overall value, then that of each class of the task: NaN for one without events."""
    values = np.full(1 + len(task.classes), np.nan)
    values[0], values[1 + inputs.labels] = overall, of_classes
    return values


def average_precision(scores: Mapping[str, FrameScores], truth: Events, task: Task,
                      segment_seconds: float) -> tuple[Float64[np.ndarray, "figure"], Resample]:
    """Mean and average precision of each class over segments, NaN without events; and the same of a resample.

    The score of a segment is its highest frame score; it is positive if an event overlaps it.

    Raises UserError if an event begins after the frame scores of its recording.
    """
    from sed_scores_eval import segment_based
    from sed_scores_eval.segment_based.intermediate_statistics import intermediate_statistics_deltas

    inputs = _prepare(scores, truth, task)
    deltas = intermediate_statistics_deltas(inputs.scores, inputs.truth, inputs.seconds, segment_length=segment_seconds)
    precisions, _ = segment_based.average_precision(None, inputs.truth, inputs.seconds, deltas=deltas,
                                                    segment_length=segment_seconds)
    summed = [_summed(deltas, name, ["tps", "fps"]) for name in inputs.names]

    def resample(weights: Float64[np.ndarray, "recording"]) -> Float64[np.ndarray, "figure"]:
        areas = np.full(len(summed), np.nan)
        for i, of_class in enumerate(summed):
            true_positives, false_positives = of_class(weights)
            if true_positives[-1]:
                precision = true_positives / np.maximum(true_positives + false_positives, 1)
                areas[i] = (precision * np.diff(true_positives, prepend=0)).sum() / true_positives[-1]
        mean = np.nanmean(areas) if np.isfinite(areas).any() else np.nan
        return _of_all_classes(mean, areas, inputs, task)

    return _of_all_classes(precisions["mean"], [precisions[name] for name in inputs.names], inputs, task), resample
