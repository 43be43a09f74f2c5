"""Records and directories of features as sources: recordings with random access."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator

import numpy as np

from sedjax.audio.clips import Clip
from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.data import host_tensorflow, identity
from sedjax.data.layout import Layout


@dataclasses.dataclass(frozen=True)
class Records:
    """One split of the records written by data_prep.records."""

    task: Task
    lengths: np.ndarray
    features: dict[str, dict]  # width and statistics by key; only the width for audio
    labels: dict  # width and statistics of the labels
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
        except Exception as error:  # array_record and protobuf raise many exception types
            raise UserError(f"Record {index} of the split {self.split!r} in {self.path} is damaged: "
                            f"build the records again ({type(error).__name__}).") from error
        return features, votes

    def identity(self, keys: tuple[str, ...]) -> dict[str, str]:
        """Identity of the labels and the features `keys` of this split."""
        return self.metadata.identity(self.split, keys)

    @functools.cached_property
    def filenames(self) -> tuple[str, ...]:
        return tuple(self._source[i]["filename"].decode() for i in range(len(self.lengths)))


def open_records(path: str, split: str) -> Records:
    """Opens a split. Raises UserError if there are no records at `path` or no such split."""
    metadata = identity.read_metadata(path)
    lengths = np.array(metadata.lengths.get(split, ()), np.int32)
    if not len(lengths):
        raise UserError(f"The records in {path} have no split {split!r}.")

    for name in os.listdir(path):  # TFDS would block on a pipe and read a device forever
        with files.open_file(os.path.join(path, name), files.JSON_BYTES if name.endswith(".json") else math.inf):
            pass

    host_tensorflow.load()
    import tensorflow_datasets as tfds

    try:
        source = tfds.builder_from_directory(path).as_data_source(split)
        if len(source) != len(lengths):
            raise ValueError(f"{len(source)} records instead of {len(lengths)}")
    except Exception as error:  # TFDS raises many exception types, depending on the damage
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"The records in {path} are damaged: build them again ({reason}).") from error
    entries = dict(metadata.entries)
    labels = entries.pop(identity.LABELS)
    return Records(metadata.task, lengths, entries, labels, path, split, metadata, source)


def directory_clips(layout: Layout, keys: tuple[str, ...], widths: dict[str, int]) -> Iterator[Clip]:
    """The features of a directory in MLPC layout, for prediction: one clip per recording.

    Args:
      layout: the directory.
      keys: features to read; if empty, each clip has one empty row per frame of the recording.
      widths: number of columns of each feature that the model was trained on.

    Raises:
      UserError: a file is missing or damaged, or the width of a feature differs from `widths`.
    """
    for number, filename in enumerate(layout.filenames):
        features = (layout.features(filename, keys) if keys
                    else {"": np.zeros((layout.num_frames(filename), 0), np.float32)})
        where = layout.path if not number else layout.features_path(filename)
        require_features({key: value.shape[1] for key, value in features.items()}, keys, widths, where=str(where))
        frames = len(next(iter(features.values())))
        yield Clip(number, filename, features, frames * layout.task.frame_seconds)


def require_features(found: dict[str, int], keys: tuple[str, ...], widths: dict[str, int] | None, where: str) -> None:
    """Raises UserError unless `found` has every key, with the width that a trained model expects."""
    for key in keys:
        if key not in found:
            raise UserError(f"{where} lacks the feature {key!r}, which the model needs; it has {sorted(found)}.")
        if widths and found[key] != widths[key]:
            raise UserError(f"The feature {key!r} of {where} is {found[key]} wide; "
                            f"the model was trained on {widths[key]}.")
