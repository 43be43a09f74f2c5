"""From recordings to events: the same numbers however they are read, right events, whole outputs."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import threading
import tracemalloc
import warnings
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from documents import ROOT, code, commands
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from sedjax.data_prep import extract
from tiny import TINY_TASK, run_command
from workdirs import untrained

import sedjax
from sedjax.audio import clips, mel, reader
from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.commands import cli, predict
from sedjax.core import grid, npz
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.data import provenance
from sedjax.data.identity import Extractor
from sedjax.data.layout import read_layout
from sedjax.inference import detector as detector_lib
from sedjax.inference import extractors, figures, outputs, trained
from sedjax.inference.detection import Detection
from sedjax.inference.detector import Detector, detections
from sedjax.models import atst_frame, registry
from sedjax.scoring.event_rules import EventRules, default_rules
from sedjax.scoring.submission import read_submission

LENGTHS = {"one.wav": 1, "half.flac": 8000, "below.wav": 159_840, "ten.wav": 160_000, "above.flac": 160_160}


class Loudness(nn.Module):
    """Hears each class where the recording is loud, frame by frame."""

    inputs: ClassVar[tuple[str, ...]] = ("audio",)

    num_classes: int

    @nn.compact
    def __call__(self, features, frame_mask, *, train=False, clip_id=None):
        samples = jnp.where(frame_mask[..., None], features["audio"].astype(jnp.float32) / 32768, 0)
        loud = jnp.sqrt((samples**2).mean(-1, keepdims=True))
        slope = self.param("slope", nn.initializers.ones, (1, 1, self.num_classes))
        return 100 * (loud - 0.1) * slope


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Recordings of 1 sample to 13 s, one of them at 44.1 kHz in stereo."""
    path, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for name, samples in LENGTHS.items():
        loudness = rng.choice([0.01, 0.3], -(-samples // 4000)).repeat(4000)[:samples]
        soundfile.write(path / name, loudness * rng.uniform(-1, 1, samples), 16000)
    soundfile.write(path / "stereo.wav", 0.1 * rng.standard_normal((44100 * 13, 2)), 44100)
    return path


@pytest.fixture(scope="module")
def mel_workdir(tmp_path_factory) -> pathlib.Path:
    return untrained(tmp_path_factory.mktemp("mel"), "conv_transformer", {"melspectrogram": 64})


@pytest.fixture(scope="module")
def audio_workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.MODELS, "loudness", Loudness)
        yield untrained(tmp_path_factory.mktemp("audio"), "loudness", {"audio": 1920})


@pytest.fixture(scope="module")
def detectors(mel_workdir, audio_workdir):
    return {"melspectrogram": sedjax.load(mel_workdir), "audio": sedjax.load(audio_workdir)}


def rows_of(path: pathlib.Path, delimiter: str = ",") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.mark.parametrize("key", ["melspectrogram", "audio"])
def test_a_recording_alone_beside_others_and_as_an_array(detectors, folder, key):
    detector, paths = detectors[key], sorted(folder.iterdir())
    together = list(detector.detect(paths))
    assert [found.recording for found in together] == [str(path) for path in paths]
    for path, found in zip(paths, together):
        samples = LENGTHS.get(path.name, 13 * 16000)
        assert found.seconds == samples / 16000
        assert found.frames.shape == (-(-samples // 1920), 3)
        assert found.segments.shape == (-(-samples // 19200), 3)
        alone = detector(path)
        from_array = detector(*soundfile.read(path))
        for other in (alone, from_array):
            assert other.seconds == found.seconds
            np.testing.assert_allclose(other.frames, found.frames, atol=1e-5)
            np.testing.assert_allclose(other.segments, found.segments, atol=1e-5)
    assert detector(str(path)).recording == str(path)
    if key == "audio":
        model = detector.model
        pmap = Detector(dataclasses.replace(model, config=dataclasses.replace(model.config, parallel="pmap")),
                        default_rules(model.thresholds))
        for found, other in zip(together, pmap.detect(paths), strict=True):
            np.testing.assert_allclose(found.frames, other.frames, atol=1e-5)
    assert detector(np.zeros(1), 8000).recording == ""


def test_the_same_as_from_features_in_a_directory(detectors, folder, tmp_path):
    extract.extract(folder, tmp_path / "dir", ("melspectrogram",))
    expected = predict.predict_directory(detectors["melspectrogram"].model, tmp_path / "dir")
    for found in detectors["melspectrogram"].detect(sorted(folder.iterdir())):
        other = expected[pathlib.Path(found.recording).name]
        np.testing.assert_allclose(found.frames, other.frames, atol=1e-5)
        np.testing.assert_array_equal(found.active, other.active)


def test_a_sound_is_where_it_is_heard(detectors):
    """Also in the thousandth clip, and at the end, which is in the middle of a frame."""
    samples = np.zeros(1_000_000, np.float32)
    for start, end in ((0, 1920), (19_200, 40_000), (900_480, 902_400), (998_400, 1_000_000)):
        samples[start:end] = 0.5
    found = detectors["audio"].with_rules(median=0, merge_gap=0, min_duration=0)(samples, 16000)
    drums = [(event.onset, event.offset) for event in found if event.label == "Drum"]
    assert drums == [(0.0, 0.12), (1.2, 2.52), (56.28, 56.4), (62.4, 62.5)]
    assert [tuple(event) for event in found][:2] == [
        (0.0, 0.12, "Bell", pytest.approx(1)), (0.0, 0.12, "Crow", pytest.approx(1))]


def test_memory_holds_some_clips_however_long_the_recording(detectors, monkeypatch):
    detectors["audio"](np.zeros(10**6), 16000)  # what is compiled stays
    monkeypatch.setattr(reader, "blocks", lambda *_: (np.zeros(160_000, np.float32) for _ in range(180)))
    tracemalloc.start()
    try:
        assert detectors["audio"]("half_an_hour.wav").seconds == 1800
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 0.4 * 1800 * 16000 * 2  # bytes of its 16-bit samples


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(1, 12),
       st.data())
def test_clips_are_the_same_frames(pieces, frames, data):
    """Whatever the pieces of each recording are; of some the last never comes."""
    ends = [data.draw(st.booleans()) for _ in pieces]
    given, expected = [], {}
    for number, (lengths, is_whole) in enumerate(zip(pieces, ends)):
        values = np.split(np.arange(sum(lengths))[:, None], np.cumsum(lengths)[:-1])
        given += [clips.Clip(number, f"{number}.wav", {"x": value}, 5.0 if is_whole and i == len(lengths) - 1 else None)
                  for i, value in enumerate(values)]
        if is_whole:
            expected[number] = sum(lengths)
    found = list(clips.recut(given, frames))
    assert [clip.number for clip in found if clip.is_last] == list(expected)
    for number, total in expected.items():
        parts = [clip for clip in found if clip.number == number]
        assert [len(clip) for clip in parts[:-1]] == [frames] * (len(parts) - 1)
        assert 1 <= len(parts[-1]) <= frames
        np.testing.assert_array_equal(np.concatenate([clip.features["x"] for clip in parts])[:, 0], np.arange(total))


def detection(frames: np.ndarray, pooling: str = "max", thresholds: float = 0.5, seconds: float | None = None,
              task=TINY_TASK, features=None) -> Detection:
    padded = grid.by_segment(grid.pad_to_segments(frames, task, np.nan), task)
    segments = np.nanmax(padded, axis=1) if pooling == "max" else np.nanmean(padded, axis=1)
    return Detection("a.wav", task, EventRules(np.full(frames.shape[1], thresholds, np.float32)),
                     len(frames) * task.frame_seconds if seconds is None else seconds, frames,
                     segments.astype(np.float32), features or {})


@given(st.integers(1, 45), st.integers(0, 2**32 - 1), st.sampled_from(["max", "mean"]), st.floats(0.05, 0.95),
       st.integers(0, 1919))
def test_events_and_segments_agree(length, seed, pooling, threshold, missing):
    frames = np.random.default_rng(seed).random((length, 3)).astype(np.float32)
    found = detection(frames, pooling, threshold, length * 0.12 - missing / 16000)
    marked = np.zeros((length, 3), bool)
    for event in found:
        label = TINY_TASK.classes.index(event.label)
        rows = grid.event_frames(event.onset, event.offset, length, TINY_TASK)
        assert 0 <= event.onset < event.offset <= found.seconds + 1e-7
        assert event.score == frames[rows, label].max()
        assert not marked[rows, label].any()
        marked[rows, label] = True
    np.testing.assert_array_equal(marked, frames > np.float32(threshold))
    if pooling == "max":
        np.testing.assert_array_equal(grid.any_frame(grid.pad_to_segments(marked, TINY_TASK), TINY_TASK), found.active)
    assert [event.onset for event in found] == sorted(event.onset for event in found)


def test_hours_by_the_names_of_recorders(audio_workdir, folder, tmp_path, capsys):
    shutil.copy(folder / "one.wav", tmp_path / "20240131_055959.wav")
    arguments = f"--workdir={audio_workdir}", str(tmp_path / "20240131_055959.wav"), f"--output={tmp_path / 'out'}"
    run_command(predict, *arguments, "--formats=hourly", "--min_duration=0", "--median=0", "--threshold=0")
    with open(tmp_path / "out" / "hourly.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["hour"] for row in rows} == {"2024-01-31T05:00", "2024-01-31T06:00"} - (
        {"2024-01-31T06:00"} if soundfile.info(folder / "one.wav").duration <= 1 else set())
    assert all(row["events"] == "1" for row in rows if row["event_label"])
    assert "Bell" in capsys.readouterr().out
    with pytest.raises(UserError, match="--start"):
        run_command(predict, *arguments, "--start=2024-01-31")


def test_every_output_reads_back(detectors, audio_workdir, folder, tmp_path, capsys):
    out = tmp_path / "out"
    run_command(predict, f"--workdir={audio_workdir}", folder / "one.wav", str(folder), f"--output={out}",
                "--formats=csv,tsv,audacity,json,png", "--frames")
    found = {pathlib.Path(one.recording).name: one for one in detectors["audio"].detect(sorted(folder.iterdir()))}
    events = [(name, event) for name in ["one.wav", *sorted(set(found) - {"one.wav"})] for event in found[name]]
    assert len({event.label for _, event in events}) == 3
    assert f"Found {len(events)} events in 6 recordings" in capsys.readouterr().out

    rows = rows_of(out / "events.tsv", "\t")
    assert [(row["filename"], float(row["onset"]), float(row["offset"]), row["event_label"]) for row in rows] == [
        (name, event.onset, event.offset, event.label) for name, event in events]
    assert [float(row["score"]) for row in rows] == pytest.approx([event.score for _, event in events], abs=1e-4)
    assert all(len(row["onset"].split(".")[1]) >= 3 for row in rows)
    read = read_submission(out / "predictions.csv", TINY_TASK)
    assert list(read) == ["one.wav", *sorted(set(found) - {"one.wav"})]
    for name, one in found.items():
        np.testing.assert_array_equal(read[name], one.active)
        stem = out / pathlib.Path(name).stem
        labels = [line.split("\t") for line in stem.with_suffix(".txt").read_text().splitlines()]
        assert [(float(onset), float(offset), label) for onset, offset, label in labels] == [
            tuple(event[:3]) for event in one]
        content = json.loads(stem.with_suffix(".json").read_text())
        assert content["model"] == {"workdir": str(audio_workdir), "name": "loudness", "step": 0}
        assert list(content["task"]["costs"]) == list(content["thresholds"]) == list(TINY_TASK.classes)
        assert content["seconds"] == pytest.approx(one.seconds, abs=1e-7)
        assert [(each["onset"], each["offset"], each["label"]) for each in content["events"]] == [
            tuple(event[:3]) for event in one]
        for segment, active, row in zip(content["segments"], one.active, one.segments, strict=True):
            assert segment["active"] == [TINY_TASK.classes[i] for i in np.flatnonzero(active)]
            assert list(segment["probabilities"].values()) == pytest.approx(row, abs=1e-4)
        with np.load(stem.with_suffix(".npz"), allow_pickle=False) as archive:
            np.testing.assert_allclose(archive["probabilities"], one.frames, atol=1e-5)
            assert archive["classes"].tolist() == list(TINY_TASK.classes)
            assert archive["frame_seconds"] == 0.12
        assert plt.imread(stem.with_suffix(".png")).shape[1] == 1000
    assert len(list(out.glob("[!.]*"))) == 2 + 4 * len(found)


def test_the_commands_and_loops_of_the_documents(mel_workdir, folder, tmp_path, monkeypatch, capsys):
    document = ROOT / "docs" / "prediction.md"
    (_, *words), = commands(code(document, "sh")[0])
    samples, rate_hz = soundfile.read(folder / "above.flac")
    for name in ("street.mp3", "yard.wav"):
        soundfile.write(tmp_path / name, samples, rate_hz)
    (tmp_path / "WORKDIR").symlink_to(mel_workdir)
    (tmp_path / "RECORDINGS").symlink_to(folder)
    extract.extract(folder, tmp_path / "DIR", ("melspectrogram",))
    monkeypatch.chdir(tmp_path)
    run_command(predict, *words)
    assert {path.suffix for path in (tmp_path / "EVENTS").glob("street.*")} == {".json", ".png", ".txt"}
    capsys.readouterr()
    for text in (*code(ROOT / "README.md", "python"), *code(document, "python")):
        exec(text, {})
    lines = capsys.readouterr().out.splitlines()
    events = [line for line in lines if re.fullmatch(r"[0-9.]+ to [0-9.]+ s: (Bell|Crow|Drum) \([0-9.]+\)", line)]
    others = [line.split()[0] for line in lines if line not in events]
    assert others == ["street.mp3", "yard.wav", *sorted(path.name for path in folder.iterdir())]


def test_a_class_of_any_name_is_read_back(tmp_path):
    task = dataclasses.replace(TINY_TASK, classes=('Dog, "big" bark', "Crow", "Drum"))
    found = detection(np.ones((3, 3), np.float32), task=task)
    outputs.write_tables(tmp_path, task, {}, {"a\tb.wav": found.events}, ("tsv",))
    assert [(row["filename"], row["event_label"]) for row in rows_of(tmp_path / "events.tsv", "\t")] == [
        ("a\tb.wav", name) for name in task.classes]


def test_damaged_files_among_good_ones(detectors, audio_workdir, folder, tmp_path, capfd):
    for name in ("half.flac", "ten.wav"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "cut.flac", np.random.default_rng(0).uniform(-1, 1, 40 * 16000), 16000)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])  # found out only after some clips
    flags = [f"--workdir={audio_workdir}", tmp_path, f"--output={tmp_path / 'out'}"]
    cli._log_to_stderr()
    with pytest.raises(SystemExit) as end:
        run_command(predict, *flags)
    assert end.value.code == cli.SOME_BAD_STATUS
    printed = capfd.readouterr()
    listed = {row["filename"]: row["reason"] for row in rows_of(tmp_path / "out" / "bad_recordings.csv")}
    assert set(listed) == {"empty.wav", "cut.flac"}
    for name, reason in listed.items():
        assert sum(f"{name}: {reason}" in line for line in printed.err.splitlines()) == 1
    assert "in 2 recordings, written to" in printed.out
    assert "2 cannot be read, listed in" in printed.out
    read = read_submission(tmp_path / "out" / "predictions.csv", TINY_TASK)
    assert set(read) == {"half.flac", "ten.wav"}
    for name, active in read.items():
        np.testing.assert_array_equal(active, detectors["audio"](folder / name).active)
    _, cut = detectors["audio"].detect([tmp_path / "ten.wav", tmp_path / "cut.flac"])
    assert cut == clips.Unreadable(1, str(tmp_path / "cut.flac"), cut.error)
    with pytest.raises(UserError, match=r"cut\.flac is"):
        detectors["audio"](tmp_path / "cut.flac")
    for name in listed:
        (tmp_path / name).unlink()
    run_command(predict, *flags)
    assert not (tmp_path / "out" / "bad_recordings.csv").exists()
    for path in tmp_path.glob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(SystemExit):
        run_command(predict, *flags)
    for name, delimiter in (("predictions.csv", ","), ("events.tsv", "\t")):
        assert (tmp_path / "out" / name).read_text().startswith(f"filename{delimiter}onset")
        assert rows_of(tmp_path / "out" / name, delimiter) == [], "those of an earlier run"


def test_recordings_of_one_name(audio_workdir, folder, tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "half.flac", tmp_path / name)
    soundfile.write(tmp_path / "y" / "half.wav", np.zeros(100), 16000)
    run_command(predict, f"--workdir={audio_workdir}", tmp_path / "x", tmp_path / "y", tmp_path / "x" / "half.flac",
                f"--output={tmp_path / 'out'}")
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {
        "x_half.flac.json", "y_half.flac.json", "y_half.wav.json"}
    assert {row["filename"] for row in rows_of(tmp_path / "out" / "predictions.csv")} == {
        "x/half.flac", "y/half.flac", "y/half.wav"}
    with pytest.raises(UserError, match=r"x/half\.flac and x_half\.flac would have the same names"):
        outputs.stems(["x/half.flac", "y/half.flac", "x_half.flac"])


def test_names_that_are_not_utf_8(detectors, audio_workdir, folder, tmp_path):
    shutil.copy(folder / "half.flac", os.fsencode(tmp_path) + b"/caf\xe9.flac")
    pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xe9.wav")).touch()
    with pytest.raises(SystemExit):
        run_command(predict, f"--workdir={audio_workdir}", tmp_path, f"--output={tmp_path / 'out'}",
                    "--formats=csv,tsv,audacity,json,png", "--frames")
    assert [row["filename"] for row in rows_of(tmp_path / "out" / "bad_recordings.csv")] == ["bad\\udce9.wav"]
    read = read_submission(tmp_path / "out" / "predictions.csv", TINY_TASK)
    np.testing.assert_array_equal(read["caf\\udce9.flac"], detectors["audio"](folder / "half.flac").active)
    assert {path.name for path in (tmp_path / "out").glob("caf*")} == {
        f"caf\\udce9.{suffix}" for suffix in ("txt", "json", "png", "npz")}


@pytest.mark.parametrize(("arguments", "words"), [
    ((), "--source=DIR"), (("a.wav", "--source=d"), "--source=DIR"),
    (("nowhere.wav",), "There is no recording or folder nowhere.wav"),
    (("tests",), "There are no recordings in tests"), (("a.wav", "--split=test"), "--split is for --source"),
    (("--source=d", "--formats=csv"), "--formats is for recordings"), (("--source=d", "--frames"), "--frames is for"),
    (("--source=d", "--embeddings_from=w"), "--embeddings_from is for"),
    ((__file__, "--embeddings_from=/no/such"), "takes no embeddings: leave out --embeddings_from=/no/such"),
    (("a.wav", "--formats=csv,wav"), "--formats takes any of csv, .*, not 'wav'")])
def test_arguments_that_do_not_fit(audio_workdir, tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        run_command(predict, f"--workdir={audio_workdir}", f"--output={tmp_path / 'out'}", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be(audio_workdir, folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot create the folder"):
        run_command(predict, f"--workdir={audio_workdir}", folder / "half.flac", f"--output={tmp_path / 'file'}")


def write_short(folder: pathlib.Path, *names: str | bytes) -> None:
    """Recordings of 0.01 s."""
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / "first.wav", np.zeros(160), 16000)
    for name in names:
        shutil.copy(folder / "first.wav", os.path.join(os.fsencode(folder), os.fsencode(name)))
    (folder / "first.wav").unlink()


ALL = ("--formats=csv,tsv,audacity,json,png,html", "--frames")


@pytest.mark.parametrize("name", ["x.txt", "x.json", "x.png", "x.npz", "predictions.csv", "events.tsv",
                                  "index.html", "bad_recordings.csv"])
def test_files_of_the_user_stay(audio_workdir, tmp_path, monkeypatch, name):
    """Nothing is computed, and nothing else is written."""
    write_short(tmp_path, "x.wav", "y.wav")
    (tmp_path / name).write_text("mine")
    monkeypatch.setattr(reader, "blocks", None)
    with pytest.raises(UserError, match=rf"{re.escape(name)} already exists"):
        run_command(predict, f"--workdir={audio_workdir}", tmp_path, f"--output={tmp_path}", *ALL)
    assert (tmp_path / name).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {name, "x.wav", "y.wav"}


def test_a_recording_is_not_an_output(detectors, tmp_path):
    write_short(tmp_path, "x.wav")
    (tmp_path / "x.wav").rename(tmp_path / "x.json")
    (tmp_path / "link.json").symlink_to("x.json")
    (tmp_path / "x.txt").touch()
    for name, kind in (("x.json", "json"), ("link.json", "json"), ("x.txt", "audacity")):
        with pytest.raises(UserError, match=rf"{name} is a recording to be read"):
            predict.of_recordings(detectors["audio"], [tmp_path / name], tmp_path, [kind])
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "link.json", "x.txt"}


def test_a_second_run_into_the_same_folder(detectors, tmp_path, monkeypatch):
    """Replaces its own files; the tables are of this run, other files of earlier ones stay, edited ones for ever."""
    said = []
    monkeypatch.setattr(predict.log, "info", lambda text, *words: said.append(text % words))
    write_short(tmp_path / "a", "x.wav", "y.wav")
    write_short(tmp_path / "b", "z.wav")

    def run(folder, *kinds):
        predict.of_recordings(detectors["audio"], sorted(folder.iterdir()), tmp_path / "out", kinds)

    for _ in range(2):
        run(tmp_path / "a", "csv", "tsv", "json")
    assert not said
    run(tmp_path / "b", "csv", "audacity")
    assert {row["filename"] for row in rows_of(tmp_path / "out" / "predictions.csv")} == {"z.wav"}
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {
        "predictions.csv", "events.tsv", "x.json", "y.json", "z.txt"}
    assert [text for text in said if "events.tsv" in text] == said != []
    (tmp_path / "out" / "x.json").write_text("edited")
    with pytest.raises(UserError, match=r"x\.json already exists"):
        run(tmp_path / "a", "json")


@pytest.mark.parametrize("place", ["mine.csv", "folder", "none/a.csv", "n" * 256, "w/config.json", "w/task.json"])
def test_a_submission_that_cannot_be_written_is_an_error_at_once(audio_workdir, tmp_path, place):
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "w").symlink_to(audio_workdir)
    with pytest.raises(UserError, match=place.split("/")[0]):
        run_command(predict, f"--workdir={audio_workdir}", "--source=nowhere", f"--output={tmp_path / place}")
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_names_of_any_length_and_characters(audio_workdir, tmp_path, capsys):
    names = ["n" * 251 + ".wav", "n" * 250 + "m.wav", "é" * 125 + ".wav", "x" * 238 + ".wav",
             b"\xff" * 100 + b".wav", "tab\tline\nred\x1b[31m.wav", "\u202fnarrow.wav"]
    write_short(tmp_path / "in", *names)
    run_command(predict, f"--workdir={audio_workdir}", tmp_path / "in", f"--output={tmp_path}/out\x1b[31m",
                "--formats=csv,tsv,audacity,json", "--frames")
    assert "\x1b" not in capsys.readouterr().out
    (out,) = tmp_path.glob("out*")
    found = {row["filename"] for row in rows_of(out / "predictions.csv")}
    assert len(found) == len((out / "predictions.csv").read_text().splitlines()) - 1 == len(names)
    assert {"n" * 251 + ".wav", "tab\\tline\\nred\\x1b[31m.wav"} <= found
    assert {json.loads(path.read_text())["recording"].rpartition("/")[2] for path in out.glob("*.json")} >= {
        "é" * 125 + ".wav"}
    for suffix in (".txt", ".json", ".npz"):
        assert len(list(out.glob(f"[!.]*{suffix}"))) == len(names)


def test_what_is_not_finite_is_never_written(detectors, tmp_path):
    write_short(tmp_path / "in", "x.wav")
    model = detectors["audio"].model
    diverged = dataclasses.replace(model, variables=jax.tree.map(lambda x: np.full_like(x, np.nan), model.variables))
    vars(diverged)["_predict"] = model._predict  # compiled
    with pytest.raises(UserError, match=r"audio.*/w .*NaN or infinity at step 0"):
        predict.of_recordings(Detector(diverged, default_rules(diverged.thresholds)), [tmp_path / "in" / "x.wav"],
                              tmp_path / "out", ["json", "csv"])
    assert list((tmp_path / "out").iterdir()) == []


def test_calls_that_do_not_fit(detectors, folder):
    detector, path = detectors["audio"], folder / "half.flac"

    def failing():
        yield path
        raise LookupError("of the caller")

    for keep in (("mel",), ("embeddings",), ("audio",)):
        with pytest.raises(UserError, match=f"keep = '{keep[0]}' .*'melspectrogram', 'mfcc'"):
            detector.detect([path], keep=keep)
    with pytest.raises(UserError, match="takes a list of recordings"):
        detector.detect(str(path))
    with pytest.raises(LookupError, match="of the caller"):
        detector.detect(failing())
    first, second = detector.detect([path, path])
    np.testing.assert_array_equal(first.frames, second.frames)
    assert list(detector.detect([])) == []


def test_ctrl_c_ends_the_reading_of_a_long_recording(detectors, tmp_path, monkeypatch):
    read = []

    def blocks(*_):
        for number in range(3000):  # eight hours
            read.append(number)
            if number == 30:  # the model is compiled by then: C++ that calls Python may drop what is raised there
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            yield np.zeros(160_000, np.float32)

    monkeypatch.setattr(reader, "blocks", blocks)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            predict.of_recordings(detectors["melspectrogram"], [tmp_path / "long.wav"], tmp_path / "out", ["json"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(read) < 1000
    assert list((tmp_path / "out").iterdir()) == []


# The extractor of embeddings.


def embedding_workdir(path: pathlib.Path, width: int, extractor: dict | None) -> pathlib.Path:
    folder = untrained(path, "embedding_transformer", {"embeddings": width})
    features = {"embeddings": {"width": width} | ({"extractor": extractor} if extractor else {})}
    (folder / "features.json").write_text(json.dumps(features))
    return folder


def write_atst(path: pathlib.Path) -> None:
    """A small ATST-Frame as data_prep.import_weights would write it."""
    encoder = atst_frame.AtstFrame(layers=1, width=64, feed_forward=32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 1001, 64)))["params"]
    rng = np.random.default_rng(0)
    np.savez(path, **{"params/atst/" + "/".join(str(key.key) for key in keys):
                      0.1 * rng.standard_normal(leaf.shape).astype(np.float32)
                      for keys, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]})


@pytest.fixture
def chain(mel_workdir, folder, tmp_path):
    """A model of the embeddings of the mel model; and a directory with its features."""
    shutil.copytree(mel_workdir, tmp_path / "mel")
    run_command(extract, f"--audio={folder}", f"--output={tmp_path / 'dir'}", "--features=embeddings",
                f"--embeddings_from={tmp_path / 'mel'}")
    entry = read_layout(tmp_path / "dir").extractor("embeddings")
    embedding_workdir(tmp_path, 16, entry).rename(tmp_path / "head")
    return tmp_path


def test_embeddings_by_the_extractor_that_the_workdir_names(chain, folder, tmp_path_factory):
    detector = sedjax.load(chain / "head")
    shutil.copytree(chain / "dir", chain / "other")
    for path in (chain / "other" / "audio_features").iterdir():
        provenance.write(path, npz.read_npz(path), {"embeddings": Extractor(parameters="another one")}, None)
    with pytest.raises(UserError, match="extractor 'another one'.*trained on .*'conv_transformer"):
        predict.predict_directory(detector.model, chain / "other")
    expected = predict.predict_directory(detector.model, chain / "dir")
    for found in detector.detect(sorted(folder.iterdir())):
        np.testing.assert_allclose(found.frames, expected[pathlib.Path(found.recording).name].frames, atol=1e-4)

    moved = tmp_path_factory.mktemp("elsewhere") / "runs"
    chain.rename(moved)
    extractor = sedjax.load(moved / "head").extractor  # both moved together
    assert extractor.workdir == moved / "mel"
    (moved / "mel").rename(moved / "renamed")
    with pytest.raises(UserError, match=r"embeddings \(16 .*/mel.*--embeddings_from"):
        sedjax.load(moved / "head")(folder / "half.flac")
    renamed = sedjax.load(moved / "head", embeddings_from=moved / "renamed")
    assert renamed.extractor.embedding_version == extractor.embedding_version
    write_atst(moved / "atst.npz")
    with pytest.raises(UserError, match=r"atst\.npz: 'conv_transformer .*', not 'atst"):
        sedjax.load(moved / "head", embeddings_from=moved / "atst.npz").detect([])
    flags = [f"--workdir={moved / 'head'}", folder / "half.flac", f"--output={moved / 'out'}"]
    with pytest.raises(UserError, match="takes 'embeddings', so it cannot be an extractor"):
        run_command(predict, *flags, f"--embeddings_from={moved / 'head'}")
    assert not (moved / "out").exists()


def test_embeddings_of_unknown_origin(mel_workdir, tmp_path):
    workdir = embedding_workdir(tmp_path, 16, None)
    with pytest.raises(UserError, match=r"embeddings \(16 .* not recorded: .*--embeddings_from"):
        sedjax.load(workdir).detect([])
    assert list(sedjax.load(workdir, embeddings_from=mel_workdir).detect([])) == []
    workdir = embedding_workdir(tmp_path / "wider", 24, None)
    with pytest.raises(UserError, match=r"\(24 .* 16 "):
        sedjax.load(workdir, embeddings_from=str(mel_workdir)).detect([])


class Level(Loudness):
    """Its head sees the root mean square of each frame."""

    @nn.compact
    def __call__(self, features, frame_mask, *, train=False, clip_id=None):
        x = jnp.sqrt(((features["audio"].astype(jnp.float32) / 32768) ** 2).mean(-1, keepdims=True)).repeat(16, axis=-1)
        self.sow("intermediates", "embeddings", x)
        return nn.Dense(self.num_classes)(x)


def test_embeddings_of_a_model_that_takes_the_sound(folder, tmp_path, monkeypatch):
    """In features and in a chain: in turn, decoded once, in bounded memory, beside what cannot be read."""
    monkeypatch.setitem(registry.MODELS, "level", Level)
    level, sounds, opened = untrained(tmp_path / "level", "level", {"audio": 1920}), tmp_path / "sounds", []
    shutil.copytree(folder, sounds)
    for name in ("a.wav", "p.wav", "z.wav"):
        soundfile.write(sounds / name, np.append(np.zeros(700_000), np.nan), 16000, subtype="FLOAT")
    blocks = reader.blocks
    monkeypatch.setattr(reader, "blocks", lambda path, *more: opened.append(path.name) or blocks(path, *more))
    names = ("melspectrogram", "embeddings")
    assert extract.extract(sounds, tmp_path / "dir", names, str(level)) == (6, 3)
    assert opened == sorted(path.name for path in sounds.iterdir())
    layout = read_layout(tmp_path / "dir")
    for name in layout.filenames:
        found, rows = layout.features(name, names), reader.frames(folder / name)
        expected = np.sqrt(((rows / np.float32(32768)) ** 2).mean(-1))
        assert found["embeddings"].shape == (len(rows), 16)
        np.testing.assert_allclose(found["embeddings"][:, 5], expected, atol=1e-3)
    head = sedjax.load(embedding_workdir(tmp_path, 16, layout.extractor("embeddings")))
    expected = predict.predict_directory(head.model, tmp_path / "dir")
    for found in head.detect(sorted(folder.iterdir())):
        np.testing.assert_allclose(found.frames, expected[pathlib.Path(found.recording).name].frames, atol=1e-4)

    monkeypatch.setattr(reader, "blocks", lambda *_: (np.zeros(160_000, np.float32) for _ in range(180)))
    tracemalloc.start()
    try:
        (clip,) = extractors.extract_features(["half_an_hour.wav"], ("embeddings",), head.extractor)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert clip.features["embeddings"].shape == (15_000, 16)
    assert most < 0.6 * 1800 * 16000 * 2  # bytes of its 16-bit samples


class Flux(Loudness):
    inputs: ClassVar[tuple[str, ...]] = ("flux",)


def test_embeddings_of_an_atst_frame(folder, tmp_path):
    write_atst(tmp_path / "atst.npz")
    detector = sedjax.load(embedding_workdir(tmp_path, 64, None), embeddings_from=tmp_path / "atst.npz")
    paths = [folder / "half.flac", folder / "above.flac"]
    embeddings = extractors.extract_features(paths, ("embeddings",), detector.extractor)
    expected = detections(detector.model, clips.recut(embeddings, detector.model.max_frames), detector.rules)
    for found, other in zip(detector.detect(paths, keep=("mfcc",)), expected, strict=True):
        np.testing.assert_allclose(found.frames, other.frames, atol=1e-5)
        assert found.features["mfcc"].shape == (len(found.frames), 32)


def test_a_model_that_takes_what_no_recording_gives(detectors):
    model = dataclasses.replace(detectors["audio"].model, model=Flux(num_classes=3), features={"flux": {"width": 1}})
    with pytest.raises(UserError, match="a recording .* feature 'flux'"):
        Detector(model, default_rules(model.thresholds)).detect([])


class Both(Loudness):
    inputs: ClassVar[tuple[str, ...]] = ("mfcc", "audio")


def test_a_model_that_takes_sound_and_spectral_features(detectors, folder):
    model = dataclasses.replace(detectors["audio"].model, model=Both(num_classes=3),
                                features={"audio": {"width": 1920}, "mfcc": {"width": 32}})
    found = Detector(model, default_rules(model.thresholds))(folder / "above.flac")
    expected = detectors["audio"](folder / "above.flac")
    np.testing.assert_allclose(found.frames, expected.frames, atol=1e-5)
    assert found.events == expected.events


def test_a_model_that_takes_nothing(folder, tmp_path):
    found = sedjax.load(untrained(tmp_path, "naive", {}))(folder / "half.flac")
    assert (found.frames.shape, found.seconds, found.events) == ((5, 3), 0.5, ())


def test_the_origin_of_embeddings_is_only_noted_if_it_is_that_of_all(mel_workdir, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    flags = [f"--audio={folder}", f"--output={out}", f"--embeddings_from={mel_workdir}"]
    run_command(extract, *flags, "--features=embeddings")
    recorded = read_layout(out).extractor("embeddings")
    parameters = extractors.load_extractor(str(mel_workdir), 9.6, 0).embedding_version
    assert recorded == {"path": str(mel_workdir), "parameters": parameters}
    with open(out / "metadata.csv", "a") as file:
        file.write("from_somebody.wav,1.0\n")
    assert read_layout(out).extractor("embeddings") is None


def test_the_parameters_of_an_extractor_say_which_spectral_features_it_takes(mel_workdir, monkeypatch):
    before = extractors.load_extractor(str(mel_workdir), 9.6, 0).embedding_version
    monkeypatch.setattr(trained, "SPECTRAL_VERSION", "another")
    assert extractors.load_extractor(str(mel_workdir), 9.6, 0).embedding_version != before


def test_features_of_another_origin_are_warned_of_once(mel_workdir, folder, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(detector_lib.log, "warning", lambda text, *words: said.append(text % words))
    extract.extract(folder, tmp_path / "dir", ("melspectrogram",))
    recorded = read_layout(tmp_path / "dir").extractor("melspectrogram")
    assert recorded == {"parameters": SPECTRAL_VERSION}
    shutil.copytree(mel_workdir, tmp_path / "mel")
    parameters = extractors.load_extractor(str(mel_workdir), 9.6, 0).embedding_version
    entry = {"path": str(tmp_path / "mel"), "parameters": parameters}
    head = embedding_workdir(tmp_path, 16, entry)
    for origin, words in ((recorded, []), (None, ["melspectrogram of the model in"]),
                          ({"parameters": "0"}, ["melspectrogram of the model in"])):
        (tmp_path / "mel" / "features.json").write_text(json.dumps(
            {"melspectrogram": {"width": 64} | ({"extractor": origin} if origin else {})}))
        for workdir in (tmp_path / "mel", head):
            said.clear()
            run_command(predict, f"--workdir={workdir}", folder / "half.flac", f"--output={tmp_path / 'out'}",
                        "--formats=tsv")
            assert len(said) == len(words)
            assert all(f"{word} {tmp_path / 'mel'}" in text for word, text in zip(words, said))
    np.savez(tmp_path / "dir" / "audio_features" / "from_somebody.npz", melspectrogram=np.ones((9, 64), np.float32))
    with open(tmp_path / "dir" / "metadata.csv", "a") as file:
        file.write("from_somebody.wav,1.0\n")
    assert read_layout(tmp_path / "dir").extractor("melspectrogram") is None


# The picture.


@pytest.mark.parametrize(("seconds", "label"), [(0.3, "0.2"), (5, "3.0"), (600, "5:00"), (10_000, "1:00:00")])
def test_a_picture_of_any_length(seconds, label):
    rng = np.random.default_rng(0)
    frames = -(-round(seconds * 16000) // 1920)
    found = detection(rng.random((frames, 10)).astype(np.float32) ** 99, task=MLPC_2025, seconds=seconds)
    figure = figures.draw_recording(rng.exponential(size=(frames, 64)).astype(np.float32), found)
    figure.canvas.draw()
    top, bottom = figure.axes
    assert top.images[0].get_array().shape[1] <= 2400
    assert bottom.get_xlim() == (0, seconds)
    ticks = [tick.get_text() for tick in bottom.get_xticklabels()]
    assert label in ticks
    assert 3 <= len(ticks) < 60
    bars = sum(len(collection.get_paths()) for collection in bottom.collections if collection.get_label() == "detected")
    assert bars == len(found.events)
    plt.close(figure)


def test_axes_thresholds_and_title_of_a_picture():
    """A tone of 1 kHz is at 1,000 Hz, and the title is the name, whatever is in it."""
    power = np.full((20, 64), 1e-6, np.float32)
    centres_hz = mel.mel_to_hz(np.linspace(0, mel.hz_to_mel(np.array(8000.0), False), 66), False)[1:-1]
    tone = np.abs(centres_hz - 1000).argmin()
    power[:, tone] = 1
    found = dataclasses.replace(detection(np.full((20, 3), 0.1, np.float32), thresholds=0.25),
                                recording="folder/$x^{$ 雪 \udce9.wav")
    figure = figures.draw_recording(power, found)
    top, bottom = figure.axes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.canvas.draw()
    assert top.get_title() == "$x^{$ 雪 \\udce9.wav"
    heights = {tick.get_text(): height for tick, height in zip(top.get_yticklabels(), top.get_yticks())}
    assert heights["1,000"] * 64 == pytest.approx(tone + 0.5, abs=0.5)
    (thresholds,) = (lines for lines in bottom.collections if lines.get_label() == "threshold")
    curves = [patch.get_data().values[0] for patch in bottom.patches]
    for label, (line, curve) in enumerate(zip(thresholds.get_segments(), curves, strict=True)):
        assert (label + 1 - line[0, 1]) / (label + 1 - curve) == pytest.approx(2.5)
    plt.close(figure)


def test_what_a_person_sees_of_a_detection():
    frames = np.zeros((30, 3), np.float32)
    frames[5:8, 1] = frames[20:30, 2] = 0.9
    found = detection(frames, seconds=3.5)
    assert (len(found), found[0], list(found)) == (2, found.events[0], list(found.events))
    assert repr(found) == "Detection('a.wav', 3.5 s, 2 events)"
    text = found._repr_html_()
    assert text.count("<rect") == 2
    assert all(f"<td>{name}</td>" in text for name in TINY_TASK.classes)
    pandas = pytest.importorskip("pandas")
    table = found.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert table.columns.tolist() == ["onset", "offset", "label", "score"]
    assert table.label.tolist() == ["Crow", "Drum"]
