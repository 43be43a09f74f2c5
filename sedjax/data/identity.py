"""The identity of a data set: what is known of each of its features and of its labels, and whether two are the same.

Fingerprints are made when records are built. Whoever uses them, such as a workdir, keeps them with the statistics.
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
LABELS = "labels"  # beside the names of features, so no feature can be called so

Statistic = list[pydantic.FiniteFloat]
Entries = dict[str, dict[str, Any]]  # by feature, and of the LABELS: an Entry as a dict


class Extractor(pydantic.BaseModel, extra="allow"):
    """What computed a feature: all that its numbers depend on, and of embeddings where it was."""

    parameters: str
    path: str = ""


class Entry(pydantic.BaseModel, extra="allow"):
    """What is known of a feature: statistics of the training frames, and a fingerprint of each split."""

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
    """What metadata.json of our records holds."""

    task: str
    lengths: dict[str, list[Annotated[int, pydantic.Field(ge=1, lt=2**31)]]]
    features: dict[str, Entry]
    labels: Entry
    checksum: str = ""  # not in records of older versions


@dataclasses.dataclass(frozen=True)
class RecordsMetadata:
    """What records tell of themselves.

    Attributes:
      path: of the records.
      task: of the labels.
      lengths: frames of each recording of each split.
      entries: of the features and of the LABELS.
    """

    path: str
    task: Task
    lengths: dict[str, list[int]]
    entries: Entries

    def identity(self, split: str, keys: Iterable[str]) -> dict[str, str]:
        """What tells the labels and some features of a split from others.

        It is their fingerprints. Records that sedjax made before there were any have names, sizes and times of files.
        """
        found = of_split(self.entries, split, keys)
        if found is not None:
            return found
        states = {path.name: (path.stat().st_size, path.stat().st_mtime_ns)
                  for path in sorted(pathlib.Path(self.path).iterdir())}
        return {"files": _digest(states)}


def has_records(path: str | os.PathLike) -> bool:
    """Whether a path that is not empty leads to records, damaged ones perhaps."""
    return bool(path) and os.path.lexists(os.path.join(path, "dataset_info.json"))


def read_metadata(path: str | os.PathLike) -> RecordsMetadata:
    """What the records at `path` tell of themselves. Raises UserError if there are none, or damaged ones."""
    if not os.fspath(path):
        raise UserError("No records: set data.path (--config.data.path=DIR) to a directory that "
                        "`sedjax records` wrote.")
    if not has_records(path):
        raise UserError(f"There are no records in {path}: make them with `sedjax records`.")
    name = os.path.join(path, "metadata.json")
    try:
        text = files.read_text(name)
        found = bounds.parse_json(text, _Metadata, name)
        if found.checksum and found.checksum != checksum(json.loads(text)):
            raise UserError(f"{name} is not as it was written.")
        bounds.parse_json(found.task, dict[str, Any], name)  # within bounds of depth
        task = task_from_json(found.task, name="records", where=name)
        if found.labels.width != len(task.classes):
            raise UserError(f"{name} is damaged: labels.width: {found.labels.width} for {len(task.classes)} classes.")
    except UserError as error:
        raise UserError(f"The records in {path} are damaged: build them again ({str(error).rstrip('.')}).") from error
    return RecordsMetadata(os.fspath(path), task, found.lengths, plain({**found.features, LABELS: found.labels}))


def read_entries(path: errors.Path) -> Entries:
    """The entries in a features.json. Raises UserError if it is damaged."""
    return plain(files.read_json(path, dict[str, Entry]))


def plain(entries: Mapping[str, Entry]) -> Entries:
    """Entries as dicts of what is known."""
    return {key: entry.model_dump(exclude_unset=True) for key, entry in entries.items()}


def checksum(metadata: Mapping[str, Any]) -> str:
    """What changes with anything else in the metadata of records."""
    content = json.loads(json.dumps({key: value for key, value in metadata.items() if key != "checksum"}))
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def array_digest(value: np.ndarray) -> str:
    """A digest of an array's type, shape and values."""
    digest = hashlib.blake2b(f"{value.dtype.name} {value.shape} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def split_fingerprints(task: Task, digests: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The fingerprint of each feature of a split, and of its LABELS, which covers the task.

    Args:
      task: of the labels.
      digests: of each recording in the order of the split, by filename: `array_digest` by feature and of the LABELS.
    """
    grid = [task.classes, task.cost_matrix.tolist(), float(task.frame_seconds), task.frames_per_segment]
    keys = next(iter(digests.values()), {})
    return {key: _digest([grid if key == LABELS else None, *((name, one[key]) for name, one in digests.items())])
            for key in keys}


def of_split(entries: Entries, split: str, keys: Iterable[str]) -> dict[str, str] | None:
    """Fingerprints of a split: of its labels and some features; None if one of them is unknown."""
    found = {key: entries.get(key, {}).get("fingerprint", {}).get(split) for key in (LABELS, *keys)}
    return None if None in found.values() else found


def difference(known: Entries, found: Entries) -> str:
    """What two data sets are known not to share of the features in `known`; "" if nothing."""
    for key, entry in known.items():
        ours, theirs = entry.get("fingerprint"), found.get(key, {}).get("fingerprint")
        if ours and theirs and ours != theirs:
            split = next(split for split in {**ours, **theirs} if ours.get(split) != theirs.get(split))
            return f"{key} of the split {split!r}"
    return ""


def require_same_extractors(known: Entries, found: Mapping[str, Mapping[str, Any]], where: str, trained: str) -> None:
    """Raises UserError if a feature is known to be computed by another extractor than the one trained on.

    Args:
      known: of the features that a model was trained on.
      found: of those that it is to get.
      where: they are.
      trained: where the model is.
    """
    for key in known:
        ours, theirs = known[key].get("extractor"), found.get(key, {}).get("extractor")
        if ours and theirs and ours["parameters"] != theirs["parameters"]:
            raise UserError(f"The {key} in {where} are of the extractor {_name(theirs)}, but the model in {trained} "
                            f"was trained on those of {_name(ours)}: make them with that one.")


def _name(extractor: Mapping[str, Any]) -> str:
    return repr(extractor["parameters"]) + (f" ({extractor['path']})" if extractor.get("path") else "")


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
