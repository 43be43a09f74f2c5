"""Records -> batches. Which clips form batch number N is a pure function of (seed, N), so a run can start anywhere."""

import contextlib
import dataclasses
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from sedjax import files, host_tensorflow, identity, parallel
from sedjax.config import DataConfig
from sedjax.errors import UserError
from sedjax.layout import Layout
from sedjax.steps import Batch
from sedjax.task import Task

RECENT = 4  # recordings of a directory that are kept in memory, and can be read at once


@runtime_checkable
class Source(Protocol):
    """Recordings that can be read in any order."""

    task: Task
    lengths: np.ndarray  # frames of each recording

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Features {key: (T, D_k)} and votes (T, C) of a recording."""


@dataclasses.dataclass(frozen=True)
class Records:
    """One split of the records that data_prep.build_records wrote."""

    task: Task
    lengths: np.ndarray
    features: dict[str, dict]  # width and statistics by key; of audio the width only
    labels: dict  # the same for the labels
    path: str
    split: str
    metadata: identity.RecordsMetadata
    _source: object

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        try:
            record = self._source[index]
            features, votes = {key: record["features"][key] for key in keys}, record["votes"]
            widths = {**{key: self.features[key]["width"] for key in keys}, identity.LABELS: self.labels["width"]}
            for key, value in {**features, identity.LABELS: votes}.items():
                if value.shape != (self.lengths[index], widths[key]):
                    raise ValueError(f"{key} of shape {value.shape}")
        except Exception as error:  # array_record and protobuf raise many kinds
            raise UserError(f"Record {index} of the split {self.split!r} in {self.path} is damaged: "
                            f"build the records again ({type(error).__name__}).") from error
        return features, votes

    def identity(self, keys: tuple[str, ...]) -> dict[str, str]:
        """What tells its labels and features `keys` from those of other data sets."""
        return self.metadata.identity(self.split, keys)

    @functools.cached_property
    def filenames(self) -> tuple[str, ...]:
        return tuple(self._source[i]["filename"].decode() for i in range(len(self.lengths)))


def open_records(path: str, split: str) -> Records:
    """Opens a split. Raises UserError if there are no records at `path`, or no such split."""
    metadata = identity.read_metadata(path)
    lengths = np.array(metadata.lengths.get(split, ()), np.int32)
    if not len(lengths):
        raise UserError(f"The records in {path} have no split {split!r}.")

    for name in os.listdir(path):  # TFDS would wait for a pipe, and read a device for ever
        with files.open_file(os.path.join(path, name), files.JSON_BYTES if name.endswith(".json") else math.inf):
            pass

    host_tensorflow.load()
    import tensorflow_datasets as tfds

    try:
        source = tfds.builder_from_directory(path).as_data_source(split)
        if len(source) != len(lengths):
            raise ValueError(f"{len(source)} records instead of {len(lengths)}")
    except Exception as error:  # TFDS raises many kinds, according to what is damaged
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"The records in {path} are damaged: build them again ({reason}).") from error
    entries = dict(metadata.entries)
    labels = entries.pop(identity.LABELS)
    return Records(metadata.task, lengths, entries, labels, path, split, metadata, source)


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of a directory in MLPC layout, for prediction; the votes are all 0.

    `widths` are those that the model was trained on; another width in any file is an error.
    """

    layout: Layout
    task: Task
    lengths: np.ndarray
    widths: dict[str, int]

    @classmethod
    def of(cls, layout: Layout, task: Task, keys: tuple[str, ...], widths: dict[str, int]) -> "Features":
        """All recordings of a directory. Raises UserError at once if it has not the features `keys`."""
        first = layout.features(layout.filenames[0], keys)
        require_features({key: value.shape[1] for key, value in first.items()}, keys, widths, where=str(layout.path))
        lengths = np.array([layout.num_frames(name, keys) for name in layout.filenames], np.int32)
        return cls(layout, task, lengths, widths)

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        # The clips of a long recording follow each other, and several threads read them: one decodes it for all.
        lock, read = self._recent[index % RECENT]
        with lock:
            return read(index, keys)

    @functools.cached_property
    def _recent(self) -> tuple[tuple[contextlib.AbstractContextManager, Callable], ...]:
        return tuple((threading.Lock(), functools.lru_cache(maxsize=1)(self._read)) for _ in range(RECENT))

    def _read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        filename = self.layout.filenames[index]
        features = self.layout.features(filename, keys)
        require_features({key: value.shape[1] for key, value in features.items()}, keys, self.widths,
                         where=str(self.layout.features_path(filename)))
        return features, np.zeros((int(self.lengths[index]), len(self.task.classes)), np.float16)


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Recordings whose features are in memory, for prediction; the votes are all 0."""

    task: Task
    held: Sequence[dict[str, np.ndarray]]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(next(iter(features.values()))) for features in self.held], np.int32)

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        votes = np.zeros((int(self.lengths[index]), len(self.task.classes)), np.float16)
        return {key: self.held[index][key] for key in keys}, votes


def require_features(found: dict[str, int], keys: tuple[str, ...], widths: dict[str, int] | None, where: str) -> None:
    """Raises UserError unless every key is found, with the width that a trained model expects."""
    for key in keys:
        if key not in found:
            raise UserError(f"{where} has no feature {key!r}, which the model needs; it has {sorted(found)}.")
        if widths and found[key] != widths[key]:
            raise UserError(f"The feature {key!r} of {where} is {found[key]} wide; "
                            f"the model was trained on {widths[key]}.")


@dataclasses.dataclass(frozen=True)
class Clips:
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


def cut(lengths: np.ndarray, config: DataConfig, task: Task) -> Clips:
    """Cuts recordings that are longer than `max_frames` on the segment grid.

    Raises UserError as `require_whole_segments`.
    """
    require_whole_segments(config, task)
    max_frames = config.max_frames
    recording = np.repeat(np.arange(len(lengths)), -(-lengths // max_frames))
    first = np.searchsorted(recording, recording)
    start = (np.arange(len(recording)) - first) * max_frames
    frames = np.minimum(lengths[recording] - start, max_frames)
    return Clips(recording.astype(np.int32), start.astype(np.int32), frames.astype(np.int32))


def training_clips(lengths: np.ndarray, config: DataConfig, task: Task, seed: int, epoch: int) -> Clips:
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
    places = -(-np.maximum(length - size, 0) // segment) + 1
    share = (clips.start // size + np.random.default_rng([seed, epoch, 1]).random(len(clips))) / crops
    start = np.minimum((share * places).astype(np.int32), places - 1) * segment
    return Clips(clips.recording, start.astype(np.int32), np.minimum(length - start, size).astype(np.int32))


def order(clips: Clips, batch_size: int, pool_batches: int, seed: int, epoch: int) -> np.ndarray:
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


def training_plan(source: Source, config: DataConfig, seed: int, epoch: int) -> tuple[Clips, np.ndarray]:
    """The clips of a training epoch, and those of each batch: a pure function of (seed, epoch)."""
    clips = training_clips(source.lengths, config, source.task, seed, epoch)
    return clips, order(clips, config.batch_size, config.pool_batches, seed, epoch)


def in_length_order(clips: Clips, batch_size: int) -> np.ndarray:
    """The clips of each evaluation batch: (batches, batch_size), each clip once, longest first."""
    return _rows(np.argsort(-clips.frames, kind="stable"), batch_size)


def _rows(ids: np.ndarray, batch_size: int) -> np.ndarray:
    return np.pad(ids, (0, -len(ids) % batch_size), constant_values=-1).reshape(-1, batch_size)


def steps_per_epoch(clips: Clips, batch_size: int) -> int:
    return -(-len(clips) // batch_size)


def padded_frames(longest: int, config: DataConfig) -> int:
    """The length to which a batch is padded: one of few, so that few shapes are compiled."""
    return min(-(-longest // config.bucket_frames) * config.bucket_frames, config.max_frames)


def read_batch(source: Source, clips: Clips, ids: np.ndarray, keys: tuple[str, ...], config: DataConfig,
               rows: slice = slice(None)) -> Batch:
    """The clips `ids[rows]`, padded to the length that the whole global batch `ids` needs.

    Reads nothing of the other rows: each process reads its own share.
    """
    longest = int(clips.frames[ids].max(where=ids >= 0, initial=1))
    frames = padded_frames(longest, config)
    found: dict[str, np.ndarray] = {}
    ids = ids[rows]
    votes = np.zeros((len(ids), frames, len(source.task.classes)), np.float16)
    frame_mask = np.zeros((len(ids), frames), bool)
    for row, clip in enumerate(ids):
        if clip < 0:
            continue
        start, length = clips.start[clip], clips.frames[clip]
        features, marks = source.read(int(clips.recording[clip]), keys)
        for key in keys:
            value = features[key]
            if key not in found:
                found[key] = np.zeros((len(ids), frames, value.shape[1]), value.dtype)
            found[key][row, :length] = value[start : start + length]
        votes[row, :length] = marks[start : start + length]
        frame_mask[row, :length] = True
    if not found:  # this process has padding only; the shapes must still be those of the others
        features, _ = source.read(0, keys)
        found = {key: np.zeros((len(ids), frames, features[key].shape[1]), features[key].dtype) for key in keys}
    return {"features": found, "votes": votes, "frame_mask": frame_mask, "clip_id": ids.astype(np.int32)}


def evaluation_plan(source: Source, config: DataConfig, devices: int) -> tuple[Clips, np.ndarray]:
    """All clips of a source, and those of each batch, whose size the devices share evenly: each clip once."""
    clips = cut(source.lengths, config, source.task)
    return clips, in_length_order(clips, -(-min(config.eval_batch_size, len(clips)) // devices) * devices)


def read_evaluation_batch(source: Source, clips: Clips, plan: np.ndarray, keys: tuple[str, ...], config: DataConfig,
                          number: int) -> Batch:
    """This process's share of a batch of an evaluation plan."""
    rows = parallel.local_rows(plan.shape[1])
    return read_batch(source, clips, plan[number], keys, config, rows)


def stream(read: Callable[[int], Batch], first: int, last: int) -> Iterator[Batch]:
    """The batches number `first` to `last` - 1, read ahead and in parallel by tf.data, in order."""
    tf = host_tensorflow.load()
    failures: list[UserError] = []
    ready: dict[int, Batch] = {}

    def prepare(number: np.int64) -> np.int64:
        # The arrays stay in this process: handing on the number alone saves tf.data a copy of each.
        try:
            ready[int(number)] = read(int(number))
        except UserError as error:  # tf.data would wrap it in a text of its own
            failures.append(error)
            raise
        return number

    numbers = tf.data.Dataset.range(first, last).map(
        lambda number: tf.numpy_function(prepare, [number], tf.int64), num_parallel_calls=tf.data.AUTOTUNE)
    try:
        for number in numbers.prefetch(2).as_numpy_iterator():
            yield ready.pop(int(number))
    except tf.errors.OpError as error:
        raise (failures[0] if failures else error) from error
