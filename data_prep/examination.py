"""Examines the recordings of a directory in MLPC layout: for `sedjax check`, and for `sedjax records`."""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from sedjax.audio import reader
from sedjax.core import grid, npz, task
from sedjax.core.errors import UserError
from sedjax.data import identity
from sedjax.data.layout import Kind, Layout


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a directory holds, by the names and headers of its files.

    Attributes:
      keys: features to read; `audio` is the recording itself.
      kinds: usual width and type of each, of those recordings that have all of them.
      labelled: whether any recording has labels.
      reads_labels: whether to read the labels.
      problems: problems that all recordings share; if there are any, no recording is good.
    """

    keys: tuple[str, ...]
    kinds: dict[str, Kind]
    labelled: bool
    reads_labels: bool
    problems: list[str]


@dataclasses.dataclass
class Examined:
    """Result of examining the files of one recording.

    Attributes:
      problems: its problems.
      frames: number of frames; 0 while unknown.
      silent: features that are all zero.
      digests: digests of its features and labels, from identity.array_digest.
      active_frames: (C,) number of active frames per class; None without labels.
      active_segments: (C,) number of active segments, likewise.
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    frames: int = 0
    silent: list[str] = dataclasses.field(default_factory=list)
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    active_frames: np.ndarray | None = None
    active_segments: np.ndarray | None = None


def read_contents(layout: Layout, keys: tuple[str, ...] | None = None) -> Contents:
    """Decides what to read of every recording.

    Args:
      layout: the directory; having no labels at all is not a problem.
      keys: features to read; None for all keys of the first readable features file, or for audio if no recording has
        a features file.
    """
    problems = []
    features_paths = [layout.features_path(filename) for filename in layout.filenames]
    labels_paths = [layout.labels_path(filename) for filename in layout.filenames]
    has_features = any(map(os.path.exists, features_paths))
    has_audio = any(os.path.exists(layout.audio_path(filename)) for filename in layout.filenames)
    if keys is None and has_audio and not has_features:
        keys = (reader.FEATURE,)
    elif keys is None:
        keys = next((names for names in map(_array_names, features_paths) if names), ())
    stored = tuple(key for key in keys if key != reader.FEATURE)
    if not keys or (stored and not has_features):
        problems.append(f"{layout.path / 'audio_features'}: no recording in metadata.csv has a readable features file.")
        keys = ()
    elif absent := _absent_everywhere(stored, features_paths):
        problems += [f"{layout.path / 'audio_features'}: no file has the feature {key!r}." for key in absent]
        keys = tuple(key for key in keys if key not in absent)
    if reader.FEATURE in keys and not has_audio:
        problems.append(f"{layout.path / 'audio'}: no audio file for any recording in metadata.csv.")
        keys = tuple(key for key in keys if key != reader.FEATURE)
    if reader.FEATURE in keys:
        task.require_frame_seconds(layout.task)

    labelled = any(map(os.path.exists, labels_paths))
    absent = _absent_everywhere(layout.task.classes, labels_paths)
    problems += [f"{layout.path / 'labels'}: no file has the class {name!r} of the task {layout.task.name!r}."
                 for name in absent]
    return Contents(keys, _usual_kinds(layout, keys), labelled, labelled and not absent, problems)


def examine(filename: str, layout: Layout, contents: Contents) -> tuple[Examined, dict[str, np.ndarray],
                                                                        np.ndarray | None]:
    """Reads the features and labels of a recording.

    Returns:
      The result; the features; and the votes, None without labels. Where these cannot be read, the result says why.
    """
    result, features, votes = Examined(), {}, None
    try:
        features = layout.features(filename, contents.keys) if contents.keys else {}
        result.frames = len(next(iter(features.values()), ()))
        result.silent = [key for key, value in features.items() if not value.any()]
    except UserError as error:
        result.problems.append(str(error))
    if contents.reads_labels:
        try:
            votes = layout.votes(filename)
            active = votes > 0
            if result.frames not in (0, len(active)):
                result.problems.append(f"{layout.features_path(filename)} has {result.frames} frames and "
                                       f"{layout.labels_path(filename)} has {len(active)}.")
            result.active_frames = active.sum(0)
            result.active_segments = grid.any_frame(grid.pad_to_segments(active, layout.task), layout.task).sum(0)
        except UserError as error:
            result.problems.append(str(error))
    for key, value in features.items():
        width, dtype = contents.kinds[key]
        if value.shape[1] != width or value.dtype != dtype:
            result.problems.append(f"{key!r} has width {value.shape[1]} and type {value.dtype}, but "
                                   f"usually {width} and {dtype}.")
    arrays = features if votes is None else {**features, identity.LABELS: votes}
    result.digests = {key: identity.array_digest(value) for key, value in arrays.items()}
    return result, features, votes


def _usual_kinds(layout: Layout, keys: tuple[str, ...]) -> dict[str, Kind]:
    counts = {key: collections.Counter() for key in keys}
    for filename in layout.filenames:
        with contextlib.suppress(UserError):
            for key, kind in layout.kinds(filename, keys).items():
                counts[key][kind] += 1
    return {key: kinds.most_common(1)[0][0] for key, kinds in counts.items() if kinds}


def _absent_everywhere(names: Iterable[str], paths: Iterable[pathlib.Path]) -> list[str]:
    """The names that no readable npz file in `paths` holds; stops reading once every name has occurred."""
    absent, any_read = list(names), False
    for path in paths:
        if not absent:
            break
        present = _array_names(path)
        any_read = any_read or bool(present)
        absent = [name for name in absent if name not in present]
    return absent if any_read else []


def _array_names(path: pathlib.Path) -> tuple[str, ...]:
    """Names of the arrays in an npz file; empty if it is unreadable."""
    try:
        return npz.npz_names(path)
    except UserError:
        return ()
