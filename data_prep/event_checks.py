"""What is odd in tables of events: rows that cannot be used, and what looks like a mistake."""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from sedjax.core import bounds, errors
from sedjax.core.errors import UserError
from sedjax.core.task import Task

from .event_tables import Row, folder_and_name

FEW_EVENTS = 10
SHORTEST_SECONDS = 0.01  # shorter events, and ends further behind the recording's, look like mistakes
SHOWN_NAMES = 10


def known_rows(rows: list[Row], events: pathlib.Path, audio: pathlib.Path) -> tuple[list[Row], list[str]]:
    """The rows whose recordings are there, each once, and notes on the others.

    Raises UserError if there are none, or if files of different folders would be the same recording.
    """
    known, unknown = [], []
    for row in rows:
        (known if row.recording else unknown).append(row)
    if not known:
        first = f"first {bounds.shown(unknown[0].name)} in {unknown[0].where}" if unknown else "as it has no rows"
        raise UserError(f"{errors.printable(events)} names no recording in {errors.printable(audio)}, {first}.")
    once: dict[tuple, Row] = {}
    firsts: dict[str, Row] = {}
    for row in known:
        once.setdefault(row[:7], row)  # all but where it is
        first = firsts.setdefault(row.recording, row)
        if folder_and_name(first.name)[0] != folder_and_name(row.name)[0]:
            raise UserError(f"{row.where}: {bounds.shown(row.name)} and {bounds.shown(first.name)} would be the same "
                            "recording: give the files of different folders different names.")
    notes = [_note("Rows name recordings that are not there, and are left out", unknown)] if unknown else []
    if len(once) < len(known):
        notes.append(f"Rows repeat an earlier one ({len(known) - len(once):,}).")
    return list(once.values()), notes


def label_notes(rows: list[Row], task: Task) -> list[str]:
    """Notes on spellings, on labels that are no class, and on classes with few events."""
    notes, counts = [], collections.Counter(row.label for row in rows if row.label)
    spellings: dict[str, list[str]] = {}
    for label in dict.fromkeys([*task.classes, *sorted(counts)]):
        spellings.setdefault("".join(label.casefold().split()), []).append(label)
    notes += [f"{', '.join(map(repr, same))} differ only in case or blanks, but are different labels."
              for same in spellings.values() if len(same) > 1]
    if others := counts.keys() - set(task.classes):
        notes.append(_note(f"Events of labels that are no class are left out: {_names(others)}",
                           [row for row in rows if row.label in others]))
    if few := [label for label in task.classes if counts[label] < FEW_EVENTS]:
        notes.append(f"Classes have fewer than {FEW_EVENTS} events: "
                     f"{_names(f'{label} ({counts[label]})' for label in few)}.")
    return notes


def events_by_recording(rows: list[Row], seconds: Mapping[str, float],
                        task: Task) -> tuple[dict[str, list[Row]], list[str]]:
    """The events of the task's classes in each recording of `seconds`, by onset, and notes on odd ones.

    Events that are outside their recording, or do not end after they begin, are left out.
    """
    classes, odd = set(task.classes), collections.defaultdict(list)
    events: dict[str, list[Row]] = {name: [] for name in seconds}
    for row in rows:
        if row.label not in classes or row.recording not in seconds:
            continue
        end = seconds[row.recording]
        if row.onset >= row.offset:
            odd["Events do not end after they begin, and are left out"].append(row)
        elif row.onset >= end or row.offset <= 0:
            odd["Events are outside their recordings, and are left out"].append(row)
        else:
            events[row.recording].append(row)
            if row.onset < 0 or row.offset > end + SHORTEST_SECONDS:
                odd["Events reach beyond their recordings, and are cut"].append(row)
            if row.offset - row.onset < SHORTEST_SECONDS:
                odd[f"Events are shorter than {SHORTEST_SECONDS} s"].append(row)
    for listed in events.values():
        listed.sort(key=lambda row: row.onset)
        end_of: dict[tuple, float] = {}
        for row in listed:
            key = row.annotator, row.label
            if row.onset < end_of.get(key, row.onset):
                odd["Events overlap others of the same class and annotator"].append(row)
            end_of[key] = max(row.offset, end_of.get(key, row.offset))
    return events, [_note(what, found) for what, found in odd.items()]


def _note(what: str, rows: Sequence[Row]) -> str:
    return f"{what} ({len(rows):,}), first {rows[0].where}."


def _names(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
