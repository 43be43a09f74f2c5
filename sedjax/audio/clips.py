"""Recordings as a stream of clips in order, a few in memory at a time."""

import dataclasses
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from sedjax.core.errors import UserError

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Consecutive frames of a recording; they follow those of the previous clip.

    Attributes:
      number: index of the recording, in reading order.
      recording: name of the recording.
      features: arrays (t, D) by name.
      seconds: length of the recording in its last clip, else None.
      extras: additional features of the whole recording, set on its last clip only.
    """

    number: int
    recording: str
    features: dict[str, np.ndarray]
    seconds: float | None = None
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    @property
    def is_last(self) -> bool:
        return self.seconds is not None


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Takes the place of the last clip of an unreadable recording; earlier clips may have been yielded.

    Attributes:
      number, recording: as in Clip.
      error: reason why the recording cannot be read.
    """

    number: int
    recording: str
    error: UserError


def recut(stream: Iterable[Clip | Unreadable], frames: int | None = None) -> Generator[Clip | Unreadable]:
    """Regroups a stream into clips of `frames` frames, fewer at the end of a recording; None: whole recordings."""
    number, parts, length = -1, [], 0
    for clip in stream:
        if isinstance(clip, Unreadable):
            yield clip
            continue
        if clip.number != number:  # drops the clips of a recording that proved unreadable
            number, parts, length = clip.number, [], 0
        parts.append(clip.features)
        length += len(clip)
        if not clip.is_last and (frames is None or length <= frames):
            continue
        features = parts[0] if len(parts) == 1 else {
            key: np.concatenate([part[key] for part in parts]) for key in clip.features}
        start = 0
        while frames is not None and length - start > frames:
            yield Clip(number, clip.recording, {key: value[start : start + frames] for key, value in features.items()})
            start += frames
        parts, length = [{key: value[start:] for key, value in features.items()}], length - start
        if clip.is_last:
            yield dataclasses.replace(clip, features=parts[0])


class Abandoned(Exception):
    """Raised in a thread whose results are no longer needed."""


_thread = threading.local()  # `abandoned`: an event, set in the threads of `ahead`


def require_wanted() -> None:
    """Raises Abandoned in a thread of `ahead` whose results are no longer needed; long computations call it often."""
    abandoned = getattr(_thread, "abandoned", None)
    if abandoned and abandoned.is_set():
        raise Abandoned


def ahead(items: Iterable[Item], count: int = 32) -> Generator[Item]:
    """Yields the same items, prefetching up to `count` of them in a thread; `close` ends the thread."""
    end: Any = object()
    items, abandoned = iter(items), threading.Event()
    thread = ThreadPoolExecutor(1, initializer=setattr, initargs=(_thread, "abandoned", abandoned))
    waiting = deque(thread.submit(next, items, end) for _ in range(count))
    try:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item
    finally:
        abandoned.set()
        thread.shutdown(cancel_futures=True)
