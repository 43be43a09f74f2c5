"""Reads a directory in MLPC layout (SPEC section 3): recordings, features, audio, labels, splits."""

import collections
import dataclasses
import os
import pathlib

import numpy as np

from sedjax.audio import reader
from sedjax.core import files, npz, task
from sedjax.core.errors import Path, UserError, printable
from sedjax.core.files import MEBIBYTE, read_text
from sedjax.core.task import MLPC_2025, Task, task_from_json
from sedjax.data import identity

SPLITS = ("train", "validation", "test")
EXTRACTORS = "extractors.json"
NUMBERS = "biuf"  # kinds of arrays; complex ones would lose a part
SMALLEST_VOTE = np.finfo(np.float16).smallest_subnormal

@dataclasses.dataclass(frozen=True)
class Layout:
    """A directory in MLPC layout. Nothing is read before it is asked for.

    Attributes:
      path: the directory.
      filenames: unique recordings, in the order of metadata.csv.
      task: from costs.json, else MLPC 2025.
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
        """Frames of a recording, as the features `keys` have them.

        From the headers of its features file, or of its labels file if it has no features; for audio alone, and if no
        features are named, the labels come first. Without either the recording itself is read.

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

        Those of its features file are float16 or float32. "audio" is the recording itself, as audio.reader.frames reads
        it: (T, 1920) int16. T is that of the other features, else of the labels or of the features file, whose makers
        may have rounded the length otherwise: a frame more is cut off, a frame less is silence.

        Raises UserError that names the file for anything missing, unreadable, misshapen, not finite, or of another
        length.
        """
        stored = tuple(key for key in keys if key != reader.FEATURE)
        found = self._stored_features(filename, stored) if stored else {}
        if reader.FEATURE in keys:
            task.require_frame_seconds(self.task)
            frames = len(found[stored[0]]) if stored else self._frames_in_headers(filename, keys)
            found[reader.FEATURE] = _audio_frames(self.audio_path(filename), frames)
        return {key: found[key] for key in keys}

    def extractor(self, key: str) -> dict | None:
        """Parameters of what computed a feature of all recordings, of embeddings also the path; None if unknown.

        Raises UserError if the file that notes it is damaged.
        """
        path = self.path / EXTRACTORS
        if not os.path.lexists(path):
            return None
        try:
            found = files.read_json(path, dict[str, identity.Extractor])
        except UserError as error:
            raise UserError(f"{error} Delete it, or extract the features again.") from error
        return found[key].model_dump(exclude_unset=True) if key in found else None

    def _frames_in_headers(self, filename: str, keys: tuple[str, ...]) -> int | None:
        stored = tuple(key for key in keys if key != reader.FEATURE)
        features, labels = self.features_path(filename), self.labels_path(filename)
        if stored and os.path.exists(features):
            return _rows(features, stored)
        if os.path.exists(labels):  # before features that nobody asked for, which may be of something else
            return _rows(labels, self.task.classes)
        return _rows(features, None) if os.path.exists(features) else None

    def _stored_features(self, filename: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        path = self.features_path(filename)
        arrays = npz.read_npz(path, keys)
        found = {}
        for key, value in arrays.items():
            value = value[:, None] if value.ndim == 1 else value
            if value.ndim != 2 or value.dtype.kind not in NUMBERS or 0 in value.shape:
                raise UserError(f"{path}: {key!r} must be numbers of shape (frames, width), "
                                f"not {value.dtype} {value.shape}.")
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, an error of its own below
                value = value.astype(np.float16 if value.dtype == np.float16 else np.float32)
            if not np.isfinite(value).all():
                raise UserError(f"{path}: {key!r} holds NaN or infinity, first in frame "
                                f"{int(np.argmin(np.isfinite(value).all(axis=1)))}.")
            found[key] = value
        lengths = {key: len(value) for key, value in found.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: features differ in their number of frames: {lengths}.")
        return found

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
            # However few have marked a frame: some have.
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
    filenames = tuple(dict.fromkeys(row["filename"] for row in rows))
    if not filenames:
        raise UserError(f"{path / 'metadata.csv'} names no recording.")
    stems: dict[str, str] = {}
    for filename in filenames:
        if not _stem(filename) or pathlib.PurePath(filename).name != filename:
            raise UserError(f"{path / 'metadata.csv'}: {filename!r} is not a plain file name.")
        other = stems.setdefault(_stem(filename), filename)
        if other != filename:
            raise UserError(f"{path / 'metadata.csv'}: {other!r} and {filename!r} would share one features file.")
    if task is None:
        costs = path / "costs.json"
        task = read_task(costs) if os.path.lexists(costs) else MLPC_2025
    return Layout(path, filenames, task)


def read_splits(layout: Layout, split_seed: int | None = None) -> dict[str, tuple[str, ...]]:
    """Recordings of each split: from splits.csv, or the report's 60 / 20 / 20 split where there is none.

    Args:
      layout: the directory.
      split_seed: shuffles with this seed and ignores splits.csv; 42 gives the report's own split.

    Raises:
      UserError: splits.csv names an unknown split or recording, one recording twice, or not all of them.
    """
    path = layout.path / "splits.csv"
    if split_seed is None and os.path.lexists(path):
        split_of: dict[str, str] = {}
        for line, row in enumerate(files.read_csv(path, ("filename", "split")), start=2):
            filename, split = row["filename"], row["split"]
            if split not in SPLITS:
                raise UserError(f"{path}, line {line}: split {split!r} is none of {list(SPLITS)}.")
            if split_of.setdefault(filename, split) != split:
                raise UserError(f"{path}, line {line}: {filename!r} is in {split_of[filename]!r} already; "
                                "a recording may be in one split only.")
        unknown = sorted(set(split_of) - set(layout.filenames))
        missing = sorted(set(layout.filenames) - set(split_of))
        if unknown or missing:
            raise UserError(f"{path} and metadata.csv disagree: not in metadata.csv {unknown[:5]}, "
                            f"without a split {missing[:5]}.")
        return {split: tuple(f for f in layout.filenames if split_of[f] == split) for split in SPLITS}

    from sklearn.model_selection import train_test_split  # slow to import

    seed = 42 if split_seed is None else split_seed
    try:
        train, rest = train_test_split(list(layout.filenames), test_size=0.4, random_state=seed, shuffle=True)
        validation, test = train_test_split(rest, test_size=0.5, random_state=seed, shuffle=True)
    except ValueError as error:
        raise UserError(f"{layout.path} has too few recordings to split: {len(layout.filenames)}.") from error
    return {"train": tuple(train), "validation": tuple(validation), "test": tuple(test)}


def _stem(filename: str) -> str:
    return pathlib.PurePath(filename).stem


def _rows(path: pathlib.Path, keys: tuple[str, ...] | None) -> int:
    """Rows of the first array of `keys` that has any; of all arrays, those that most have. Raises UserError."""
    shapes = [shape for shape in npz.npz_shapes(path, keys).values() if shape]
    if not shapes:
        raise UserError(f"{path} holds no array with rows.")
    if keys is None:
        # Features have rows and columns; what has not may be a list of anything.
        shapes = [shape for shape in shapes if len(shape) == 2] or shapes
        counts = collections.Counter(shape[0] for shape in shapes)
        return max(counts, key=lambda rows: (counts[rows], rows))
    return shapes[0][0]


def _audio_frames(path: pathlib.Path, frames: int | None) -> np.ndarray:
    """The recording at `path` with `frames` frames, from which its own length differs by one at most; None for any."""
    rows = reader.frames(path)
    if frames is None or frames == len(rows):
        return rows
    if not frames or abs(frames - len(rows)) > 1:
        raise UserError(f"{path} has {len(rows)} frames, but the features or labels of the recording have {frames}.")
    return rows[:frames] if frames < len(rows) else np.pad(rows, [(0, 1), (0, 0)])
MAX_FILE_BYTES = 16 * MEBIBYTE


def read_task(path: Path) -> Task:
    """The task in a task.json or costs.json file. Raises UserError if it cannot be read."""
    text = read_text(path, MAX_FILE_BYTES)
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return task_from_json(text, name=printable(folder), where=path)
