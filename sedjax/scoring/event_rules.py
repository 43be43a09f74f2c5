"""Frame probabilities -> events: smoothing, one or two thresholds, gaps, shortest duration."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from sedjax.core import bounds, grid
from sedjax.core.errors import UserError, printable
from sedjax.core.task import Task

PerClass = Float[np.ndarray, "class"]
Value = float | Mapping[str, float]
DEFAULTS = {"median": 0.36, "merge_gap": 1.2, "min_duration": 0.36}  # seconds; see docs/prediction.md


@dataclasses.dataclass(frozen=True, eq=False)
class EventRules:
    """How frame probabilities become events; every rule has a value for each class.

    Attributes:
      thresholds: an event exceeds this probability in at least one frame.
      low_thresholds: an event extends over all adjoining frames above this probability (hysteresis); None for
        `thresholds`.
      median: length of the median filter that smooths the probabilities first, in seconds; 0 for none.
      merge_gap: events of a class that are at most this many seconds apart become one event.
      min_duration: shorter events are dropped, in seconds.
    """

    thresholds: PerClass
    low_thresholds: PerClass | None = None
    median: PerClass | None = None
    merge_gap: PerClass | None = None
    min_duration: PerClass | None = None

    def to_dict(self, task: Task) -> dict[str, dict[str, float]]:
        """The rules by name and class, with four decimals."""
        return {name: dict(zip(task.classes, np.round(values.astype(np.float64), 4).tolist()))
                for name, values in vars(self).items() if values is not None}

    def __post_init__(self):
        if self.low_thresholds is not None and (too_high := self.low_thresholds > self.thresholds).any():
            number = int(np.argmax(too_high))
            raise UserError(f"The low threshold {self.low_thresholds[number]:g} exceeds the threshold "
                            f"{self.thresholds[number]:g} of class {number}: lower it.")


class FrameCounts(NamedTuple):
    """The durations of EventRules in frames, for each class.

    Attributes:
      median: odd number of frames; 1 for no filter.
      merge_gap, min_duration: 0 for none.
    """

    median: list[int]
    merge_gap: list[int]
    min_duration: list[int]


def find_events(probabilities: Float[np.ndarray, "frame class"], rules: EventRules,
                task: Task) -> list[tuple[int, int, int]]:
    """The events in a recording as (class index, first frame, one past the last), sorted by class, then first frame."""
    smooth, counts = smoothed(probabilities, rules.median, task), frame_counts(rules, task)
    # In the precision of the probabilities, so that a threshold means the same wherever it comes from.
    thresholds = rules.thresholds.astype(smooth.dtype)
    low = thresholds if rules.low_thresholds is None else rules.low_thresholds.astype(smooth.dtype)
    above = smooth > thresholds
    events: list[tuple[int, int, int]] = []
    for label, first, end in grid.runs(smooth > low):
        if not above[first:end, label].any():
            continue
        if events and events[-1][0] == label and first - events[-1][2] <= counts.merge_gap[label]:
            events[-1] = (label, events[-1][1], end)
        else:
            events.append((label, first, end))
    return [(label, first, end) for label, first, end in events
            if end - first >= counts.min_duration[label]]


def smoothed(probabilities: Float[np.ndarray, "frame class"], median: PerClass | None,
             task: Task) -> Float[np.ndarray, "frame class"]:
    """Probabilities after a median filter of `median` seconds by class, rounded to an odd number of frames."""
    if median is None:
        return probabilities
    result = probabilities.copy()
    for label, frames in enumerate(_median_frames(median, task)):
        if frames > 1:
            result[:, label] = ndimage.median_filter(probabilities[:, label], frames, mode="nearest")
    return result


def default_rules(thresholds: PerClass) -> EventRules:
    """Rules by which the events of a detector with these thresholds are those that a person would draw."""
    return EventRules(thresholds, **{name: np.full(len(thresholds), value) for name, value in DEFAULTS.items()})


def changed(rules: EventRules, task: Task, **changes: Value | None) -> EventRules:
    """Rules with other values, each a number for all classes or {class: number}; None leaves a rule as it is.

    Args:
      rules: rules to change.
      task: task with the classes.
      changes: `threshold`, `low_threshold`, `median`, `merge_gap`, `min_duration`.

    Raises:
      UserError: a class is unknown, a value is impossible, or a low threshold exceeds the threshold of its class.
    """
    values = {}
    for name, value in changes.items():
        if value is None:
            continue
        field, highest = (f"{name}s", 1.0) if name in ("threshold", "low_threshold") else (name, np.inf)
        present = getattr(rules, field)
        if present is None:
            present = rules.thresholds if highest == 1 else np.zeros(len(task.classes))
        given = value if isinstance(value, Mapping) else dict.fromkeys(task.classes, value)
        for label, number in given.items():
            if label not in task.classes:
                raise UserError(f"{name}: unknown class {printable(label)!r}{bounds.unknown(label, task.classes)}")
            if not 0 <= number <= highest or number == np.inf:
                raise UserError(f"{name} = {number:g} is not {'a probability' if highest == 1 else 'a duration'}: "
                                f"choose a number {'from 0 to 1' if highest == 1 else 'of seconds, 0 or more'}.")
        # In the precision of probabilities, so that a threshold means the same wherever it comes from.
        values[field] = np.array([given.get(label, old) for label, old in zip(task.classes, present)],
                                 np.float32 if highest == 1 else np.float64)
    return dataclasses.replace(rules, **values)


def frame_counts(rules: EventRules, task: Task) -> FrameCounts:
    """The rules' durations in frames. A duration of 0.24 s is two frames of 0.12 s."""
    def frames(seconds: PerClass | None, rounding: Callable[[float], int]) -> list[int]:
        return [0 if seconds is None else rounding(round(float(seconds[label]) / task.frame_seconds, 6))
                for label in range(len(task.classes))]

    return FrameCounts(_median_frames(rules.median, task), frames(rules.merge_gap, math.floor),
                       frames(rules.min_duration, math.ceil))


def _median_frames(median: PerClass | None, task: Task) -> list[int]:
    if median is None:
        return [1] * len(task.classes)
    return [max(2 * round((seconds / task.frame_seconds - 1) / 2) + 1, 1) for seconds in median.tolist()]
