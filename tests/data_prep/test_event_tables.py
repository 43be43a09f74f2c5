"""Tables of events: what is no event is an error with its line, and votes are those of a loop over frames."""

import csv
import pathlib
import tempfile

import numpy as np
import pytest
from events import SECONDS, frames
from hypothesis import given
from hypothesis import strategies as st
from sedjax.data_prep import event_checks, event_tables, labels
from sedjax.data_prep.event_tables import Row
from tiny import TINY_TASK

from sedjax.core.errors import UserError


@pytest.mark.parametrize(("header", "columns", "key"), [
    ("file,onset,offset,label", {}, "filename"), ("filename,onset,ofset,label", {}, "ofset"),
    ("filename,onset,offset,species", {}, "--columns=label=NAME"), ("filename,onset,offset,label,text", {}, "text"),
    ("filename,onset,offset,label", {"label": "lable"}, "did you mean label"),
    ("filename,onset,offset,label,label", {}, "label"),
])
def test_columns_that_are_missing_or_doubtful(header, columns, key, tmp_path):
    (tmp_path / "table.csv").write_text(header + "\n")
    with pytest.raises(UserError, match="table.csv, line 1") as error:
        event_tables.read_tables(tmp_path / "table.csv", columns, event_tables.finder(SECONDS))
    assert key in str(error.value)


@pytest.mark.parametrize(("row", "key"), [
    ("a.wav,x,1,Bell", "'x'"), ("a.wav,nan,1,Bell", "'nan'"), ("a.wav,0,1e400,Bell", "'1e400'"),
    ("a.wav,0,1_0,Bell", "'1_0'"), ("a.wav,,1,Bell", "onset"), ('a.wav,0,"1,5",Bell', "1,5"), ("a.wav,0,1,", "label"),
    (",0,1,Bell", "filename"), ("a.wav,0,1", "3 columns"), ("a.wav,0,1e10,Bell", "1e10"), ('a.wav,0,1,"Bell', "CSV"),
])
def test_rows_that_are_no_events(row, key, tmp_path):
    (tmp_path / "table.csv").write_text(f"filename,onset,offset,label\nb.wav,0,1,Bell\n{row}\n")
    with pytest.raises(UserError, match="table.csv, line 3") as error:
        event_tables.read_tables(tmp_path / "table.csv", {}, event_tables.finder(SECONDS))
    assert key in str(error.value)


def test_a_row_says_where_it_is():
    assert Row("a", "a", "", "Bell", 0.0, 1.0, "", pathlib.Path("t\n.csv"), 3).where == "t\\n.csv, line 3"


TIMES = st.integers(-200, 2500)  # milliseconds
EVENT = st.tuples(st.sampled_from(sorted(SECONDS)), TIMES, TIMES, st.sampled_from(TINY_TASK.classes),
                  st.sampled_from(["x", "y", "z"]))


@given(events=st.lists(EVENT, min_size=1, max_size=30), delimiter=st.sampled_from(",;\t"), comma=st.booleans())
def test_votes_of_random_tables(events, delimiter, comma):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "table"
        times = [(f"{onset / 1000}", f"{offset / 1000}") for _, onset, offset, _, _ in events]
        if comma and delimiter != ",":
            times = [(onset.replace(".", ","), offset.replace(".", ",")) for onset, offset in times]
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [("annotator", "label", "offset", "onset", "filename"),
                 *((event[4], event[3], time[1], time[0], event[0]) for event, time in zip(events, times))])
        rows = event_tables.read_tables(path, {}, event_tables.finder(SECONDS))
    marked, _ = event_checks.events_by_recording(rows, SECONDS, TINY_TASK)
    for name, seconds in SECONDS.items():
        listeners = sorted({event[4] for event in events if event[0] == name}) or [""]
        found = labels.marks(marked[name], listeners, len(frames(seconds)), TINY_TASK)
        for label in TINY_TASK.classes:
            for column, listener in enumerate(listeners):
                spans = [(onset / 1000, offset / 1000) for recording, onset, offset, of, who in events
                         if (recording, of, who) == (name, label, listener) and onset < min(offset, 1000 * seconds)]
                np.testing.assert_array_equal(found[label][:, column], frames(seconds, *spans))
