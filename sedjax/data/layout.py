"""Reads a directory in MLPC layout (SPEC section 3): recordings, features, audio, labels, splits."""

import collections
import dataclasses
import functools
import math
import os
import pathlib

import numpy as np

from sedjax.audio import reader
from sedjax.core import files, npz, task
from sedjax.core.errors import Path, UserError, printable
from sedjax.core.files import MEBIBYTE, read_text
from sedjax.core.task import MLPC_2025, Task, task_from_json
from sedjax.data import identity
from sedjax.data import provenance as provenance_lib

SPLITS = ("train", "validation", "test")
EXTRACTORS = "extractors.json"
NUMBERS = "biuf"  # numpy kinds; complex numbers would lose their imaginary part
SMALLEST_VOTE = np.finfo(np.float16).smallest_subnormal
MAX_FILE_BYTES = 16 * MEBIBYTE  # of a task

Kind = tuple[int, str]  # width and type of a feature


@dataclasses.dataclass(frozen=True)
class Layout:
    """A directory in MLPC layout. Files are read on demand.

    Attributes:
      path: the directory.
      filenames: unique recordings, in the order of metadata.csv.
      task: task in costs.json, else MLPC 2025.
    """

    path: pathlib.Path
    filenames: tuple[str, ...]
    task: Task

    def features_path(self, filename: str) -> pathlib.Path:
        return self.path / "audio_features" / f"{_stem(filename)}.npz"

    def labels_path(self, filename: str) -> pathlib.Path:
        return self.path / "labels" / f"{_stem(filename)}_labels.npz"

    def audio_path(self, filename: str) -> pathlib.Path:
        return self.path / "audio" / filename

    def num_frames(self, filename: str, keys: tuple[str, ...] = ()) -> int:
        """Number of frames of a recording, as in the features `keys`.

        Taken from the header of its features file, or of its labels file if it has no features; for audio alone, and
        without keys, the labels take precedence. If it has neither, the recording itself is read.

        Raises UserError if there is none of them, or for a damaged file.
        """
        frames = self._frames_in_headers(filename, keys)
        if frames is None and not os.path.exists(self.audio_path(filename)):
            raise UserError(f"{self.path} has neither features nor labels nor audio of {filename!r}, so its length is "
                            "unknown.")
        if frames is None:
            task.require_frame_seconds(self.task)
        return reader.num_frames(self.audio_path(filename)) if frames is None else frames

    def features(self, filename: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The named features of a recording, each (T, D), all with the same T >= 1.

        Features from its features file are float16 or float32. "audio" is the recording itself, as audio.reader.frames
        reads it: (T, 1920) int16. T is that of the other features, else of the labels or the features file; as they may
        round the length differently, the audio is truncated by a frame, or padded with a frame of silence, to match.

        Raises UserError that names the file for anything missing, unreadable, misshapen, not finite, or of the wrong
        length.
        """
        stored = tuple(key for key in keys if key != reader.FEATURE)
        features = self._stored_features(filename, stored) if stored else {}
        if reader.FEATURE in keys:
            task.require_frame_seconds(self.task)
            frames = len(features[stored[0]]) if stored else self._frames_in_headers(filename, keys)
            features[reader.FEATURE] = _audio_frames(self.audio_path(filename), frames)
        return {key: features[key] for key in keys}

    def kinds(self, filename: str, keys: tuple[str, ...]) -> dict[str, Kind]:
        """Width and type of the named features of a recording, as in `features`, from headers alone.

        Raises UserError for a features file that is missing or damaged, or lacks a feature.
        """
        stored = tuple(key for key in keys if key != reader.FEATURE)
        headers = npz.npz_headers(self.features_path(filename), stored) if stored else {}
        kinds = {key: (shape[1] if len(shape) > 1 else 1, _stored_type(dtype).__name__)
                 for key, (shape, dtype) in headers.items()}
        return kinds | ({reader.FEATURE: (task.FRAME_SAMPLES, "int16")} if reader.FEATURE in keys else {})

    def extractor(self, key: str) -> dict | None:
        """What computed a feature of all recordings, as identity.Extractor has it; None if that is unknown, or differs.

        It is in the features files. Older versions recorded it in a file for the whole directory.

        Raises UserError if a file is damaged.
        """
        origins = [provenance.origins.get(key) for keys, provenance in self._provenance if key in keys]
        if not any(origins):
            return self._older_extractors.get(key)
        extractors = [origin and origin.model_dump(exclude_unset=True, exclude={provenance_lib.FROM_FEATURES})
                      for origin in origins]
        return extractors[0] if extractors.count(extractors[0]) == len(self.filenames) else None

    @functools.cached_property
    def _provenance(self) -> list[tuple[set[str], provenance_lib.Provenance]]:
        paths = map(self.features_path, self.filenames)
        return [provenance_lib.read(path) for path in paths if os.path.exists(path)]

    @functools.cached_property
    def _older_extractors(self) -> dict[str, dict]:
        path = self.path / EXTRACTORS
        if not os.path.lexists(path):
            return {}
        try:
            extractors = files.read_json(path, dict[str, identity.Extractor])
        except UserError as error:
            raise UserError(f"{error} Delete it, or extract the features again.") from error
        return {key: extractor.model_dump(exclude_unset=True) for key, extractor in extractors.items()}

    def _frames_in_headers(self, filename: str, keys: tuple[str, ...]) -> int | None:
        stored = tuple(key for key in keys if key != reader.FEATURE)
        features, labels = self.features_path(filename), self.labels_path(filename)
        if stored and os.path.exists(features):
            return _rows(features, stored)
        if os.path.exists(labels):  # before unrequested features, which may belong to something else
            return _rows(labels, self.task.classes)
        return _rows(features, None) if os.path.exists(features) else None

    def _stored_features(self, filename: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        path = self.features_path(filename)
        arrays = npz.read_npz(path, keys)
        features = {}
        for key, value in arrays.items():
            value = value[:, None] if value.ndim == 1 else value
            if value.ndim != 2 or value.dtype.kind not in NUMBERS or 0 in value.shape:
                raise UserError(f"{path}: {key!r} must be numbers of shape (frames, width), "
                                f"not {value.dtype} {value.shape}.")
            with np.errstate(over="ignore"):  # float64 values beyond float32 become infinity, which is an error below
                value = value.astype(_stored_type(value.dtype))
            if not np.isfinite(value).all():
                raise UserError(f"{path}: {key!r} holds NaN or infinity, first in frame "
                                f"{int(np.argmin(np.isfinite(value).all(axis=1)))}.")
            features[key] = value
        lengths = {key: len(value) for key, value in features.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: features differ in their number of frames: {lengths}.")
        return features

    def votes(self, filename: str) -> np.ndarray:
        """The fraction of annotators that marked each frame: (T, C) float16, in the task's class order.

        Raises UserError that names the file for anything missing, unreadable, misshapen or outside 0 to 1.
        """
        path = self.labels_path(filename)
        arrays = npz.read_npz(path, self.task.classes)
        columns = []
        for label, marks in arrays.items():
            marks = marks[:, None] if marks.ndim == 1 else marks
            if marks.ndim != 2 or 0 in marks.shape or marks.dtype.kind not in NUMBERS:
                raise UserError(f"{path}: {label!r} must be 0/1 of shape (frames, annotators), "
                                f"not {marks.dtype} {marks.shape}.")
            if not ((marks >= 0) & (marks <= 1)).all():
                raise UserError(f"{path}: {label!r} holds NaN or a value outside 0 to 1.")
            votes = marks.mean(axis=1, dtype=np.float64).astype(np.float16)
            # Keeps small fractions above 0 where any annotator marked the frame.
            columns.append(np.maximum(votes, np.where(marks.any(axis=1), SMALLEST_VOTE, 0)))
        lengths = {label: len(column) for label, column in zip(self.task.classes, columns)}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: classes differ in their number of frames: {lengths}.")
        return np.stack(columns, axis=1)


def read_layout(path: str | os.PathLike, task: Task | None = None) -> Layout:
    """Opens a directory in MLPC layout; `task` overrides the directory's own costs.json.

    Raises UserError if there is no such directory or no usable metadata.csv.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"There is no directory {path}.")
    rows = files.read_csv(path / "metadata.csv", ("filename",))
    filenames = tuple(dict.fromkeys(row["filename"] for row in rows.values()))
    if not filenames:
        raise UserError(f"{path / 'metadata.csv'} lists no recordings.")
    stems: dict[str, str] = {}
    for filename in filenames:
        if not _stem(filename) or pathlib.PurePath(filename).name != filename:
            raise UserError(f"{path / 'metadata.csv'}: {filename!r} is not a plain file name.")
        other = stems.setdefault(_stem(filename), filename)
        if other != filename:
            raise UserError(f"{path / 'metadata.csv'}: {other!r} and {filename!r} would share the same features file.")
    if task is None:
        costs = path / "costs.json"
        task = read_task(costs) if os.path.lexists(costs) else MLPC_2025
    return Layout(path, filenames, task)


def read_splits(layout: Layout, split_seed: int | None = None) -> dict[str, tuple[str, ...]]:
    """Recordings of each split: from splits.csv, or the report's 60 / 20 / 20 split without that file.

    Args:
      layout: the directory.
      split_seed: seed of a random split that ignores splits.csv; 42 gives the split of the report.

    Raises:
      UserError: splits.csv has an unknown split or recording, a recording in two splits, or lacks a recording.
    """
    path = layout.path / "splits.csv"
    if split_seed is None and os.path.lexists(path):
        split_of: dict[str, str] = {}
        for line, row in files.read_csv(path, ("filename", "split")).items():
            filename, split = row["filename"], row["split"]
            if split not in SPLITS:
                raise UserError(f"{path}, line {line}: split {split!r} is not one of {list(SPLITS)}.")
            if split_of.setdefault(filename, split) != split:
                raise UserError(f"{path}, line {line}: {filename!r} is already in {split_of[filename]!r}; "
                                "a recording may be in only one split.")
        unknown = sorted(set(split_of) - set(layout.filenames))
        missing = sorted(set(layout.filenames) - set(split_of))
        if unknown or missing:
            raise UserError(f"{path} and metadata.csv disagree: not in metadata.csv: {unknown[:5]}, "
                            f"without a split: {missing[:5]}.")
        return {split: tuple(f for f in layout.filenames if split_of[f] == split) for split in SPLITS}

    if len(layout.filenames) < 3:
        raise UserError(f"{layout.path} has too few recordings to split: {len(layout.filenames)}.")
    seed = 42 if split_seed is None else split_seed
    if not 0 <= seed < 2**32:
        raise UserError(f"--split_seed = {seed} must be at least 0 and below 2**32.")
    train, rest = _split(layout.filenames, 0.4, seed)
    validation, test = _split(rest, 0.5, seed)
    return {"train": train, "validation": validation, "test": test}


def _split(names: tuple[str, ...], share: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As sklearn.model_selection.train_test_split(names, test_size=share, random_state=seed), which the report used."""
    order = np.random.RandomState(seed).permutation(len(names))
    second, first = np.split(order, [math.ceil(share * len(names))])
    return tuple(names[i] for i in first), tuple(names[i] for i in second)


def _stem(filename: str) -> str:
    return pathlib.PurePath(filename).stem


def _stored_type(dtype: np.dtype) -> type:
    return np.float16 if dtype == np.float16 else np.float32


def _rows(path: pathlib.Path, keys: tuple[str, ...] | None) -> int:
    """Rows of the first array with rows among `keys`; without keys, the most common number. Raises UserError."""
    shapes = [shape for shape in npz.npz_shapes(path, keys).values() if shape]
    if not shapes:
        raise UserError(f"{path} holds no array with rows.")
    if keys is None:
        # Features are two-dimensional; other arrays may hold anything.
        shapes = [shape for shape in shapes if len(shape) == 2] or shapes
        counts = collections.Counter(shape[0] for shape in shapes)
        return max(counts, key=lambda rows: (counts[rows], rows))
    return shapes[0][0]


def _audio_frames(path: pathlib.Path, frames: int | None) -> np.ndarray:
    """Reads the recording at `path`, truncated or padded by at most one frame to `frames`; None for any length."""
    rows = reader.frames(path)
    if frames is None or frames == len(rows):
        return rows
    if not frames or abs(frames - len(rows)) > 1:
        raise UserError(f"{path} has {len(rows)} frames, but the features or labels of the recording have {frames}.")
    return rows[:frames] if frames < len(rows) else np.pad(rows, [(0, 1), (0, 0)])


def read_task(path: Path) -> Task:
    """Reads the task in a task.json or costs.json file. Raises UserError if that fails."""
    text = read_text(path, MAX_FILE_BYTES)
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return task_from_json(text, name=printable(folder), where=path)
