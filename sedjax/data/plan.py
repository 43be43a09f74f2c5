"""Which clips there are, and which of them form each batch: pure functions of lengths, seed and epoch."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from sedjax.core.config import DataConfig
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div
from sedjax.core.task import Task


@runtime_checkable
class Source(Protocol):
    """Recordings that can be read in any order."""

    task: Task
    lengths: np.ndarray  # frames of each recording

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Features {key: (T, D_k)} and votes (T, C) of a recording."""


@dataclasses.dataclass(frozen=True)
class ClipTable:
    """Pieces of recordings, whole where they are short enough; a clip's id is its place here.

    Attributes:
      recording, start, frames: (clips,) int32: index of the recording, first frame, number of frames.
    """

    recording: np.ndarray
    start: np.ndarray
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


def require_whole_segments(config: DataConfig, task: Task) -> None:
    """Raises UserError if max_frames, crop_frames or bucket_frames is not a multiple of a segment."""
    for name in ("max_frames", "crop_frames", "bucket_frames"):
        if getattr(config, name) % task.frames_per_segment:
            raise UserError(f"data.{name} = {getattr(config, name)} is not a multiple of a segment, which is "
                            f"{task.frames_per_segment} frames.")


def cut(lengths: np.ndarray, config: DataConfig, task: Task) -> ClipTable:
    """Cuts recordings that are longer than `max_frames` on the segment grid.

    Raises UserError as `require_whole_segments`.
    """
    require_whole_segments(config, task)
    max_frames = config.max_frames
    recording = np.repeat(np.arange(len(lengths)), ceil_div(lengths, max_frames))
    first = np.searchsorted(recording, recording)
    start = (np.arange(len(recording)) - first) * max_frames
    frames = np.minimum(lengths[recording] - start, max_frames)
    return ClipTable(recording.astype(np.int32), start.astype(np.int32), frames.astype(np.int32))


def training_clips(lengths: np.ndarray, config: DataConfig, task: Task, seed: int, epoch: int) -> ClipTable:
    """The clips of a training epoch: those of `cut`, or random crops if config.crop_frames says so.

    A recording has as many crops as it takes to cover it. They begin on the segment grid: one in each of as many equal
    parts of the places where one can begin, the last of which leaves less than a segment uncropped. Recording and id of
    a clip stay the same in all epochs.
    """
    require_whole_segments(config, task)
    size, segment = config.crop_frames, task.frames_per_segment
    if not size:
        return cut(lengths, config, task)
    clips = cut(lengths, dataclasses.replace(config, max_frames=size), task)
    length, crops = lengths[clips.recording], np.bincount(clips.recording)[clips.recording]
    places = ceil_div(np.maximum(length - size, 0), segment) + 1
    share = (clips.start // size + np.random.default_rng([seed, epoch, 1]).random(len(clips))) / crops
    start = np.minimum((share * places).astype(np.int32), places - 1) * segment
    return ClipTable(clips.recording, start.astype(np.int32), np.minimum(length - start, size).astype(np.int32))


def order(clips: ClipTable, batch_size: int, pool_batches: int, seed: int, epoch: int) -> np.ndarray:
    """The clips of each training batch of an epoch: (batches, batch_size), -1 where the last batch is not full.

    Every clip comes once. Clips are shuffled, clips of `pool_batches` batches are sorted by length together, and the
    batches are shuffled again.
    """
    rng = np.random.default_rng([seed, epoch])
    ids = rng.permutation(len(clips))
    pool = pool_batches * batch_size
    ids = np.concatenate([part[np.argsort(-clips.frames[part], kind="stable")]
                          for part in np.split(ids, range(pool, len(ids), pool))])
    return rng.permutation(_rows(ids, batch_size))


def training_plan(source: Source, config: DataConfig, seed: int, epoch: int) -> tuple[ClipTable, np.ndarray]:
    """The clips of a training epoch, and those of each batch: a pure function of (seed, epoch)."""
    clips = training_clips(source.lengths, config, source.task, seed, epoch)
    return clips, order(clips, config.batch_size, config.pool_batches, seed, epoch)


def in_length_order(clips: ClipTable, batch_size: int) -> np.ndarray:
    """The clips of each evaluation batch: (batches, batch_size), each clip once, longest first."""
    return _rows(np.argsort(-clips.frames, kind="stable"), batch_size)


def _rows(ids: np.ndarray, batch_size: int) -> np.ndarray:
    return np.pad(ids, (0, -len(ids) % batch_size), constant_values=-1).reshape(-1, batch_size)


def steps_per_epoch(clips: ClipTable, batch_size: int) -> int:
    return ceil_div(len(clips), batch_size)


def padded_frames(longest: int, config: DataConfig) -> int:
    """The length to which a batch is padded: one of few, so that few shapes are compiled."""
    return min(ceil_div(longest, config.bucket_frames) * config.bucket_frames, config.max_frames)


def evaluation_plan(source: Source, config: DataConfig, devices: int) -> tuple[ClipTable, np.ndarray]:
    """All clips of a source, and those of each batch, whose size the devices share evenly: each clip once."""
    clips = cut(source.lengths, config, source.task)
    return clips, in_length_order(clips, ceil_div(min(config.eval_batch_size, len(clips)), devices) * devices)
