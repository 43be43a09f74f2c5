"""The identity of a data set: what is known about its features and labels, and whether two data sets are the same.

Fingerprints are computed when records are built. Users of the records, such as workdirs, keep them with the statistics.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
import pydantic

from sedjax.core import bounds, errors, files
from sedjax.core.errors import UserError
from sedjax.core.task import Task, task_from_json

RECORDS_NAME = "sed_records"
LABELS = "labels"  # next to the names of features, so no feature may have this name

Statistic = list[pydantic.FiniteFloat]
Entries = dict[str, dict[str, Any]]  # by feature name and LABELS: an Entry as a dict


class Extractor(pydantic.BaseModel, extra="allow"):
    """What computed a feature: everything its values depend on and, for embeddings, the extractor's path."""

    parameters: str
    path: str = ""


class Entry(pydantic.BaseModel, extra="allow"):
    """What is known about a feature: statistics of the training frames, and the fingerprint of each split."""

    width: pydantic.PositiveInt
    mean: Statistic = []
    std: Statistic = []
    level_mean: Statistic = []
    level_std: Statistic = []
    extractor: Extractor | None = None
    fingerprint: dict[str, str] = {}

    @pydantic.model_validator(mode="after")
    def _require_lengths(self) -> "Entry":
        for name in ("mean", "std", "level_mean", "level_std"):
            if name in self.model_fields_set and len(getattr(self, name)) != self.width:
                raise ValueError(f"{name} must have {self.width} numbers, not {len(getattr(self, name))}")
        return self


class _Metadata(pydantic.BaseModel):
    """The content of metadata.json in records."""

    task: str
    lengths: dict[str, list[Annotated[int, pydantic.Field(ge=1, lt=2**31)]]]
    features: dict[str, Entry]
    labels: Entry
    checksum: str = ""  # missing in records of older versions


@dataclasses.dataclass(frozen=True)
class RecordsMetadata:
    """Metadata of records.

    Attributes:
      path: directory of the records.
      task: task of the labels.
      lengths: number of frames of each recording, by split.
      entries: what is known about the features and the LABELS.
    """

    path: str
    task: Task
    lengths: dict[str, list[int]]
    entries: Entries

    def identity(self, split: str, keys: Iterable[str]) -> dict[str, str]:
        """Identity of the labels and the features `keys` of a split.

        These are their fingerprints, or for old records without any, a digest of file names, sizes and times.
        """
        fingerprints = of_split(self.entries, split, keys)
        if fingerprints is not None:
            return fingerprints
        states = {path.name: (path.stat().st_size, path.stat().st_mtime_ns)
                  for path in sorted(pathlib.Path(self.path).iterdir())}
        return {"files": _digest(states)}


def has_records(path: str | os.PathLike) -> bool:
    """Whether `path` is not empty and contains records, which may be damaged."""
    return bool(path) and os.path.lexists(os.path.join(path, "dataset_info.json"))


def read_metadata(path: str | os.PathLike) -> RecordsMetadata:
    """Metadata of the records at `path`. Raises UserError if there are none or they are damaged."""
    if not os.fspath(path):
        raise UserError("No records: set data.path (--config.data.path=DIR) to a directory that "
                        "`sedjax records` wrote.")
    if not has_records(path):
        raise UserError(f"There are no records in {path}: build them with `sedjax records`.")
    name = os.path.join(path, "metadata.json")
    try:
        text = files.read_text(name)
        content = bounds.parse_json(text, _Metadata, name)
        if content.checksum and content.checksum != checksum(json.loads(text)):
            raise UserError(f"{name} has changed since it was written.")
        bounds.parse_json(content.task, dict[str, Any], name)  # limits the nesting depth
        task = task_from_json(content.task, name="records", where=name)
        if content.labels.width != len(task.classes):
            raise UserError(f"{name} is damaged: labels.width: {content.labels.width} for {len(task.classes)} classes.")
    except UserError as error:
        raise UserError(f"The records in {path} are damaged: build them again ({str(error).rstrip('.')}).") from error
    return RecordsMetadata(os.fspath(path), task, content.lengths, plain({**content.features, LABELS: content.labels}))


def read_entries(path: errors.Path) -> Entries:
    """Reads the entries in a features.json. Raises UserError if it is damaged."""
    return plain(files.read_json(path, dict[str, Entry]))


def plain(entries: Mapping[str, Entry]) -> Entries:
    """Entries as dicts, without unset fields."""
    return {key: entry.model_dump(exclude_unset=True) for key, entry in entries.items()}


def checksum(metadata: Mapping[str, Any]) -> str:
    """Checksum of the metadata of records, except for the checksum itself."""
    content = json.loads(json.dumps({key: value for key, value in metadata.items() if key != "checksum"}))
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def array_digest(value: np.ndarray) -> str:
    """Digest of an array's dtype, shape and values."""
    digest = hashlib.blake2b(f"{value.dtype.name} {value.shape} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def split_fingerprints(task: Task, digests: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Fingerprints of each feature of a split and of its LABELS; that of the LABELS includes the task.

    Args:
      task: task of the labels.
      digests: by filename, in the order of the split: `array_digest` by feature name and LABELS.
    """
    grid = [task.classes, task.cost_matrix.tolist(), float(task.frame_seconds), task.frames_per_segment]
    keys = next(iter(digests.values()), {})
    return {key: _digest([grid if key == LABELS else None, *((name, values[key]) for name, values in digests.items())])
            for key in keys}


def of_split(entries: Entries, split: str, keys: Iterable[str]) -> dict[str, str] | None:
    """Fingerprints of the labels and the features `keys` of a split; None if any of them is unknown."""
    values = {key: entries.get(key, {}).get("fingerprint", {}).get(split) for key in (LABELS, *keys)}
    return None if None in values.values() else values


def difference(known: Entries, found: Entries) -> str:
    """The first feature in `known` whose fingerprint is known to differ in `found`, with the split; "" if none."""
    for key, entry in known.items():
        ours, theirs = entry.get("fingerprint"), found.get(key, {}).get("fingerprint")
        if ours and theirs and ours != theirs:
            split = next(split for split in {**ours, **theirs} if ours.get(split) != theirs.get(split))
            return f"{key} of the split {split!r}"
    return ""


def require_same_extractors(known: Entries, found: Mapping[str, Mapping[str, Any]], where: str, trained: str) -> None:
    """Raises UserError if a feature is known to come from another extractor than in training.

    Args:
      known: entries of the features that the model was trained on.
      found: entries of the features to use now.
      where: location of the features in `found`.
      trained: location of the model.
    """
    for key in known:
        ours, theirs = known[key].get("extractor"), found.get(key, {}).get("extractor")
        if ours and theirs and ours["parameters"] != theirs["parameters"]:
            raise UserError(f"The {key} in {where} come from the extractor {_name(theirs)}, but the model in "
                            f"{trained} was trained on those of {_name(ours)}: extract them with that one.")


def _name(extractor: Mapping[str, Any]) -> str:
    return repr(extractor["parameters"]) + (f" ({extractor['path']})" if extractor.get("path") else "")


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
