"""The built-in data set: exact labels, the same bytes always, classes that can be told apart, whole or not there."""

import csv
import errno
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from numpy_features import spectral_features
from sedjax.data_prep import soundscapes, synthesis
from sedjax.data_prep.soundscapes import Parameters, write_soundscapes
from sedjax.data_prep.synthesis import SOURCES

from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.core import grid
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.data import layout

PARAMETERS = Parameters(recordings=30, seconds_min=3, seconds_max=4, seed=1)


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a directory, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def silence(rng: np.random.Generator, seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 16000))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
    """The data set of PARAMETERS, in a directory whose parent does not exist before."""
    output = tmp_path_factory.mktemp("soundscapes") / "new" / "one"
    assert write_soundscapes(output, PARAMETERS)
    return output


def test_another_seed_and_another_index_give_another_recording(tmp_path):
    found = []
    for run, (seed, index) in enumerate([(1, 0), (1, 0), (2, 0), (1, 2)]):
        for name in ("audio", "audio_features", "labels"):
            (tmp_path / str(run) / name).mkdir(parents=True)
        parameters = Parameters(seconds_min=3, seconds_max=3, seed=seed)
        soundscapes.write_recording(tmp_path / str(run), parameters, index, required=())
        found.append(soundfile.read(tmp_path / str(run) / "audio" / f"{index:05d}.flac")[0])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])


def test_layout_reads_every_recording(written):
    data = layout.read_layout(written)
    data.task.require_same(MLPC_2025, where="MLPC_2025")
    durations = {row["filename"]: float(row["duration"]) for row in rows_of(written / "metadata.csv")}
    assert tuple(durations) == data.filenames
    assert len(durations) == PARAMETERS.recordings
    assert data.extractor("melspectrogram") == data.extractor("mfcc") == {"parameters": SPECTRAL_VERSION}
    for filename, duration in durations.items():
        audio, sample_rate = soundfile.read(data.audio_path(filename), dtype="float32")
        assert (sample_rate, audio.ndim) == (16000, 1)
        assert len(audio) == duration * 16000
        assert 3 <= duration <= 4
        assert 0 < np.abs(audio).max() < 1
        frames = grid.num_frames(duration, MLPC_2025)
        features = data.features(filename, ("melspectrogram", "mfcc"))
        assert {key: (value.shape, value.dtype) for key, value in features.items()} == {
            "melspectrogram": ((frames, 64), np.float32), "mfcc": ((frames, 32), np.float16)}
        assert data.votes(filename).shape == (frames, 10)
        expected = spectral_features(audio, frames)
        np.testing.assert_allclose(features["melspectrogram"], expected["melspectrogram"], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(features["mfcc"], expected["mfcc"], atol=0.1, rtol=2e-3)


def test_labels_are_what_the_annotations_say(written):
    """Frame t is marked if and only if an event overlaps [120 t, 120 (t + 1)) ms: brute force, without core.grid."""
    data = layout.read_layout(written)
    annotations = rows_of(written / "annotations.csv")
    assert {row["annotator"] for row in annotations} == {"0", "1", "2"}
    for filename in data.filenames:
        with np.load(data.labels_path(filename)) as labels:
            assert set(labels) == set(MLPC_2025.classes)
            for label, marks in labels.items():
                assert marks.dtype == np.uint8
                expected = np.zeros_like(marks)
                for row in annotations:
                    if (row["filename"], row["text"]) == (filename, label):
                        onset, offset = (round(1000 * float(row[key])) for key in ("onset", "offset"))
                        for frame in range(len(marks)):
                            if onset < 120 * (frame + 1) and offset > 120 * frame:
                                expected[frame, int(row["annotator"])] = 1
                np.testing.assert_array_equal(marks, expected, err_msg=f"{filename} {label}")


def test_first_annotator_is_exact_to_the_sample(monkeypatch):
    """Without background, sound begins where each event begins, ends where it ends, and is nowhere else."""
    monkeypatch.setattr(soundscapes, "render_background", silence)
    for index in range(20):
        rng = np.random.default_rng([5, index])
        audio, events = soundscapes.compose(rng, Parameters(), required=())
        _, rows = soundscapes.annotate(rng, events, len(audio) / 16000)
        exact = [row for row in rows if row[0] == 0]
        assert sorted(exact) == sorted((0, onset, offset, label) for label, onset, offset, _ in events)
        sounding = np.zeros(len(audio), bool)
        for _, onset, offset, label in exact:
            first, last = round(onset * 16000), round(offset * 16000)
            sounding[first:last] = True
            assert np.abs(audio[first : first + 160]).max() > 1e-6, (label, "onset")
            assert np.abs(audio[last - 160 : last]).max() > 1e-6, (label, "offset")
        assert not audio[~sounding].any()


def test_other_annotators_are_near_and_miss_faint_events_more_often():
    events = [("Siren", float(onset), onset + 2.0, snr_db) for snr_db in (0.0, 20.0) for onset in range(0, 200, 4)]
    counts, shifts, noted = [], [], {0.0: 0, 20.0: 0}
    for seed in range(20):
        count, rows = soundscapes.annotate(np.random.default_rng(seed), events, 300.0)
        counts.append(count)
        for annotator, onset, offset, _ in rows:
            if annotator > 0:
                shifts.append((onset - 4 * round(onset / 4), offset - onset - 2))
    assert set(counts) == {1, 2, 3}
    assert 0.02 < np.std(shifts, axis=0).min() < np.std(shifts, axis=0).max() < 0.2
    for snr_db in noted:
        faint_or_loud = [event for event in events if event[3] == snr_db]
        for seed in range(20):
            count, rows = soundscapes.annotate(np.random.default_rng(seed), faint_or_loud, 300.0)
            noted[snr_db] += sum(row[0] > 0 for row in rows) / (len(faint_or_loud) * (sum(counts) - len(counts)))
    assert noted[0.0] == pytest.approx(0.75, abs=0.05)
    assert noted[20.0] == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("recordings", [10, 30, 240])
def test_plan_gives_every_split_every_class(recordings):
    splits, required = soundscapes.plan(Parameters(recordings=recordings, seed=3))
    sizes = {split: splits.count(split) for split in layout.SPLITS}
    assert sizes == {"train": 0.6 * recordings, "validation": 0.2 * recordings, "test": 0.2 * recordings}
    for split in layout.SPLITS:
        assert {label for name, labels in zip(splits, required) if name == split for label in labels} == set(SOURCES)
    assert splits != soundscapes.plan(Parameters(recordings=recordings, seed=4))[0]


def test_every_class_occurs_in_every_split(written):
    data = layout.read_layout(written)
    for split, filenames in layout.read_splits(data).items():
        assert len(filenames) == {"train": 18, "validation": 6, "test": 6}[split]
        assert np.concatenate([data.votes(filename) for filename in filenames]).any(axis=0).all(), split


def test_events_are_sparse_and_uneven(monkeypatch):
    monkeypatch.setattr(soundscapes, "render_background", silence)
    share, empty, recordings = dict.fromkeys(SOURCES, 0.0), 0, 70
    for index in range(recordings):
        audio, events = soundscapes.compose(np.random.default_rng([0, index]), Parameters(), ())
        empty += not events
        for label, onset, offset, _ in events:
            share[label] += (offset - onset) * 16000 / len(audio) / recordings
    assert all(0.02 < value < 0.2 for value in share.values()), share
    assert max(share.values()) > 2 * min(share.values())
    assert 1 <= empty <= 10


def test_events_have_their_level(monkeypatch):
    """The power of an event over that of the background is the SNR that compose reports, and never below 0 dB."""
    real, checked = soundscapes.render_background, 0
    for index in range(12):
        monkeypatch.setattr(soundscapes, "render_background", real)
        mixed, events = soundscapes.compose(np.random.default_rng([6, index]), PARAMETERS, ())
        monkeypatch.setattr(soundscapes, "render_background", lambda rng, seconds: 0 * real(rng, seconds))
        alone, _ = soundscapes.compose(np.random.default_rng([6, index]), PARAMETERS, ())
        if np.abs(mixed).max() > 0.979:
            continue  # scaled down, and `alone` by another factor
        for _, onset, offset, snr_db in events:
            assert 0 <= snr_db <= 28
            if sum(onset < other[2] and offset > other[1] for other in events) == 1:  # only itself
                power = np.mean(alone[round(onset * 16000) : round(offset * 16000)] ** 2)
                assert 10 * np.log10(power / np.mean((mixed - alone) ** 2)) == pytest.approx(snr_db, abs=0.1)
                checked += 1
    assert checked >= 3


def test_loud_recordings_are_scaled_not_clipped(monkeypatch):
    monkeypatch.setattr(soundscapes, "render_background", lambda rng, seconds: np.full(round(seconds * 16000), 1e4))
    assert np.abs(soundscapes.compose(np.random.default_rng(0), PARAMETERS, ())[0]).max() == pytest.approx(0.98)


def test_frames_with_events_are_louder(written):
    data = layout.read_layout(written)
    louder = []
    for filename in data.filenames:
        active = data.votes(filename).any(axis=1)
        level = np.log(data.features(filename, ("melspectrogram",))["melspectrogram"][:, 8:]).mean(axis=1)
        if 4 < active.sum() < len(active) - 4:
            louder.append(level[active].mean() > level[~active].mean())
    assert len(louder) >= 15
    assert np.mean(louder) > 0.9


def test_classes_can_be_told_apart():
    """The nearest centroid of mean and spread of log-mel finds the class of isolated events; chance is 10 %."""
    described = {}
    for number, label in enumerate(MLPC_2025.classes):
        described[label] = []
        for index in range(20):
            sound = synthesis.render(label, np.random.default_rng([number, index]), 1.5)
            assert np.sqrt(np.mean(sound**2)) == pytest.approx(1)
            assert 0.05 * 16000 < len(sound) <= 1.5 * 16000
            frames = grid.num_frames(len(sound) / 16000, MLPC_2025)
            mel = np.log(spectral_features(sound, frames)["melspectrogram"] + 1e-3)
            described[label].append(np.concatenate([mel.mean(axis=0), mel.std(axis=0)]))
    described = np.array(list(described.values()))  # class, example, number
    centroids = described[:, :10].mean(axis=1)
    distances = np.linalg.norm(described[:, 10:, None] - centroids, axis=-1)
    accuracy = (distances.argmin(axis=-1) == np.arange(10)[:, None]).mean(axis=1)
    assert accuracy.mean() >= 0.8, dict(zip(MLPC_2025.classes, accuracy))
    assert accuracy.min() >= 0.5, dict(zip(MLPC_2025.classes, accuracy))


def test_the_same_again_is_a_no_op(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert not write_soundscapes(written, PARAMETERS, workers=3)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_other_content_is_left_alone(written, tmp_path):
    with pytest.raises(UserError, match=r"seed 1 instead of 2; choose another --output"):
        write_soundscapes(written, Parameters(recordings=30, seconds_min=3, seconds_max=4, seed=2))
    (tmp_path / "notes.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="is not a built-in data set"):
            write_soundscapes(output, PARAMETERS)
    (tmp_path / "soundscapes.json").write_text("[]")
    with pytest.raises(UserError, match="is not a built-in data set"):
        write_soundscapes(tmp_path, PARAMETERS)
    assert contents(tmp_path) == {"notes.txt": b"mine", "soundscapes.json": b"[]"}


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(soundscapes, "write_recording", full)
    with pytest.raises(UserError, match=r"Cannot write .*out: No space left on device"):
        write_soundscapes(tmp_path / "out", PARAMETERS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_soundscapes(tmp_path / "file" / "out", PARAMETERS)


@pytest.mark.parametrize("bad", [{"recordings": 9}, {"seconds_min": 1.9}, {"seconds_min": 13}, {"seed": -1},
                                 {"seconds_max": float("nan")}, {"seconds_max": 601}])
def test_impossible_parameters(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Parameters(**bad)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(UserError, match="workers must be at least 1, not 0"):
        write_soundscapes(tmp_path / "out", PARAMETERS, workers=0)


def test_command_line(tmp_path):
    """Every flag reaches the data set, and two worker processes write the very bytes that this process alone writes."""
    (tmp_path / "two").mkdir()  # empty: it may be replaced
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.soundscapes", f"--output={tmp_path}/two", "--recordings=12",
         "--seconds_min=2", "--seconds_max=2.5", "--seed=7", "--workers=2"],
        capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})  # as in this process: it decides the last bit
    assert (done.returncode, done.stdout) == (0, f"Wrote 12 recordings to {tmp_path}/two.\n"), done.stderr
    write_soundscapes(tmp_path / "one", Parameters(recordings=12, seconds_min=2.0, seconds_max=2.5, seed=7), workers=1)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len(one) == 3 * 12 + 5
    assert list(one) == list(two)
    assert [name for name in one if one[name] != two[name]] == []
