"""Frame probabilities -> events: smoothing, one or two thresholds, gaps, shortest duration."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from sedjax.core import bounds, grid
from sedjax.core.errors import UserError
from sedjax.core.task import Task

PerClass = Float[np.ndarray, "class"]


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


def per_class(text: str, task: Task, otherwise: PerClass | float, flag: str,
              allowed: Callable[[float], bool] = lambda value: value >= 0, range_text: str = "0 or more") -> PerClass:
    """A value for every class from "0.4", or from "Siren=0.3,Dog Bark=0.6" with `otherwise` for the other classes.

    Raises UserError that names `flag` for an unknown class or an impossible value.
    """
    values = np.broadcast_to(np.asarray(otherwise, np.float64), len(task.classes)).copy()
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        if equals and name.strip() not in task.classes:
            raise UserError(f"--{flag}: unknown class {name.strip()!r}{bounds.unknown(name.strip(), task.classes)}")
        try:
            value = float(number)
            if not allowed(value):
                raise ValueError
        except ValueError:
            raise UserError(f"--{flag}={text}: {number.strip()!r} is not a number of {range_text}; write one number, "
                            f"or CLASS=NUMBER,CLASS=NUMBER.") from None
        values[task.classes.index(name.strip()) if equals else slice(None)] = value
    return values


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
