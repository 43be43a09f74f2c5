"""What a model says of one recording: probabilities, active segments, events."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sedjax.core import grid
from sedjax.core.task import Task


class Event(NamedTuple):
    """A sound and when it is there.

    Attributes:
      onset, offset: seconds from the beginning of the recording.
      label: the class.
      score: the highest probability in between.
    """

    onset: float
    offset: float
    label: str
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """What a model says of one recording; iterates over its events.

    Attributes:
      recording: the file, as it was named; empty for an array.
      task: names the classes, and says how long frames and segments are.
      thresholds: (C,) above which a probability counts.
      seconds: length of the recording.
      frames: (T, C) probability of each class in each frame.
      segments: (S, C) pooled probability of each class in each segment.
      features: (T, D) of the recording by name, those that were asked for.
    """

    recording: str
    task: Task
    thresholds: Float[np.ndarray, "class"]
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
        """(S, C) which segments are above their class's threshold."""
        return self.segments > self.thresholds[None]

    @functools.cached_property
    def events(self) -> tuple[Event, ...]:
        """Runs of frames above their class's threshold in active segments, by onset, then in the order of classes.

        So each lies in active segments, and where a segment's probability is the highest of its frames, each active
        segment holds one. The last ends with the recording, whose last frame may be cut short.
        """
        in_active = self.active.repeat(self.task.frames_per_segment, axis=0)[: len(self.frames)]
        runs = grid.runs((self.frames > self.thresholds[None]) & in_active)

        def seconds(frame: int) -> float:
            return round(min(frame * self.task.frame_seconds, self.seconds), 7)  # a sample is 0.0000625 s

        found = [Event(seconds(first), seconds(end), self.task.classes[label],
                       float(self.frames[first:end, label].max())) for label, first, end in runs]
        return tuple(sorted(found, key=lambda event: event.onset))

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)
