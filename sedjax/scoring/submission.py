"""Submission files: one row per segment, one 0/1 column per class (SPEC section 2)."""

import array
import functools
import itertools
import os
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool

from sedjax.core import grid
from sedjax.core.bounds import twice
from sedjax.core.errors import UserError, printable
from sedjax.core.files import csv_rows, write_csv
from sedjax.core.task import OUTCOMES, Task
from sedjax.data.layout import Layout, read_splits
from sedjax.scoring import metrics

KEY_COLUMNS = ("filename", "onset")
VALUES = {"0": False, "1": True, "0.0": False, "1.0": True}

ONSETS = 1 << 16  # cached onset texts
MOST_SEGMENTS = 1 << 62  # fits into an array of 64-bit integers; no recording has as many
RECORDINGS_AT_ONCE = 10_000  # recordings whose segments are counted together

Segments = Mapping[str, Bool[np.ndarray, "_ class"]]  # active segments by filename


class _Submission(Mapping):
    """Segments of recordings as slices of one array: a million separate arrays would take half a gigabyte."""

    def __init__(self, index: dict[str, int], edges: np.ndarray, active: np.ndarray):
        """Recording `filename` has the segments active[edges[n] : edges[n + 1]] with n = index[filename]."""
        self._index, self._edges, self._active = index, edges, active

    def __getitem__(self, filename: str) -> np.ndarray:
        number = self._index[filename]
        return self._active[self._edges[number] : self._edges[number + 1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def read_submission(path: str | os.PathLike, task: Task) -> Segments:
    """The segments of each recording in a submission file: filename -> (S, C) bool, in the task's class order.

    Rows and columns may be in any order: a row is identified by its filename and onset, a column by its name.

    Raises:
      UserError: the file violates SPEC section 2; the message names file, line and column.
    """
    where, rows = printable(path), csv_rows(path)
    line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{where} is empty.")
    _check_header(header, task, where=f"{where}, line {line}")
    filename_at, onset_at = (header.index(column) for column in KEY_COLUMNS)
    classes_at = [header.index(name) for name in task.classes]
    segment_of = functools.lru_cache(ONSETS)(functools.partial(_segment, task=task))  # many rows share few onsets

    index: dict[str, int] = {}  # number of each recording
    recordings, segments, lines, active = array.array("q"), array.array("q"), array.array("q"), bytearray()
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{where}, line {line}: {len(row)} fields, but the header has {len(header)}"
                            + (f"; the column {header[len(row)]!r} has no value." if len(row) < len(header) else "."))
        try:
            segments.append(segment_of(row[onset_at]))
        except ValueError as error:
            raise UserError(f"{where}, line {line}, column 'onset': {error}.") from None
        if not row[filename_at]:
            raise UserError(f"{where}, line {line}, column 'filename': the filename is empty.")
        recordings.append(index.setdefault(row[filename_at], len(index)))
        lines.append(line)
        try:
            active.extend([VALUES[row[at]] for at in classes_at])
        except KeyError as error:
            name = next(name for name, at in zip(task.classes, classes_at) if row[at] not in VALUES)
            raise UserError(f"{where}, line {line}, column {name!r}: {error.args[0]!r} is neither 0 nor 1.") from None
    if not index:
        raise UserError(f"{where} has a header but no rows.")

    recording, segment = np.frombuffer(recordings, np.int64), np.frombuffer(segments, np.int64)
    order = np.lexsort((segment, recording))  # rows of the same segment stay in line order
    recording, segment = recording[order], segment[order]
    edges = np.searchsorted(recording, np.arange(len(index) + 1))
    expected = np.arange(len(segment)) - edges[recording]
    if (wrong := np.flatnonzero(segment != expected)).size:
        first = wrong[0]
        onset = grid.onset_text(int(min(segment[first], expected[first])), task)
        place = f"{where}, line {lines[order[first]]}, column 'onset': {list(index)[recording[first]]!r}"
        if segment[first] > expected[first]:
            raise UserError(f"{place} has no row for onset {onset}.")
        raise UserError(f"{place} at {onset} is already on line {lines[order[first - 1]]}.")
    return _Submission(index, edges, np.frombuffer(active, bool).reshape(len(order), -1)[order])


def write_submission(path: str | os.PathLike, task: Task, segments: Segments) -> None:
    """Writes the (S, C) bool segments of each recording, recordings in the order of `segments`.

    Raises UserError if the file cannot be written, ValueError for an array that is not (S >= 1, C) bool.
    """
    for filename, active in segments.items():
        if active.dtype != bool or active.ndim != 2 or active.shape[1] != len(task.classes) or not len(active):
            raise ValueError(f"{filename!r}: expected a bool array (segments, {len(task.classes)}), "
                             f"not {active.dtype} {active.shape}.")
    rows = ((filename, grid.onset_text(segment, task), *values) for filename, active in segments.items()
            for segment, values in enumerate(active.astype(int).tolist()))
    write_csv(path, itertools.chain([(*KEY_COLUMNS, *task.classes)], rows))


def lengths(segments: Segments) -> dict[str, int]:
    """Number of segments of each recording."""
    return {filename: len(active) for filename, active in segments.items()}


def require_same_segments(predicted: Mapping[str, int], expected: Mapping[str, int], where_predicted: str,
                          where_expected: str, task: Task) -> None:
    """Raises UserError unless both have the same recordings with the same number of segments.

    Args:
      predicted: predicted number of segments of each recording.
      expected: true number of segments of each recording.
      where_predicted, where_expected: names of the two in the error, such as their paths.
      task: task that defines the onset of the first segment that is missing or extra.
    """
    missing = [filename for filename in expected if filename not in predicted]
    unknown = [filename for filename in predicted if filename not in expected]
    if missing:
        raise UserError(f"{where_predicted} lacks {len(missing):,} of the {len(expected):,} recordings of "
                        f"{where_expected}, first {missing[0]!r}"
                        + (f", and names {len(unknown):,} others, first {unknown[0]!r}." if unknown else "."))
    if unknown:
        raise UserError(f"{where_predicted} names {len(unknown):,} recordings that {where_expected} lacks, "
                        f"first {unknown[0]!r}.")
    for filename, segments in expected.items():
        if predicted[filename] != segments:
            kind = "missing" if predicted[filename] < segments else "extra"
            onset = grid.onset_text(min(predicted[filename], segments), task)
            raise UserError(f"The number of segments of {filename!r} is {predicted[filename]} in {where_predicted} but "
                            f"{segments} in {where_expected}; the first {kind} one starts at {onset}.")


def _check_header(header: list[str], task: Task, where: str) -> None:
    expected = (*KEY_COLUMNS, *task.classes)
    columns = set(header)
    missing = [column for column in expected if column not in columns]
    unknown = [column for column in header if column not in expected]
    if missing:
        raise UserError(f"{where}: the column {missing[0]!r} of the task {task.name!r} is missing"
                        + (f", and {unknown[0]!r} is unknown." if unknown else "."))
    if (repeated := twice(header)) is not None:
        raise UserError(f"{where}: the column {repeated!r} occurs more than once.")
    if unknown:
        raise UserError(f"{where}: the column {unknown[0]!r} is not a class of the task {task.name!r}.")


def _segment(onset: str, task: Task) -> int:
    """The index of the segment that starts at an onset, at most MOST_SEGMENTS. Raises ValueError for a bad onset."""
    if not onset.isascii() or "_" in onset:  # float accepts these, other programs do not
        raise ValueError(f"{onset!r} is not a number")
    try:
        seconds = float(onset)
    except ValueError:
        raise ValueError(f"{onset!r} is not a number") from None
    segment = grid.onset_segment(seconds, task)
    if segment is None:
        starts = ", ".join(grid.onset_text(i, task) for i in range(3))
        raise ValueError(f"no segment starts at {onset!r}; they start at {starts} and so on")
    return min(segment, MOST_SEGMENTS)


def score_submissions(predictions: Segments, truth: Segments, task: Task, where_predictions: str = "the prediction",
                      where_truth: str = "the ground truth") -> metrics.Score:
    """The score of predicted (S, C) bool segments against the true ones, matched by filename.

    Raises UserError, with the names of both sides, unless they have the same recordings and numbers of segments.
    """
    require_same_segments(lengths(predictions), lengths(truth), where_predictions, where_truth, task)
    counts = np.empty((len(truth), len(task.classes), len(OUTCOMES)), np.int32)
    filenames = iter(truth)
    for first in range(0, len(truth), RECORDINGS_AT_ONCE):
        block = list(itertools.islice(filenames, RECORDINGS_AT_ONCE))
        predicted, actual = ([segments[filename] for filename in block] for segments in (predictions, truth))
        starts = np.cumsum([0, *map(len, actual[:-1])])
        counts[first : first + len(block)] = metrics.recording_counts(
            np.concatenate(predicted), np.concatenate(actual), starts)
    return metrics.score(counts, task)


def expected_segments(layout: Layout, split: str | None = None) -> dict[str, int]:
    """Number of segments of each recording of a directory in MLPC layout, or of one of its splits.

    It comes from the headers of the labels or features files, or else from the audio.
    Raises UserError that names a recording without any of them, or a damaged file.
    """
    filenames = read_splits(layout)[split] if split else layout.filenames
    return {filename: grid.num_segments(layout.num_frames(filename), layout.task) for filename in filenames}
