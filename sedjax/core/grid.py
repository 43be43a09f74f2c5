"""All conversions between seconds, tokens, frames, segments and events."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from sedjax.core.numbers import ceil_div
from sedjax.core.task import Task


def num_segments(num_frames: int, task: Task) -> int:
    """Number of segments that cover `num_frames` frames; the last may be shorter."""
    return ceil_div(num_frames, task.frames_per_segment)


def num_frames(seconds: float, task: Task) -> int:
    """Number of frames that cover a recording of `seconds`; the last may be shorter."""
    # A recording of 1.2 s is 10 frames although 1.2 / 0.12 is a little more than 10 in floating point.
    return int(np.ceil(np.round(seconds / task.frame_seconds, 6)))


def by_segment(x, task: Task):
    """Groups frames by segment: (..., T, C) -> (..., T / frames_per_segment, frames_per_segment, C).

    T must be a multiple of `frames_per_segment`; numpy and JAX arrays both work.
    """
    *batch, frames, classes = x.shape
    return x.reshape(*batch, frames // task.frames_per_segment, task.frames_per_segment, classes)


def pad_to_segments(x: np.ndarray, task: Task, fill=0) -> np.ndarray:
    """Pads (T, C) with `fill` at the end, up to whole segments."""
    missing = num_segments(len(x), task) * task.frames_per_segment - len(x)
    return np.pad(x, [(0, missing), (0, 0)], constant_values=fill)


def any_frame(x, task: Task):
    """Whether any frame of each segment is active: (..., T, C) bool -> (..., S, C) bool, for whole segments."""
    return by_segment(x, task).any(-2)


def stitch(windows: Iterable[Float[np.ndarray, "_ width"]], hop: int) -> Iterator[Float[np.ndarray, "_ width"]]:
    """Joins the rows of overlapping windows into those of the recording; window k starts at row k x `hop`.

    Overlapping rows are averaged. Yields `hop` rows at a time, fewer at the end, so that a recording of any length fits
    into memory.
    """
    total = count = None
    for window in windows:
        if total is None or count is None:
            total, count = np.zeros((0, window.shape[1]), np.float32), np.zeros((0, 1), np.float32)
        missing = max(len(window) - len(total), 0)
        total, count = np.pad(total, [(0, missing), (0, 0)]), np.pad(count, [(0, missing), (0, 0)])
        total[: len(window)] += window
        count[: len(window)] += 1
        yield total[:hop] / count[:hop]
        total, count = total[hop:], count[hop:]
    if total is not None and count is not None and len(total):
        yield total / count


def mean_by_group(x: Float[np.ndarray, "row width"], size: int) -> Float[np.ndarray, "_ width"]:
    """Mean of each group of `size` rows; the last group may be smaller."""
    starts = np.arange(0, len(x), size)
    sizes = np.minimum(len(x) - starts, size)
    return (np.add.reduceat(x, starts) / sizes[:, None]).astype(x.dtype)


def onset_text(segment: int, task: Task) -> str:
    """The onset of a segment as submission files write it: '0.0', '1.2', ... (seconds)."""
    seconds = segment * task.segment_seconds
    return f"{seconds:.1f}" if abs(round(seconds, 1) - seconds) < 1e-9 else f"{seconds:.4f}".rstrip("0")


def seconds_text(seconds: float) -> str:
    """Seconds with three decimals, or as many as it takes to be exact to a sample."""
    integer, _, digits = f"{seconds:.7f}".partition(".")
    return f"{integer}.{digits.rstrip('0'):0<3}"


def onset_segment(seconds: float, task: Task) -> int | None:
    """The segment that starts at `seconds`, or None if none starts there (to 1 % of a segment)."""
    position = seconds / task.segment_seconds
    if not np.isfinite(position):
        return None
    segment = round(position)
    return segment if segment >= 0 and abs(position - segment) < 0.01 else None


def runs(active: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of active units (N, C) bool as (class index, first, one past the last), sorted by class, then first."""
    edges = np.diff(np.pad(active.astype(np.int8), [(1, 1), (0, 0)]), axis=0)
    intervals = []
    for label in range(active.shape[1]):
        firsts, ends = np.flatnonzero(edges[:, label] == 1), np.flatnonzero(edges[:, label] == -1)
        intervals += [(label, int(first), int(end)) for first, end in zip(firsts, ends)]
    return intervals


def event_frames(onset: float, offset: float, total_frames: int, task: Task) -> slice:
    """The frames that overlap an event from `onset` to `offset` seconds."""
    first = int(np.floor(np.round(onset / task.frame_seconds, 6)))
    # A negative stop would count from the end of the recording.
    return slice(max(first, 0), max(min(num_frames(offset, task), total_frames), 0))
