import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sedjax.core.errors import UserError
from sedjax.inference import summary
from sedjax.inference.detection import Event

DAWN = datetime.datetime(2024, 1, 31, 5, 30)


def test_an_hour_with_events_and_one_without():
    events = {"a": (Event(10, 40, "Dog", 0.9), Event(50, 80, "Dog", 0.8), Event(1790, 1820, "Siren", 0.7)), "b": ()}
    rows = summary.hourly(events, {"a": 2400.0, "b": 60.0}, {"a": DAWN, "b": DAWN + datetime.timedelta(hours=3)})
    assert rows == [("2024-01-31T05:00", "30.00", "Dog", 2, "1.000"),
                    ("2024-01-31T05:00", "30.00", "Siren", 1, "0.500"),
                    ("2024-01-31T06:00", "10.00", "", 0, "0.000"), ("2024-01-31T08:00", "1.00", "", 0, "0.000")]


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(1, 1e5), st.lists(st.floats(0, 1), max_size=5)), max_size=5))
def test_nothing_is_lost(recordings):
    names = list(map(str, range(len(recordings))))
    starts = {name: DAWN + datetime.timedelta(seconds=late) for name, (late, _, _) in zip(names, recordings)}
    seconds = {name: length for name, (_, length, _) in zip(names, recordings)}
    events = {name: [Event(share * length * 0.9, share * length * 0.9 + 0.1, "Dog", 1.0) for share in shares]
              for name, (_, length, shares) in zip(names, recordings)}
    rows = summary.hourly(events, seconds, starts)
    assert sum(row[3] for row in rows) == sum(map(len, events.values()))
    recorded = {row[0]: float(row[1]) for row in rows}
    assert sum(recorded.values()) == pytest.approx(sum(seconds.values()) / 60, abs=0.01 * len(recorded) + 1e-6)


def test_the_start_of_a_recording_by_its_name_or_by_hand():
    assert summary.starts_of(["20240131_053000.wav", "x.wav"], DAWN) == {"20240131_053000.wav": DAWN, "x.wav": DAWN}
    for names, start in ((["x.wav"], None), (["x.wav", "y.wav"], DAWN)):
        with pytest.raises(UserError, match=r"x\.wav.*--start"):
            summary.starts_of(names, start)


def test_classes_and_recordings():
    events = {"a.wav": (Event(0, 60, "Dog", 1.0), Event(70, 100, "Siren", 1.0)), "b.wav": ()}
    assert [line.split() for line in summary.text(events).splitlines()] == [
        ["Dog", "1", "events", "1.0", "min"], ["Siren", "1", "events", "0.5", "min"],
        ["Most", "events:", "a.wav", "(2),", "b.wav", "(0)."]]
    assert summary.text({"a.wav": ()}) == ""
