"""Recordings as a stream of clips: pieces of features in their order, of which memory holds a few at a time."""

import dataclasses
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Some frames of a recording, after those of the clip before.

    Attributes:
      recording: its number.
      features: (t, D) by name.
      seconds: length of the recording if this is its last clip, else None.
      kept: features of the whole recording that no model needs, with its last clip.
    """

    recording: int
    features: dict[str, np.ndarray]
    seconds: float | None = None
    kept: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    @property
    def is_last(self) -> bool:
        return self.seconds is not None


def recut(clips: Iterable[Clip], frames: int) -> Iterator[Clip]:
    """The same frames in clips of `frames` each, the last of a recording shorter if need be.

    What is left of a recording whose last clip never came is dropped.
    """
    recording, held = None, {}
    for clip in clips:
        if clip.recording != recording:
            recording, held = clip.recording, {key: value[:0] for key, value in clip.features.items()}
        held = {key: np.concatenate([held[key], value]) for key, value in clip.features.items()}
        start, length = 0, len(next(iter(held.values())))
        while length - start > frames or (length - start == frames and not clip.is_last):
            yield Clip(recording, {key: value[start : start + frames] for key, value in held.items()})
            start += frames
        held = {key: value[start:] for key, value in held.items()}
        if clip.is_last:
            yield dataclasses.replace(clip, features=held)


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
