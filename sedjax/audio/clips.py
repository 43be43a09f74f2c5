"""Recordings as a stream of clips: pieces of features in their order, of which memory holds a few at a time."""

import dataclasses
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from sedjax.core.errors import UserError

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Some frames of a recording, after those of the clip before.

    Attributes:
      number: of the recording, in the order in which they are read.
      recording: its name.
      features: (t, D) by name.
      seconds: length of the recording if this is its last clip, else None.
      extras: further features of the whole recording, with its last clip.
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
    """In place of the last clip of a recording that cannot be read, of which clips may have come before.

    Attributes:
      number, recording: as of Clip.
      error: says why.
    """

    number: int
    recording: str
    error: UserError


def recut(stream: Iterable[Clip | Unreadable], frames: int | None = None) -> Iterator[Clip | Unreadable]:
    """The same frames in clips of `frames` each, the last of a recording shorter if need be; None: whole recordings."""
    number, parts, length = None, [], 0
    for clip in stream:
        if isinstance(clip, Unreadable):
            yield clip
            continue
        if clip.number != number:  # clips of a recording that turned out to be unreadable are dropped
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
    """Nobody waits any more for what a thread makes."""


_thread = threading.local()  # `abandoned`: an event, in the threads of `ahead`


def require_wanted() -> None:
    """Raises Abandoned in a thread of `ahead` that nobody waits for any more; what takes long calls it often."""
    abandoned = getattr(_thread, "abandoned", None)
    if abandoned and abandoned.is_set():
        raise Abandoned


def ahead(items: Iterable[Item], count: int = 32) -> Iterator[Item]:
    """The same items, of which a thread makes `count` before they are asked for; `close` ends the thread."""
    end, items, abandoned = object(), iter(items), threading.Event()
    thread = ThreadPoolExecutor(1, initializer=setattr, initargs=(_thread, "abandoned", abandoned))
    waiting = deque(thread.submit(next, items, end) for _ in range(count))
    try:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item
    finally:
        abandoned.set()
        thread.shutdown(cancel_futures=True)
