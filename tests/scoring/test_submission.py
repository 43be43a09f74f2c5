import csv
import random
import tempfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_TASK

from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, Task
from sedjax.scoring.submission import read_submission, require_same_segments, write_submission

HEADER = "filename,onset,Bell,Crow,Drum\n"

# What csv can carry: no control characters (a lone carriage return ends a row), no halves of a surrogate pair.
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)


@st.composite
def submissions(draw):
    classes = tuple(draw(st.lists(names.filter(lambda n: n not in ("filename", "onset")), min_size=1, max_size=5,
                                  unique=True)))
    # The task itself is made in the test: the checker of its annotations draws random numbers of its own, which
    # hypothesis forbids in here.
    task = {"name": "random", "classes": classes, "costs": ((0, 1, 0, 5),) * len(classes),
            "frame_seconds": draw(st.sampled_from([0.12, 0.1, 1 / 3])),
            "frames_per_segment": draw(st.sampled_from([1, 7, 10]))}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return task, {filename: rng.random((rng.integers(1, 30), len(classes))) < 0.3
                  for filename in draw(st.lists(names, min_size=1, max_size=4, unique=True))}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for filename, values in expected.items():
        assert found[filename].dtype == bool
        np.testing.assert_array_equal(found[filename], values)


@settings(max_examples=80, deadline=None)
@given(submissions())
def test_what_is_written_is_read_back(submission):
    task, segments = Task(**submission[0]), submission[1]
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        write_submission(file.name, task, segments)
        found = read_submission(file.name, task)
    assert_same(found, segments)
    assert list(found) == list(segments)


@settings(max_examples=40, deadline=None)
@given(submissions(), st.randoms(use_true_random=False))
def test_order_of_rows_and_columns_does_not_matter(submission, order):
    task, segments = Task(**submission[0]), submission[1]
    with tempfile.NamedTemporaryFile("r+", suffix=".csv", newline="", encoding="utf-8") as file:
        write_submission(file.name, task, segments)
        with open(file.name, newline="", encoding="utf-8") as written:
            header, *rows = csv.reader(written)
        order.shuffle(rows)
        columns = list(range(len(header)))
        order.shuffle(columns)
        with open(file.name, "w", newline="", encoding="utf-8") as shuffled:
            csv.writer(shuffled).writerows([[row[i] for i in columns] for row in [header, *rows]])
        assert_same(read_submission(file.name, task), segments)


def test_the_form_is_that_of_the_challenge(tmp_path):
    active = np.zeros((3, 10), bool)
    active[1, 0] = active[2, 9] = True
    write_submission(tmp_path / "s.csv", MLPC_2025, {"386984.mp3": active})
    assert (tmp_path / "s.csv").read_text() == (
        "filename,onset,Speech,Shout,Chainsaw,Jackhammer,Lawn Mower,Power Drill,Dog Bark,Rooster Crow,Horn Honk,Siren\n"
        "386984.mp3,0.0,0,0,0,0,0,0,0,0,0,0\n"
        "386984.mp3,1.2,1,0,0,0,0,0,0,0,0,0\n"
        "386984.mp3,2.4,0,0,0,0,0,0,0,0,0,1\n")


@pytest.mark.parametrize("text", [
    "filename,onset,Bell,Crow,Drum\r\na,0.0,1,0,0\r\na,1.2,0,0,1\r\n",
    "\ufefffilename,onset,Bell,Crow,Drum\na,0,1.0,0.0,0\na,1.20,0,0.0,1",
    'filename,onset,Bell,Crow,Drum\n"a","0.0","1","0","0"\n\na,1.2000000000000002,0,0,1\n\n',
    "filename,onset,Bell,Crow,Drum\na,12e-1,0,0,1\na,-0.0,1,0,0\n",
])
def test_other_ways_to_write_the_same_are_read(text, tmp_path):
    (tmp_path / "s.csv").write_text(text, encoding="utf-8", newline="")
    assert_same(read_submission(tmp_path / "s.csv", TINY_TASK),
                {"a": np.array([[1, 0, 0], [0, 0, 1]], bool)})


@pytest.mark.parametrize(("text", "message"), [
    ("", r"s\.csv is empty"),
    ("\n\n", r"s\.csv is empty"),
    (HEADER, r"s\.csv has a header but no rows"),
    ("a,0.0,0,0,0\n", r"line 1: the column 'filename' .* is missing"),
    ("filename,Bell,Crow,Drum\na,0,0,0\n", r"line 1: the column 'onset' .* is missing"),
    ("filename,onset,Bell,Crow\na,0.0,0,0\n", r"line 1: the column 'Drum' of the task 'tiny' is missing\.$"),
    ("filename,onset,Bell,Crow,drum\na,0.0,0,0,0\n", r"the column 'Drum' .* is missing, and 'drum' is unknown"),
    ("filename,onset,Bell,Crow,Drum,Bell\na,0.0,0,0,0,0\n", r"line 1: the column 'Bell' occurs"),
    ("filename,onset,Bell,Crow,Drum,Siren\na,0.0,0,0,0,0\n", r"line 1: the column 'Siren' is not a class"),
    (HEADER + "a,0.0,0,0,0\na,1.2,0,2,0\n", r"line 3, column 'Crow': '2' is neither 0 nor 1"),
    (HEADER + "a,0.0,0,0,\n", r"line 2, column 'Drum': '' is neither 0 nor 1"),
    (HEADER + "a,0.0,0.5,0,0\n", r"line 2, column 'Bell': '0.5' is neither 0 nor 1"),
    (HEADER + "a,0.0,0,0,True\n", r"line 2, column 'Drum': 'True' is neither 0 nor 1"),
    (HEADER + "a,zero,0,0,0\n", r"line 2, column 'onset': 'zero' is not a number"),
    (HEADER + "a,,0,0,0\n", r"line 2, column 'onset': '' is not a number"),
    (HEADER + "a,0.0,0,0,0\na,1.3,0,0,0\n", r"line 3, column 'onset': no segment starts at '1.3'.* 0.0, 1.2, 2.4"),
    (HEADER + "a,-1.2,0,0,0\n", r"line 2, column 'onset': no segment starts at '-1.2'"),
    (HEADER + "a,nan,0,0,0\n", r"line 2, column 'onset': no segment starts at 'nan'"),
    (HEADER + "a,inf,0,0,0\n", r"line 2, column 'onset': no segment starts at 'inf'"),
    (HEADER + "a,0.0,0,0,0\nb,0.0,0,0,0\na,0.0,0,0,1\n", r"line 4, column 'onset': 'a' at 0.0 .*line 2"),
    (HEADER + "a,0.0,0,0,0\na,2.4,0,0,0\n", r"line 3, column 'onset': 'a' .* 1\.2\.$"),
    (HEADER + "a,1.2,0,0,0\n", r"line 2, column 'onset': 'a' .* 0\.0\.$"),
    (HEADER + "a,0.0,0,0,0\na,1.2e300,0,0,0\n", r"line 3, column 'onset': 'a' .* 1\.2\.$"),
    (HEADER + "a,0.0,0,0\n", r"line 2: 4 fields.* 5; the column 'Drum' has no value"),
    (HEADER + "a,0.0,0,0,0,0\n", r"line 2: 6 fields.* 5\.$"),
    (HEADER + ",0.0,0,0,0\n", r"line 2, column 'filename'"),
    (HEADER + '"a,0.0,0,0,0\n', r"line 2: not a row of a CSV file"),
    (HEADER + "a,1_2,0,0,0\n", r"line 2, column 'onset': '1_2' is not a number"),
    (HEADER + "a,\u0661,0,0,0\n", r"line 2, column 'onset': '\u0661' is not a number"),
    (HEADER + "a,0x1,0,0,0\n", r"line 2, column 'onset': '0x1' is not a number"),
    (HEADER + "a,1.2\0,0,0,0\n", r"line 2, column 'onset': '1.2\\x00' is not a number"),
    (HEADER + "a,1e308,0,0,0\na,1e307,0,0,0\n", r"line 2, column 'onset': 'a' .* 0\.0\.$"),
    (HEADER + "a,0,0,0,0\na,1e308,0,0,0\na,1e307,0,0,0\n", r"column 'onset': 'a' .* 1\.2\.$"),
    (HEADER + "a,0,0,0,0\na,-0.0,0,0,0\n", r"line 3, column 'onset': 'a' at 0.0 .*line 2"),
    (HEADER + "b,0,0,0,0\na,1.2,0,0,0\na,0,0,0,0\na,1.2000000001,0,0,0\n",
     r"line 5, column 'onset': 'a' at 1.2 .*line 3"),
    (HEADER.replace("\n", "," * 200_000 + "\n"), r"line 1: the column '' occurs"),
])
def test_each_mistake_is_named_with_its_place(text, message, tmp_path):
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        read_submission(tmp_path / "s.csv", TINY_TASK)
    assert str(tmp_path / "s.csv") in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_text_and_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*s\.csv"):
        read_submission(tmp_path / "s.csv", TINY_TASK)
    with pytest.raises(UserError, match=r"not a regular file"):
        read_submission(tmp_path, TINY_TASK)
    (tmp_path / "s.csv").write_bytes(HEADER.encode() + b"a,0.0,0,0,0\n\xe9.mp3,0.0,0,0,0\n")
    with pytest.raises(UserError, match=r"s\.csv, line 3: not UTF-8"):
        read_submission(tmp_path / "s.csv", TINY_TASK)


def test_memory_is_a_few_hundred_bytes_a_recording(tmp_path):
    recordings = 20_000
    (tmp_path / "s.csv").write_text(HEADER + "".join(f"{i}.mp3,0.0,0,1,0\n" for i in range(recordings)))
    tracemalloc.start()
    try:
        found = read_submission(tmp_path / "s.csv", TINY_TASK)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == recordings
    assert kept < 250 * recordings
    assert peak < 400 * recordings


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "s.csv").write_text("before")
    with pytest.raises(ValueError, match=r"'b': .*\(segments, 3\)"):
        write_submission(tmp_path / "s.csv", TINY_TASK, {"a": np.zeros((2, 3), bool), "b": np.zeros((0, 3), bool)})
    assert (tmp_path / "s.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    with pytest.raises(UserError, match="Cannot write"):
        write_submission(tmp_path / "missing" / "s.csv", TINY_TASK, {"a": np.zeros((2, 3), bool)})


@pytest.mark.parametrize("array", [np.zeros((2, 2), bool), np.zeros((0, 3), bool)])
def test_arrays_of_another_shape_are_not_written(array, tmp_path):
    with pytest.raises(ValueError, match=r"\(segments, 3\)"):
        write_submission(tmp_path / "s.csv", TINY_TASK, {"a": array})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("found", "message"), [
    ({"a": 3}, r"^P lacks 2 of the 3 recordings of G, first 'b'\.$"),
    ({"a": 3, "b": 1, "d": 2}, r"^P lacks 1 of the 3 recordings of G, first 'c', .* 1 .*'d'\.$"),
    ({"a": 3, "b": 1, "c": 2, "d": 2}, r"^P names 1 .* G .* 'd'\.$"),
    ({"a": 3, "b": 1, "c": 1}, r"^The number of segments of 'c' is 1 in P .*2 in G; the first missing .* 1\.2\.$"),
    ({"a": 4, "b": 1, "c": 2}, r"^The number of segments of 'a' is 4 in P .*3 in G; the first extra .* 3\.6\.$"),
])
def test_other_recordings_or_segments_are_named(found, message):
    expected = {"a": 3, "b": 1, "c": 2}
    require_same_segments(dict(reversed(expected.items())), expected, "P", "G", TINY_TASK)
    with pytest.raises(UserError, match=message):
        require_same_segments(found, expected, "P", "G", TINY_TASK)


def test_a_submission_of_the_challenge_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [20] * 93 + [19] * 2649
    segments = {f"{i}.mp3": rng.random((length, 10)) < 0.1 for i, length in enumerate(lengths)}
    write_submission(tmp_path / "s.csv", MLPC_2025, segments)
    header, *rows = (tmp_path / "s.csv").read_text().splitlines()
    assert len(rows) == 52_191
    random.Random(0).shuffle(rows)
    (tmp_path / "s.csv").write_text("\n".join([header, *rows]))
    assert_same(read_submission(tmp_path / "s.csv", MLPC_2025), segments)
