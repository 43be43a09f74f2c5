"""Tables of events: CSV and TSV with a header, Audacity's labels and Raven's selection tables."""

import functools
import itertools
import math
import pathlib
import posixpath
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from sedjax.audio import reader
from sedjax.core import bounds, files
from sedjax.core.errors import UserError, printable

# Names by which a table may call a column; --columns gives another.
COLUMNS = {"filename": ("filename",), "onset": ("onset", "Begin Time (s)"), "offset": ("offset", "End Time (s)"),
           "label": ("label", "event_label", "text"), "annotator": ("annotator",), "split": ()}
REQUIRED = ("onset", "offset", "label")
SUFFIXES = (".csv", ".tsv", ".txt")
MOST_COLUMNS = 200
MOST_ROWS = 1_000_000  # of all tables together; AudioSet's strong labels have 0.9 million
MOST_SECONDS = 1e9
# Raven's times count from the first of the files that are open; these columns say where in its own file an event is.
RAVEN_FILE, START = "Begin File", "File Offset (s)"


class Row(NamedTuple):
    """One event, or a recording that a table lists without one.

    Attributes:
      recording: the recording that `name` means; None if there is none.
      name: the name in the table, or that of the table.
      annotator: empty if the table has none, None if nobody is known to have listened.
      label: class; empty if the row is no event.
      onset, offset: seconds.
      split: empty if the table has none.
      table, line: where the row is.
    """

    recording: str | None
    name: str
    annotator: str | None
    label: str
    onset: float
    offset: float
    split: str
    table: pathlib.Path
    line: int

    @property
    def where(self) -> str:
        return f"{printable(self.table)}, line {self.line}"


def read_tables(place: pathlib.Path, columns: Mapping[str, str],
                recording_of: Callable[[str], str | None]) -> list[Row]:
    """The rows of a table, or of all tables in a folder.

    Args:
      place: a file, or a folder of files with one of SUFFIXES.
      columns: names of columns by key of COLUMNS, where they differ from those.
      recording_of: the recording that a name means, or None.

    Raises:
      UserError: a table is unreadable, lacks a column, or has a row that is not an event.
    """
    paths = [place]
    if place.is_dir():
        paths = sorted(path for path in place.iterdir()
                       if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        if not paths:
            raise UserError(f"There are no tables of events in {printable(place)}: no file has one of the suffixes "
                            f"{', '.join(SUFFIXES)}.")
    rows: list[Row] = []
    for path in paths:
        for row in _rows(path, columns, recording_of):
            rows.append(row)
            if len(rows) > MOST_ROWS:
                raise UserError(f"{row.where}: {printable(place)} has more than {MOST_ROWS:,} rows: label the "
                                "recordings in several directories.")
    return rows


def finder(recordings: Collection[str]) -> Callable[[str], str | None]:
    """A function that finds a recording by its name: in any folder, without a suffix, or with one of other audio."""
    by_stem = {pathlib.PurePath(recording).stem: recording for recording in recordings}

    @functools.cache
    def recording_of(name: str) -> str | None:
        last = pathlib.PurePath(folder_and_name(name)[1])
        stem = last.stem if last.suffix.lower() in reader.SUFFIXES else last.name
        return next((known for known in (name, last.name) if known in recordings), by_stem.get(stem))

    return recording_of


@functools.lru_cache(1 << 16)
def folder_and_name(path: str) -> tuple[str, str]:
    """Folder and name of a file, given with slashes or backslashes."""
    return posixpath.split(posixpath.normpath(path.replace("\\", "/")))


def _rows(path: pathlib.Path, columns: Mapping[str, str], recording_of: Callable[[str], str | None]) -> Iterator[Row]:
    delimiter = _delimiter(path)
    table = files.csv_rows(path, files.TABLE_BYTES, delimiter)
    line, header = next(table, (0, []))
    header = [name.strip() for name in header]
    own_name = re.sub(r"(\.Table\.\d+)?\.selections$", "", path.stem)  # as Raven calls its tables
    own = recording_of(own_name)
    if not header and own is None:
        raise UserError(f"{printable(path)} is empty.")
    has_header = any(_number(text, delimiter) is None for text in header[:2])
    if has_header:
        at = _positions(header, columns, f"{printable(path)}, line {line}", own_name if own is None else None)
    else:
        table = itertools.chain([(line, header)], table)
        header, at = list(REQUIRED), {role: i for i, role in enumerate(REQUIRED)}
    if "filename" not in at and own is not None:
        yield Row(own, own_name, None, "", 0.0, 0.0, "", path, line)
    for line, fields in table:
        fields = [field.strip() for field in fields]
        if not any(fields) or (not has_header and fields[0] == "\\"):  # Audacity's range of frequencies
            continue
        try:
            if len(fields) != len(header):
                raise UserError(f"{len(fields)} columns instead of {len(header)}.")
            value = {"filename": own_name, "annotator": "", "split": ""} | {role: fields[i] for role, i in at.items()}
            onset, offset = _times(value, delimiter)
        except UserError as error:
            raise UserError(f"{printable(path)}, line {line}: {error}") from error
        name, annotator, label, split = (sys.intern(value[key]) for key in ("filename", "annotator", "label", "split"))
        yield Row(recording_of(name), name, annotator, label, onset, offset, split, path, line)


def _times(value: Mapping[str, str], delimiter: str) -> tuple[float, float]:
    """Onset and offset of the event in a row, 0 if there is none. Raises UserError for one that is not complete."""
    if not value["filename"]:
        raise UserError("the filename is empty.")
    if not (value["label"] or value["onset"] or value["offset"]):
        return 0.0, 0.0
    onset, offset = _seconds(value, "onset", delimiter), _seconds(value, "offset", delimiter)
    if not value["label"]:
        raise UserError("the event has no label.")
    if START in value:
        start = _seconds(value, START, delimiter)
        return start, start + offset - onset
    return onset, offset


def _positions(header: list[str], columns: Mapping[str, str], where: str, no_recording: str | None) -> dict[str, int]:
    """Position of each column by key of COLUMNS, and of START.

    Raises UserError for a missing column; that of the filename may be missing unless `no_recording`, the name of the
    table, is given.
    """
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{where}: {len(header):,} columns, but a table of events has at most {MOST_COLUMNS}.")
    at, by_file = {}, {}
    if {RAVEN_FILE, START} <= set(header):
        at[START], by_file = header.index(START), {"filename": RAVEN_FILE}
    for role, names in COLUMNS.items():
        given = {**by_file, **columns}.get(role)
        names = names if given is None else (given,)
        present = [name for name in header if name in names]
        if len(present) > 1:
            raise UserError(f"{where}: the columns {' and '.join(map(repr, present))} may both be the {role}: choose "
                            f"one with --columns={role}=NAME.")
        if present:
            at[role] = header.index(present[0])
        elif given is not None or role in REQUIRED or (role == "filename" and no_recording is not None):
            called = f", and no recording is called {no_recording!r}" if role == "filename" and given is None else ""
            known = {name[: bounds.SHOWN_CHARACTERS] for name in header if name}
            raise UserError(f"{where}: there is no column {' or '.join(map(repr, names))}{called}; "
                            f"--columns={role}=NAME says which is the {role}{bounds.unknown(names[0], known)}")
    return at


def _delimiter(path: pathlib.Path) -> str:
    """A tab, a semicolon or a comma: the first of them that the first row has."""
    with files.open_file(path, files.TABLE_BYTES) as file:
        first = next(iter(file.read(1 << 16).decode("utf-8", "replace").lstrip().splitlines()), "")
    return next((delimiter for delimiter in "\t;" if delimiter in first), ",")


def _seconds(value: Mapping[str, str], role: str, delimiter: str) -> float:
    number = _number(value[role], delimiter)
    if number is None or abs(number) > MOST_SECONDS:
        raise UserError(f"the {role} {bounds.shown(value[role])} is not a number of seconds.")
    return number


def _number(text: str, delimiter: str) -> float | None:
    """The number that a field holds, if any; where commas do not delimit fields, one may be the decimal point."""
    try:
        number = float(text if delimiter == "," else text.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None
