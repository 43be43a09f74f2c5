"""Event tables in DCASE format: tab-separated, one row per event, or per recording without events."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sedjax.core import grid
from sedjax.core.errors import UserError, printable
from sedjax.core.files import TABLE_BYTES, csv_rows, write_csv
from sedjax.core.task import Task

EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")
MOST_SECONDS = 1e7  # 115 days; no recording is longer
RESOLUTION_SECONDS = 1e-6  # smaller differences are rounding errors


class Event(NamedTuple):
    """A sound event: `onset` and `offset` in seconds from the start of the recording, and the class."""

    onset: float
    offset: float
    label: str


Events = Mapping[str, Sequence[Event]]  # events by filename


def frame_events(active: np.ndarray, task: Task) -> list[Event]:
    """Runs of active frames (T, C) bool as events, by onset, then in class order."""
    events = [Event(round(first * task.frame_seconds, 7), round(end * task.frame_seconds, 7), task.classes[label])
              for label, first, end in grid.runs(active)]
    return sorted(events, key=lambda event: event.onset)


def read_events(path: str | os.PathLike, task: Task) -> dict[str, list[Event]]:
    """The events of each recording in an event table, recordings and events in the order of their rows.

    Columns may be in any order; columns other than EVENT_COLUMNS are ignored. A row with only a filename stands for a
    recording without events.

    Raises:
      UserError: a column is missing, a time or class is invalid, or two events of a class overlap or touch in a
        recording; the message names file, line and column.
    """
    where, rows = printable(path), csv_rows(path, TABLE_BYTES, delimiter="\t")
    line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{where} is empty.")
    for column in EVENT_COLUMNS:
        if header.count(column) != 1:
            fault = "occurs more than once" if column in header else "is missing"
            raise UserError(f"{where}, line {line}: the column {column!r} {fault}; an event table has the "
                            f"tab-separated columns {', '.join(EVENT_COLUMNS)}.")
    at = [header.index(column) for column in EVENT_COLUMNS]
    classes, events = set(task.classes), {}
    lines: dict[tuple[str, str], list[tuple[Event, int]]] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{where}, line {line}: {len(row)} fields, but the header has {len(header)}.")
        filename, onset, offset, label = (row[column] for column in at)
        if not filename:
            raise UserError(f"{where}, line {line}, column 'filename': the filename is empty.")
        events.setdefault(filename, [])
        if not (onset or offset or label):
            continue
        if label not in classes:
            raise UserError(f"{where}, line {line}, column 'event_label': {label!r} is not a class of the task "
                            f"{task.name!r}.")
        place = f"{where}, line {line}, column "
        event = Event(_seconds(onset, f"{place}'onset'"), _seconds(offset, f"{place}'offset'"), label)
        if event.offset - event.onset < RESOLUTION_SECONDS:
            raise UserError(f"{place}'offset': the event ends at {offset}, but starts at {onset}.")
        events[filename].append(event)
        lines.setdefault((filename, label), []).append((event, line))
    for (filename, label), placed in lines.items():
        placed.sort()
        for (event, first), (after, second) in itertools.pairwise(placed):
            if after.onset - event.offset < RESOLUTION_SECONDS:
                raise UserError(f"{where}, line {max(first, second)}: the event of {label!r} in {filename!r} overlaps "
                                f"or touches the one on line {min(first, second)}: merge them.")
    return events


def _seconds(text: str, place: str) -> float:
    try:
        if not text.isascii() or "_" in text:  # float accepts these, other programs do not
            raise ValueError
        seconds = float(text)
    except ValueError:
        raise UserError(f"{place}: {text!r} is not a number.") from None
    if not 0 <= seconds <= MOST_SECONDS:
        raise UserError(f"{place}: {text!r} is not between 0 and {MOST_SECONDS:,.0f} seconds.")
    return seconds


def write_events(path: str | os.PathLike, events: Events) -> None:
    """Writes an event table, with a row without onset, offset and class for a recording without events.

    Raises UserError if the file cannot be written.
    """
    rows: list[tuple[str, ...]] = [EVENT_COLUMNS]
    for filename, of_recording in events.items():
        rows += [(filename, grid.seconds_text(event.onset), grid.seconds_text(event.offset), event.label)
                 for event in of_recording] or [(filename, "", "", "")]
    write_csv(path, rows, "\t")
