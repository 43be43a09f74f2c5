"""Cuts recordings into clips and assigns clips to batches: pure functions of lengths, seed and epoch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from sedjax.core.config import DataConfig
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div
from sedjax.core.task import Task


@runtime_checkable
class Source(Protocol):
    """Recordings with random access."""

    task: Task
    lengths: np.ndarray  # frames of each recording

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reads the features {key: (T, D_k)} and votes (T, C) of a recording."""


@dataclasses.dataclass(frozen=True)
class ClipTable:
    """The clips of all recordings: whole recordings or pieces of long ones; a clip's id is its index in the table.

    Attributes:
      recording, start, frames: recording index, first frame and number of frames of each clip, (clips,) int32.
    """

    recording: np.ndarray
    start: np.ndarray
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


def require_whole_segments(config: DataConfig, task: Task) -> None:
    """Raises UserError if max_frames, crop_frames or bucket_frames is not a whole number of segments."""
    for name in ("max_frames", "crop_frames", "bucket_frames"):
        if getattr(config, name) % task.frames_per_segment:
            raise UserError(f"data.{name} = {getattr(config, name)} is not a multiple of the segment length, "
                            f"{task.frames_per_segment} frames.")


def cut(lengths: np.ndarray, config: DataConfig, task: Task) -> ClipTable:
    """Cuts recordings longer than `max_frames` into clips, on the segment grid.

    Raises UserError as `require_whole_segments` does.
    """
    require_whole_segments(config, task)
    max_frames = config.max_frames
    recording = np.repeat(np.arange(len(lengths)), ceil_div(lengths, max_frames))
    first = np.searchsorted(recording, recording)
    start = (np.arange(len(recording)) - first) * max_frames
    frames = np.minimum(lengths[recording] - start, max_frames)
    return ClipTable(recording.astype(np.int32), start.astype(np.int32), frames.astype(np.int32))


def training_clips(lengths: np.ndarray, config: DataConfig, task: Task, seed: int, epoch: int) -> ClipTable:
    """The clips of a training epoch: those of `cut`, or random crops if config.crop_frames > 0.

    A recording has as many crops as are needed to cover it. They start on the segment grid, each in its own
    equal part of the possible starts, the last of which leaves out less than a segment. A clip has the same recording
    and id in all epochs.
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
    """The clip ids of each training batch of an epoch: (batches, batch_size), with -1 as padding of the last batch.

    Every clip occurs once. Clips are shuffled, the clips of every `pool_batches` batches are sorted by length, and the
    batches are shuffled again.
    """
    rng = np.random.default_rng([seed, epoch])
    ids = rng.permutation(len(clips))
    pool = pool_batches * batch_size
    ids = np.concatenate([part[np.argsort(-clips.frames[part], kind="stable")]
                          for part in np.split(ids, range(pool, len(ids), pool))])
    return rng.permutation(_rows(ids, batch_size))


class Plan:
    """Which clips form which batch; batches are numbered through all epochs.

    Attributes:
      epoch: function from an epoch to its clips, and the clip ids of each batch (batches, batch_size), -1 for padding.
      batches: number of batches per epoch.
    """

    def __init__(self, epoch: Callable[[int], tuple[ClipTable, np.ndarray]]):
        self.epoch = functools.lru_cache(maxsize=2)(epoch)
        self.batches = len(self.epoch(0)[1])

    def batch(self, number: int) -> tuple[ClipTable, np.ndarray]:
        """The clips of batch `number`'s epoch, and the clip ids of the batch."""
        epoch, row = divmod(number, self.batches)
        clips, ids = self.epoch(epoch)
        return clips, ids[row]


def training_plan(source: Source, config: DataConfig, seed: int) -> Plan:
    """The batches of training, each epoch a pure function of (seed, epoch)."""
    def epoch(number: int) -> tuple[ClipTable, np.ndarray]:
        clips = training_clips(source.lengths, config, source.task, seed, number)
        return clips, order(clips, config.batch_size, config.pool_batches, seed, number)

    return Plan(epoch)


def evaluation_plan(source: Source, config: DataConfig, devices: int) -> Plan:
    """The batches of an evaluation, each clip once; `devices` divides the batch size."""
    clips = cut(source.lengths, config, source.task)
    ids = in_length_order(clips, ceil_div(min(config.eval_batch_size, len(clips)), devices) * devices)
    return Plan(lambda _: (clips, ids))


def in_length_order(clips: ClipTable, batch_size: int) -> np.ndarray:
    """The clip ids of each evaluation batch: (batches, batch_size), each clip once, longest first."""
    return _rows(np.argsort(-clips.frames, kind="stable"), batch_size)


def _rows(ids: np.ndarray, batch_size: int) -> np.ndarray:
    return np.pad(ids, (0, -len(ids) % batch_size), constant_values=-1).reshape(-1, batch_size)


def padded_frames(longest: int, config: DataConfig) -> int:
    """The padded length of a batch, one of a few so that only a few shapes are compiled."""
    return min(ceil_div(longest, config.bucket_frames) * config.bucket_frames, config.max_frames)


def batch_frames(clips: ClipTable, ids: np.ndarray, config: DataConfig) -> int:
    """The padded length of the batch of the clips `ids`, -1 for padding."""
    return padded_frames(int(clips.frames[ids].max(where=ids >= 0, initial=1)), config)
