"""Submission files: one row per segment, one 0/1 column per class (SPEC section 2)."""

import csv
import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool

from sedjax import grid
from sedjax.errors import UserError
from sedjax.files import atomic_output, csv_rows
from sedjax.task import Task

KEY_COLUMNS = ("filename", "onset")
VALUES = {"0": False, "1": True, "0.0": False, "1.0": True}

Segments = dict[str, Bool[np.ndarray, "_ class"]]  # of each recording by its filename


def read_submission(path: str | os.PathLike, task: Task) -> Segments:
    """The segments of each recording in a submission file: filename -> (S, C) bool, in the task's class order.

    Rows and columns may be in any order: a row is known by its filename and onset, a column by its name.

    Raises:
      UserError: it names the file, line and column of whatever is not as SPEC section 2 has it.
    """
    path = os.fspath(path)
    lines = csv_rows(path)
    line, header = next(lines, (1, None))
    if header is None:
        raise UserError(f"{path} is empty.")
    _check_header(header, task, where=f"{path}, line {line}")
    filename_at, onset_at = (header.index(column) for column in KEY_COLUMNS)
    classes_at = [header.index(name) for name in task.classes]

    found: dict[str, dict[int, tuple[int, list[bool]]]] = {}  # filename -> segment -> (line, values)
    segment_of: dict[str, int] = {}  # by the text of the onset: few texts, many rows
    for line, row in lines:
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: {len(row)} fields where the header has {len(header)}"
                            + (f"; the column {header[len(row)]!r} has no value." if len(row) < len(header) else "."))
        filename, onset = row[filename_at], row[onset_at]
        if onset not in segment_of:
            segment_of[onset] = _segment(onset, task, where=f"{path}, line {line}, column 'onset'")
        if not filename:
            raise UserError(f"{path}, line {line}, column 'filename': no file is named.")
        segments = found.setdefault(filename, {})
        segment = segment_of[onset]
        if segment in segments:
            raise UserError(f"{path}, line {line}, column 'onset': {filename!r} at {onset} is on "
                            f"line {segments[segment][0]} already.")
        try:
            segments[segment] = line, [VALUES[row[at]] for at in classes_at]
        except KeyError as error:
            name = next(name for name, at in zip(task.classes, classes_at) if row[at] not in VALUES)
            raise UserError(f"{path}, line {line}, column {name!r}: {error.args[0]!r} is neither 0 nor 1.") from None
    if not found:
        raise UserError(f"{path} has a header but no rows.")
    return {filename: _in_order(segments, filename, path, task) for filename, segments in found.items()}


def write_submission(path: str | os.PathLike, task: Task, segments: Segments) -> None:
    """Writes the (S, C) bool segments of each recording, recordings in the order of `segments`.

    Raises UserError if the file cannot be written, ValueError for an array that is not (S >= 1, C) bool.
    """
    for filename, active in segments.items():
        if active.dtype != bool or active.ndim != 2 or active.shape[1] != len(task.classes) or not len(active):
            raise ValueError(f"{filename!r}: (segments, {len(task.classes)}) bool expected, "
                             f"not {active.dtype} {active.shape}.")
    with atomic_output(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*KEY_COLUMNS, *task.classes))
        for filename, active in segments.items():
            writer.writerows((filename, grid.onset_text(segment, task), *values)
                             for segment, values in enumerate(active.astype(int).tolist()))


def require_same_segments(found: Mapping[str, int], expected: Mapping[str, int], where_found: str,
                          where_expected: str, task: Task) -> None:
    """Raises UserError unless both have the same recordings with the same number of segments.

    Args:
      found: number of segments of each recording, as predicted.
      expected: the same, as it should be.
      where_found: what to call the first in the error: its path.
      where_expected: what to call the second.
      task: gives the onset of the first segment that is missing or too much.
    """
    missing = [filename for filename in expected if filename not in found]
    unknown = [filename for filename in found if filename not in expected]
    if missing:
        raise UserError(f"{where_found} lacks {len(missing):,} of the {len(expected):,} recordings of "
                        f"{where_expected}, first {missing[0]!r}"
                        + (f", and names others ({len(unknown):,}), first {unknown[0]!r}." if unknown else "."))
    if unknown:
        raise UserError(f"{where_found} names recordings that {where_expected} does not ({len(unknown):,}), "
                        f"first {unknown[0]!r}.")
    for filename, segments in expected.items():
        if found[filename] != segments:
            what = "missing" if found[filename] < segments else "extra"
            onset = grid.onset_text(min(found[filename], segments), task)
            raise UserError(f"The number of segments of {filename!r} is {found[filename]} in {where_found} and "
                            f"{segments} in {where_expected}; the first {what} one starts at {onset}.")


def _check_header(header: list[str], task: Task, where: str) -> None:
    wanted = (*KEY_COLUMNS, *task.classes)
    missing = [column for column in wanted if column not in header]
    unknown = [column for column in header if column not in wanted]
    if missing:
        raise UserError(f"{where}: the column {missing[0]!r} of the task {task.name!r} is missing"
                        + (f", and {unknown[0]!r} is unknown." if unknown else "."))
    if repeated := [column for column in header if header.count(column) > 1]:
        raise UserError(f"{where}: the column {repeated[0]!r} is there twice.")
    if unknown:
        raise UserError(f"{where}: the column {unknown[0]!r} is not a class of the task {task.name!r}.")


def _segment(onset: str, task: Task, where: str) -> int:
    try:
        segment = grid.onset_segment(float(onset), task)
    except ValueError:
        raise UserError(f"{where}: {onset!r} is not a number.") from None
    if segment is None:
        starts = ", ".join(grid.onset_text(i, task) for i in range(3))
        raise UserError(f"{where}: no segment starts at {onset!r}; they start at {starts} and so on.")
    return segment


def _in_order(segments: dict[int, tuple[int, list[bool]]], filename: str, path: str, task: Task) -> np.ndarray:
    """The values of segments 0, 1, 2, ...: (S, C) bool. Raises UserError if one is missing between them."""
    if len(segments) <= max(segments):
        gap = next(i for i in range(len(segments)) if i not in segments)
        after = min(i for i in segments if i > gap)
        raise UserError(f"{path}, line {segments[after][0]}, column 'onset': {filename!r} goes on without a "
                        f"row for {grid.onset_text(gap, task)}.")
    return np.array([segments[i][1] for i in range(len(segments))], bool)
