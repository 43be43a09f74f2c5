"""The output of a model for one recording: probabilities, active segments, events."""

import dataclasses
import functools
import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.scoring.event_rules import EventRules, find_events

if TYPE_CHECKING:
    import pandas


MOST_CLASSES = 40  # that are shown whether or not they occur


class Event(NamedTuple):
    """A sound event.

    Attributes:
      onset, offset: seconds from the start of the recording.
      label: class name.
      score: highest frame probability between onset and offset.
    """

    onset: float
    offset: float
    label: str
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """The output of a model for one recording; iterates over its events.

    Attributes:
      recording: file name as given; empty for an array.
      task: task with the classes and the lengths of frames and segments.
      rules: rules for events; a segment is active above the threshold of the class.
      seconds: length of the recording.
      frames: (T, C) probability of each class in each frame.
      segments: (S, C) pooled probability of each class in each segment.
      features: (T, D) requested features of the recording, by name.
    """

    recording: str
    task: Task
    rules: EventRules
    seconds: float
    frames: Float[np.ndarray, "frame class"]
    segments: Float[np.ndarray, "segment class"]
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Detection({self.recording!r}, {self.seconds:g} s, {len(self.events)} events)"

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> Event:
        return self.events[index]

    @property
    def active(self) -> Bool[np.ndarray, "segment class"]:
        """(S, C) whether the segment probability is above the threshold of the class."""
        return self.segments > self.rules.thresholds[None]

    @functools.cached_property
    def events(self) -> tuple[Event, ...]:
        """The events by `rules`, by onset, then in class order.

        No event ends after the recording, whose last frame may be incomplete.
        """
        def seconds(frame: int) -> float:
            return round(min(frame * self.task.frame_seconds, self.seconds), 7)  # a sample is 0.0000625 s

        events = [Event(seconds(first), seconds(end), self.task.classes[label],
                        float(self.frames[first:end, label].max()))
                  for label, first, end in find_events(self.frames, self.rules, self.task)]
        return tuple(sorted(events, key=lambda event: event.onset))

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per event, with the columns of Event. Raises UserError if pandas is not installed."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise UserError("to_dataframe needs pandas, which is not installed: pip install pandas.") from error

        return pandas.DataFrame(self.events, columns=list(Event._fields))

    def _repr_html_(self) -> str:
        """What a notebook shows: the events on a time axis, one row per class; of many classes, those with events."""
        detected = {event.label for event in self}
        names = [name for name in self.task.classes if name in detected or len(self.task.classes) <= MOST_CLASSES]
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{self._bar(name)}</td></tr>" for name in names)
        return f"<p>{html.escape(repr(self))}</p><table>{rows}</table>"

    def _bar(self, label: str) -> str:
        width = 600
        scale = width / max(self.seconds, self.task.frame_seconds)
        spans = "".join(f'<rect x="{event.onset * scale:.1f}" height="12" fill="#D55E00" '
                        f'width="{max((event.offset - event.onset) * scale, 1):.1f}"><title>{event.onset:.2f} to '
                        f'{event.offset:.2f} s, {event.score:.2f}</title></rect>'
                        for event in self if event.label == label)
        return f'<svg width="{width}" height="12" style="background:#EEE">{spans}</svg>'
