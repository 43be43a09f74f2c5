"""Tables of events become labels: every format, frame by frame; what is odd is said, and nothing of others is lost."""

import csv
import json
import os
import pathlib

import numpy as np
import pytest
import soundfile
from events import SECONDS, frames
from sedjax.data_prep import check, event_tables, labels, soundscapes
from tiny import run_command, write_csv

from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.data.layout import SPLITS, read_layout, read_splits

EVENTS = [("a.wav", 0.5, 1.5, "Bell"), ("b.wav", 0.0, 0.3, "Crow"), ("a.wav", 0.25, 0.5, "Crow")]


@pytest.fixture
def audio(tmp_path):
    """A folder of three recordings."""
    (tmp_path / "audio").mkdir()
    for number, (name, seconds) in enumerate(SECONDS.items()):
        samples = np.random.default_rng(number).uniform(-0.1, 0.1, round(seconds * 8000))
        soundfile.write(tmp_path / "audio" / name, samples, 8000)
    return tmp_path / "audio"


@pytest.fixture
def run(audio, capsys):
    """A function that runs the command on a table, its path or its text; returns the layout and what it printed."""

    def call(table: pathlib.Path | str, *arguments: str, output: str = "out"):
        if isinstance(table, str):
            (audio.parent / "events.csv").write_text(table)
            table = audio.parent / "events.csv"
        output = audio.parent / output
        run_command(labels, f"--events={table}", f"--audio={audio}", f"--output={output}", *arguments)
        return read_layout(output), capsys.readouterr().out

    return call


def text_of(rows, header="filename,onset,offset,label") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def require_the_events(layout) -> None:
    """The votes are those of EVENTS."""
    assert layout.task.classes == ("Bell", "Crow")
    assert layout.filenames == tuple(SECONDS)
    for name, seconds in SECONDS.items():
        expected = [frames(seconds, *(event[1:3] for event in EVENTS if event[0] == name and event[3] == label))
                    for label in layout.task.classes]
        np.testing.assert_array_equal(layout.votes(name), np.stack(expected, axis=1), err_msg=name)


# The directory


def test_a_table_becomes_a_directory_that_check_accepts(run, audio):
    layout, printed = run(text_of(EVENTS))
    require_the_events(layout)
    assert "c.flac" in printed  # it has no row
    assert layout.task.costs == ((0, 1, 0, 5), (0, 1, 0, 5))
    assert {split: len(names) for split, names in read_splits(layout).items()} == dict.fromkeys(SPLITS, 1)
    assert read_splits(layout) == read_splits(layout, split_seed=42)
    assert sorted(contents(layout.path)) == sorted(
        [".sedjax_outputs", "labels/.sedjax_outputs", "metadata.csv", "splits.csv", "costs.json",
         *(f"audio/{name}" for name in SECONDS), *(f"labels/{name[0]}_labels.npz" for name in SECONDS)])
    for name, seconds in SECONDS.items():
        assert layout.audio_path(name).read_bytes() == (audio / name).read_bytes()
        assert layout.num_frames(name, ("audio",)) == len(layout.features(name, ("audio",))["audio"])
        assert {"filename": name, "duration": str(seconds)} in rows_of(layout.path / "metadata.csv")
    run_command(check, layout.path)


def test_the_labels_of_the_built_in_soundscapes_come_back_byte_for_byte(tmp_path):
    """Records hold what the labels files hold; rows without an event say who listened and heard nothing."""
    data = tmp_path / "data"
    soundscapes.write_soundscapes(data, soundscapes.Parameters(recordings=10, seconds_min=2, seconds_max=3, seed=1))
    with open(data / "annotations.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    for path in (data / "labels").iterdir():
        with np.load(path) as arrays:
            listeners = range(arrays["Speech"].shape[1])
        rows += [[f"{path.stem[:5]}.flac", listener, "", "", ""] for listener in listeners]
    write_csv(tmp_path / "events.csv", header, rows)
    run_command(labels, f"--events={tmp_path / 'events.csv'}", f"--audio={data / 'audio'}",
                f"--output={tmp_path / 'out'}", f"--costs={data / 'costs.json'}", f"--splits={data / 'splits.csv'}")
    layout = read_layout(tmp_path / "out")
    layout.task.require_same(MLPC_2025, "out")
    assert read_splits(layout) == read_splits(read_layout(data))
    for path in (data / "labels").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "labels" / path.name).read_bytes()


def test_annotators_are_columns(run):
    layout, printed = run(text_of([("a.wav", 0.5, 1.5, "Bell", "x"), ("a.wav", 1.0, 2.0, "Bell", "y"),
                                   ("a.wav", "", "", "", "z"), ("b.wav", 0, 1, "Bell", "y")],
                                  "filename,onset,offset,label,annotator"))
    assert "overlap" not in printed
    votes = frames(2, (0.5, 1.5)).astype(int) + frames(2, (1, 2))
    np.testing.assert_array_equal(layout.votes("a.wav")[:, 0], (votes / 3).astype(np.float16))
    np.testing.assert_array_equal(layout.votes("b.wav")[:, 0], 1)


def test_recordings_without_a_row_can_be_left_out(run):
    layout, printed = run(text_of(EVENTS), "--listed_only")
    assert layout.filenames == ("a.wav", "b.wav")
    assert "c.flac" not in printed
    assert not (layout.path / "splits.csv").exists()  # too few to split
    layout, _ = run(text_of([*EVENTS, ("c.flac", "", "", "")]), "--listed_only", output="other")
    assert layout.filenames == tuple(SECONDS)


def test_classes_and_costs_can_be_given(run, audio):
    layout, printed = run(text_of(EVENTS), "--classes=Drum,Crow")
    assert layout.task.classes == ("Drum", "Crow")
    assert "Bell" in printed
    assert not layout.votes("a.wav")[:, 0].any()
    costs = audio.parent / "mine.json"
    costs.write_text('{"Crow": {"TP": 0, "FP": 2, "TN": 0, "FN": 3}}')
    layout, _ = run(text_of(EVENTS), f"--costs={costs}", output="other")
    assert layout.task.costs == ((0, 2, 0, 3),)
    np.testing.assert_array_equal(layout.votes("b.wav")[:, 0], frames(1, (0, 0.3)))


def test_splits_come_from_a_column_or_a_file_or_a_seed(run, audio):
    split_of = dict(zip(SECONDS, ("test", "train", "validation")))
    rows = [(*event, split_of[event[0]]) for event in EVENTS]
    layout, _ = run(text_of([*rows, ("c.flac", "", "", "", "validation")], "filename,onset,offset,label,part"),
                    "--columns=split=part")
    assert read_splits(layout) == {"train": ("b.wav",), "validation": ("c.flac",), "test": ("a.wav",)}
    write_csv(audio.parent / "mine.csv", ["filename", "split"], list(split_of.items()))
    other, _ = run(text_of(EVENTS), f"--splits={audio.parent / 'mine.csv'}", output="other")
    assert read_splits(other) == read_splits(layout)
    seeded, _ = run(text_of(EVENTS), "--split_seed=3", output="seeded")
    assert read_splits(seeded) == read_splits(layout, split_seed=3) != read_splits(layout, split_seed=42)
    with pytest.raises(UserError, match=r"c\.flac"):
        run(text_of(rows, "filename,onset,offset,label,part"), "--columns=split=part", output="third")


# Running again, and what is there already


def test_running_again_replaces_what_it_wrote_and_keeps_features_and_given_tables(run):
    layout, _ = run(text_of(EVENTS[:2]))
    (layout.path / "audio_features").mkdir()
    np.savez(layout.features_path("a.wav"), mfcc=np.zeros((17, 3)))
    features = layout.features_path("a.wav").read_bytes()
    costs = layout.path / "costs.json"
    changed = json.loads(costs.read_text()) | {"Bell": {"TP": 0, "FP": 7, "TN": 0, "FN": 5}}
    costs.write_text(json.dumps(changed))
    before = contents(layout.path)
    with pytest.raises(UserError, match=r"costs\.json"):
        run(text_of(EVENTS))
    assert contents(layout.path) == before
    layout, _ = run(text_of(EVENTS), f"--costs={costs}")
    require_the_events(layout)
    assert layout.task.costs[0] == (0, 7, 0, 5)
    assert layout.features_path("a.wav").read_bytes() == features


@pytest.mark.parametrize(("stored", "expected"), [(16, 16), (18, 18), (15, 17)])
def test_labels_get_as_many_frames_as_features_that_round_differently(run, tmp_path, stored, expected):
    (tmp_path / "out/audio_features").mkdir(parents=True)
    np.savez(tmp_path / "out/audio_features/a.npz", mfcc=np.zeros((stored, 3)))
    layout, _ = run(text_of([*EVENTS, ("a.wav", 1.8, 2.0, "Bell")]))
    marked = frames(2, (0.5, 1.5), (1.8, 2.0))
    np.testing.assert_array_equal(layout.votes("a.wav")[:, 0], np.pad(marked, (0, 1))[:expected])


@pytest.mark.parametrize("name", ["labels/a_labels.npz", "metadata.csv", "splits.csv", "audio/b.wav"])
def test_files_of_others_are_left_alone(run, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
        run(text_of(EVENTS))
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_an_interrupted_run_leaves_nothing_that_can_be_read_and_is_completed(run, monkeypatch):
    layout, _ = run(text_of(EVENTS[:1]))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(labels, "_put", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(text_of(EVENTS))
    with pytest.raises(UserError, match=r"metadata\.csv"):
        read_layout(layout.path)
    require_the_events(run(text_of(EVENTS))[0])


def test_recordings_are_hard_links_and_copies_across_disks(run, audio, monkeypatch):
    (audio / "a.wav").rename(audio.parent / "elsewhere.wav")
    (audio / "a.wav").symlink_to(audio.parent / "elsewhere.wav")
    layout, _ = run(text_of(EVENTS))
    assert not layout.audio_path("a.wav").is_symlink()
    assert all(os.path.samefile(layout.audio_path(name), audio / name) for name in SECONDS)

    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    copied, _ = run(text_of(EVENTS), output="copied")
    assert not os.path.samefile(copied.audio_path("a.wav"), audio / "a.wav")
    assert all(copied.audio_path(name).read_bytes() == (audio / name).read_bytes() for name in SECONDS)


def test_the_recordings_may_be_in_the_directory_already(run, audio):
    (audio.parent / "out").mkdir()
    audio.rename(audio.parent / "out" / "audio")
    audio.symlink_to(audio.parent / "out" / "audio")
    require_the_events(run(text_of(EVENTS))[0])


def test_unreadable_recordings_are_listed_and_left_out(run, audio):
    (audio / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(SystemExit) as end:
        run(text_of(EVENTS))
    assert end.value.code == 1
    layout = read_layout(audio.parent / "out")
    assert layout.filenames == ("a.wav", "c.flac")
    assert [row["filename"] for row in rows_of(layout.path / "bad_recordings.csv")] == ["b.wav"]


# Formats


def write_audacity(folder: pathlib.Path) -> pathlib.Path:
    """Labels of a.wav with a range of frequencies and German decimals; c.flac is labelled, but holds nothing."""
    folder.mkdir()
    (folder / "a.txt").write_text("0,250\t0,500\tCrow\n\\\t100,0\t2000,0\n0.5\t1.5\tBell\n")
    (folder / "b.txt").write_text("0.0\t0.3\tCrow\n")
    (folder / "c.txt").write_text("")
    return folder


def write_raven(folder: pathlib.Path) -> pathlib.Path:
    """Selection tables, in which each selection has a row for each view."""
    folder.mkdir()
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tSpecies\n"
    for name in "ab":
        lines = [f"{number}\t{view} 1\t1\t{onset}\t{offset}\t0.0\t{label}\n" for view in ("Waveform", "Spectrogram")
                 for number, (recording, onset, offset, label) in enumerate(EVENTS, 1) if recording == f"{name}.wav"]
        (folder / f"{name}.Table.1.selections.txt").write_text(header + "".join(lines))
    return folder


def write_long_raven(folder: pathlib.Path) -> pathlib.Path:
    """A table over several files: its times count from the first of them."""
    starts = {"b.wav": 100, "a.wav": 101}
    lines = [f"{starts[name] + onset}\t{starts[name] + offset}\t{name}\t{onset}\t{label}\n"
             for name, onset, offset, label in EVENTS]
    folder.write_text("Begin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tSpecies\n" + "".join(lines))
    return folder


def write_one(text: str):
    def write(path: pathlib.Path) -> pathlib.Path:
        path.write_text(text, encoding="utf-8")
        return path

    return write


def write_per_recording(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.csv").write_text(text_of([row[1:] for row in EVENTS if row[0][0] == name],
                                                    "onset,offset,label"))
    return folder


FORMATS = {
    "DCASE": (write_one(text_of(EVENTS, "filename,onset,offset,event_label").replace(",", "\t")), ""),
    "events.tsv": (write_one(text_of([(*row, 0.5) for row in EVENTS], "filename,onset,offset,event_label,score")
                             .replace(",", "\t")), ""),
    "MLPC": (write_one(text_of([(row[0], 0, *row[1:]) for row in EVENTS], "filename,annotator,onset,offset,text")), ""),
    "semicolons and commas": (write_one("\ufeff" + text_of(EVENTS).replace(",", ";").replace(
        "0.", "0,").replace("1.", "1,").replace("\n", "\r\n") + ";;;\r\n"), ""),
    "columns of other names": (write_one(text_of(EVENTS, "file,start,stop,what")),
                               "filename=file,onset=start,offset=stop,label=what"),
    "paths and other suffixes": (write_one(text_of(EVENTS).replace("a.wav", "audio/a.mp3")
                                           .replace("b.wav", "audio\\b")), ""),
    "Audacity": (write_audacity, ""),
    "Raven": (write_raven, "label=Species"),
    "Raven, several files": (write_long_raven, "label=Species"),
    "a table each": (write_per_recording, ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, run, tmp_path):
    write, columns = FORMATS[name]
    layout, printed = run(write(tmp_path / "table"), *([f"--columns={columns}"] if columns else []))
    require_the_events(layout)
    if name in ("Audacity", "a table each"):
        assert "c.flac" not in printed  # somebody listened to it


# What is odd


@pytest.mark.parametrize(("row", "key"), [
    ("a.wav,1,3,Bell", "beyond"), ("a.wav,-1,1,Bell", "beyond"), ("a.wav,2.5,3,Bell", "outside"),
    ("x.wav,0,1,Bell", "not there"), ("a.wav,1,1,Bell", "do not end"), ("a.wav,1,1.005,Bell", "shorter"),
    ("a.wav,0.4,0.6,Bell", "overlap"), ("a.wav,0,0.1,be ll", "case or blanks"), ("a.wav,0.5,1.5,Bell", "repeat"),
])
def test_notes(row, key, run):
    _, printed = run(text_of(EVENTS) + row + "\n")
    notes = [line for line in printed.splitlines() if line.startswith("Note: ") and key in line]
    assert len(notes) == 1, printed
    assert key == "case or blanks" or "(1)" in notes[0]
    assert key in ("case or blanks", "repeat", "overlap") or "line 5" in notes[0]
    assert key not in run(text_of(EVENTS), output="other")[1]


def test_classes_with_few_events_are_noted(run):
    rows = [("a.wav", 0.1 * i, 0.1 * i + 0.1, "Bell") for i in range(10)]
    printed = run(text_of([*rows, ("b.wav", 0, 1, "Crow")]))[1]
    assert "Crow (1)" in printed
    assert "Bell (" not in printed


@pytest.mark.parametrize(("text", "arguments", "key"), [
    (text_of([("x.wav", 0, 1, "Bell")]), [], "x.wav"), (text_of([]), [], "rows"),
    (text_of([("d/a.wav", 0, 1, "Bell"), ("e/a.wav", 0, 1, "Bell")]), [], "e/a.wav"),
    (text_of(EVENTS), ["--classes=bell"], "Bell"), (text_of([("a.wav", "", "", "")]), [], "--classes"),
    (text_of([("a.wav", 0, 1, "onset")]), [], "line 2"), (text_of(EVENTS), ["--columns=class=x"], "class"),
    (text_of(EVENTS), ["--columns=label"], "label"), (text_of(EVENTS), ["--classes=Bell,Bell"], "Bell"),
    (text_of(EVENTS), ["--split_seed=1", "--splits=x.csv"], "--splits"),
    (text_of(EVENTS), ["--costs=x.json", "--classes=Bell"], "--costs"),
])
def test_mistakes_are_said_before_anything_is_written(text, arguments, key, run, tmp_path):
    with pytest.raises(UserError, match=key):
        run(text, *arguments)
    assert not (tmp_path / "out").exists()


def test_labels_and_tables_have_bounds(run, tmp_path, monkeypatch):
    rows = [("a.wav", 0, 1, "Bell", number) for number in range(20)]
    table = text_of(rows, "filename,onset,offset,label,annotator")
    with monkeypatch.context() as patch:
        patch.setattr(labels.npz, "ARRAY_BYTES", 300)
        with pytest.raises(UserError, match=r"a\.wav.*340"):
            run(table)
    monkeypatch.setattr(event_tables, "MOST_ROWS", 10)
    with pytest.raises(UserError, match="line 12"):
        run(table)
    assert not (tmp_path / "out").exists()
