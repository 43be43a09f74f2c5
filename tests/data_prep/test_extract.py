"""From a folder of recordings to features: right, once, also after a kill, and without what cannot be read."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import soundfile
from numpy_features import spectral_features
from sedjax.data_prep import extract
from tiny import run_command, write_layout
from workdirs import arrays, rows_of, untrained

from sedjax.audio import mel, reader, spectral
from sedjax.audio.spectral import _mel_power, _mfcc
from sedjax.commands import predict
from sedjax.core import errors, files, npz
from sedjax.core.errors import UserError
from sedjax.data.layout import read_layout
from sedjax.inference import extractors

SECONDS = {"a.wav": 1.0, "b.flac": 13.0, "c.ogg": 0.4, "d.wav": 30.5}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Recordings of 0.4 to 30.5 s, at 16 and 44.1 kHz, and a file that is none."""
    path = tmp_path / "audio"
    path.mkdir()
    for i, (name, seconds) in enumerate(SECONDS.items()):
        rate_hz = 44100 if i % 2 else 16000
        samples = 0.1 * np.random.default_rng(i).standard_normal((round(seconds * rate_hz), 1 + i % 2))
        soundfile.write(path / name, samples, rate_hz)
    (path / "notes.txt").write_text("none")
    return path


def test_features_are_those_of_the_whole_recording(folder, tmp_path):
    assert extract.extract(folder, tmp_path / "out", extract.FEATURES[:4]) == (4, 0)
    layout = read_layout(tmp_path / "out")
    assert layout.filenames == tuple(SECONDS)
    for row in rows_of(tmp_path / "out" / "metadata.csv"):
        assert float(row["duration"]) == pytest.approx(SECONDS[row["filename"]], abs=1e-4)
    for name, seconds in SECONDS.items():
        found = layout.features(name, extract.FEATURES[:4])
        frames = -(-round(seconds * 16000) // 1920)
        expected = spectral_features(reader.read(folder / name), frames)
        np.testing.assert_allclose(found["melspectrogram"], expected["melspectrogram"], rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(found["mfcc"], expected["mfcc"], atol=0.1, rtol=2e-3)
        assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
            "melspectrogram": ((frames, 64), np.float32),
            **dict.fromkeys(extract.FEATURES[1:4], ((frames, 32), np.float16))}


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 100 * 1920, 100 * 1920 + 1, 101 * 1920, 101 * 1920 + 1])
def test_pieces_make_up_the_recording(samples, monkeypatch):
    x = np.arange(1, samples + 1, dtype=np.float32)
    pieces = []

    def last_samples(piece):
        """Of each frame, in place of its mel power."""
        pieces.append(piece[0])
        return piece.reshape(1, -1, 1920)[..., -1:]

    monkeypatch.setattr(spectral, "_mel_power", last_samples)
    one = spectral.FeatureStream((x[start : start + 1000] for start in range(0, samples, 1000)), ("melspectrogram",))
    np.testing.assert_array_equal(np.concatenate(list(one)), x)
    padded = np.pad(x, (1920, 102 * 1920))
    for i, piece in enumerate(pieces):
        np.testing.assert_array_equal(piece, padded[i * 100 * 1920 :][: 102 * 1920])
    ends = np.pad(x, (0, -samples % 1920))[1919::1920]
    np.testing.assert_array_equal(one.features["melspectrogram"][:, 0], ends)


def test_only_what_is_new_or_has_changed_is_done(folder, tmp_path, monkeypatch):
    done = []
    original = extractors.extract_features

    def watched(paths, *more):
        return original((done.append(path.name) or path for path in paths), *more)

    monkeypatch.setattr(extractors, "extract_features", watched)

    def run(*features):
        done.clear()
        extract.extract(folder, tmp_path / "out", features or ("melspectrogram",))
        return list(done)

    features = tmp_path / "out" / "audio_features"
    assert run() == list(SECONDS)
    assert run() == []
    os.utime(folder / "a.wav", ns=(1, 1))
    assert run() == ["a.wav"]
    soundfile.write(folder / "c.ogg", np.zeros(50000), 16000)
    assert run() == ["c.ogg"]
    assert len(arrays(features / "c.npz")["melspectrogram"]) == 27
    (features / "b.npz").unlink()
    (features / "d.npz").write_bytes(b"")
    assert run() == ["b.flac", "d.wav"]
    monkeypatch.setattr(mel, "SPECTRAL_VERSION", "2")
    assert run() == list(SECONDS)
    assert run("mfcc") == list(SECONDS)
    assert set(arrays(features / "a.npz")) == {"melspectrogram", "mfcc"}
    assert run("melspectrogram", "mfcc") == []
    (features / "d.npz").write_bytes(b"")
    assert run("mfcc") == ["d.wav"]
    assert run("melspectrogram") == ["d.wav"], "it went with the file"
    (features / "d.npz").write_bytes(b"half")
    assert run("mfcc") == [], "it may be anybody's"
    (features / "d.npz").unlink()
    assert run("mfcc") == ["d.wav"]
    soundfile.write(folder / "e.wav", np.zeros(50000), 16000)
    assert run("mfcc") == ["e.wav"]
    assert run("mfcc") == []
    assert read_layout(tmp_path / "out").filenames == (*SECONDS, "e.wav")


def spoil(folder: pathlib.Path) -> set[str]:
    """Adds files that cannot be read."""
    whole = (folder / "b.flac").read_bytes()
    bad = {"empty.wav": b"", "text.mp3": b"no audio " * 100, "half.flac": whole[: len(whole) // 2], "video.m4a": b"mp4"}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    soundfile.write(folder / "nan.wav", np.array([0, np.nan]), 16000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    shutil.copy(folder / "a.wav", folder / "b.wav")
    return {*bad, "nan.wav", "none.wav", "b.wav"}


def test_bad_files_are_listed_and_the_others_done(folder, tmp_path, capsys):
    bad, output = spoil(folder), tmp_path / "out"
    (folder / "link.wav").symlink_to(tmp_path / "nowhere")
    shutil.copy(folder / "a.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    with pytest.raises(SystemExit) as end:
        run_command(extract, f"--audio={folder}", f"--output={output}")
    assert end.value.code == extract.SOME_BAD_STATUS
    assert "of 4 recordings; 9 cannot be read, listed in" in capsys.readouterr().out
    assert read_layout(output).filenames == tuple(SECONDS)
    assert {path.name for path in (output / "audio_features").iterdir()} == {"a.npz", "b.npz", "c.npz", "d.npz"}
    listed = {row["filename"]: row["reason"] for row in rows_of(output / "bad_recordings.csv")}
    assert "not UTF-8" in listed.pop("caf\\udce9.wav")
    assert set(listed) == bad | {"link.wav"}
    assert all(name in reason and "\n" not in reason for name, reason in listed.items())
    assert "share its features file with b.flac" in listed["b.wav"]
    for name in (*listed, os.fsdecode(b"caf\xe9.wav")):
        (folder / name).unlink()
    run_command(extract, f"--audio={folder}", f"--output={output}")
    assert not (output / "bad_recordings.csv").exists()


def write_damaged(folder: pathlib.Path, number: int, kind: str) -> pathlib.Path:
    """A file that is damaged in one of ten ways, no two alike."""
    samples = 0.1 * np.random.default_rng(number).standard_normal(16000 + 100 * number)
    suffix = {"text": "mp3", "cut flac": "flac", "cut mp3": "mp3", "cut ogg": "ogg", "codec": "m4a"}.get(kind, "wav")
    path = folder / f"bad_{number:02d}.{suffix}"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"This is no audio.\n" * (number + 1))
    elif kind == "codec":
        path.write_bytes(b"\0\0\0\x1cftypM4A \0\0\2\0M4A isommp42" + bytes(samples.astype("i1")))
    elif kind == "no samples":
        soundfile.write(path, samples[:0], 16000)
    elif kind == "NaN":
        samples[100 * number] = np.nan
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    elif kind == "not scaled":
        soundfile.write(path, 32767 * samples, 16000, subtype="DOUBLE")
    else:
        soundfile.write(path, samples, 16000)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * (number + 20) // 80])
    return path


KINDS = ("empty", "text", "codec", "no samples", "NaN", "not scaled", "cut wav", "cut flac", "cut mp3", "cut ogg")


def test_36_good_and_20_damaged_files_of_ten_kinds(tmp_path, capsys):
    folder, output = tmp_path / "audio", tmp_path / "out"
    folder.mkdir()
    for i in range(36):
        suffix, rate_hz = ("wav", "flac", "ogg", "mp3")[i % 4], (8000, 16000, 44100)[i % 3]
        samples = 0.1 * np.random.default_rng(i).standard_normal((rate_hz // 10 + 50 * i, 1 + i % 2))
        soundfile.write(folder / f"good_{i:03d}.{suffix}", samples, rate_hz)
    bad = [write_damaged(folder, i, KINDS[i % 10]) for i in range(20)]
    with pytest.raises(SystemExit) as end:
        run_command(extract, f"--audio={folder}", f"--output={output}", "--features=melspectrogram")
    assert end.value.code == extract.SOME_BAD_STATUS
    assert "of 36 recordings; 20 cannot be read, listed in" in capsys.readouterr().out

    def times():
        return {path.name: path.stat().st_mtime_ns for path in (output / "audio_features").iterdir()}

    before = times()
    assert len(before) == len(read_layout(output).filenames) == 36
    listed = rows_of(output / "bad_recordings.csv")
    assert [row["filename"] for row in listed] == sorted(path.name for path in bad)
    assert all(row["filename"] in row["reason"] for row in listed)
    assert extract.extract(folder, output, ("melspectrogram",)) == (36, 20)
    assert times() == before
    soundfile.write(bad[0], np.zeros(100), 16000)
    assert extract.extract(folder, output, ("melspectrogram",)) == (37, 19)
    after = times()
    assert after.pop("bad_00.npz")
    assert after == before


def test_recordings_that_change_or_go_while_they_are_read(folder, tmp_path, monkeypatch):
    def changing(paths, *more):
        for path, found in zip(SECONDS, original(paths, *more)):
            if path == "a.wav":
                (folder / path).unlink()
            if path == "c.ogg":
                os.utime(folder / path, ns=(1, 1))
            yield found

    original = extractors.extract_features
    with monkeypatch.context() as patch:
        patch.setattr(extractors, "extract_features", changing)
        assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (2, 2)
    listed = rows_of(tmp_path / "out" / "bad_recordings.csv")
    assert [row["filename"] for row in listed] == ["a.wav", "c.ogg"]
    assert all(row["filename"] in row["reason"] and "start again" in row["reason"] for row in listed)
    assert read_layout(tmp_path / "out").filenames == ("b.flac", "d.wav")
    assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (3, 0)


def test_what_others_wrote_is_kept(folder, tmp_path):
    """An output that is somebody's data set: its columns, its rows, its features."""
    output = tmp_path / "out"
    (output / "audio_features").mkdir(parents=True)
    (output / "metadata.csv").write_text("filename,place\nz.mp3,Linz\nb.flac,Graz\n")
    np.savez(output / "audio_features" / "a.npz", flux=np.ones((9, 1)))
    np.savez(output / "audio_features" / "c.npz", flux=np.ones((9, 1)))
    assert extract.extract(folder, output, ("mfcc",)) == (3, 1)
    assert set(arrays(output / "audio_features" / "a.npz")) == {"mfcc", "flux"}
    assert set(arrays(output / "audio_features" / "c.npz")) == {"flux"}
    assert re.search(" 9 frames.* 4", rows_of(output / "bad_recordings.csv")[0]["reason"])
    assert [(row["filename"], row["place"]) for row in rows_of(output / "metadata.csv")] == [
        ("z.mp3", "Linz"), ("b.flac", "Graz"), ("a.wav", ""), ("d.wav", "")]


def replaced(path: pathlib.Path, **arrays: np.ndarray) -> bytes:
    """What the user has put in place of a features file."""
    np.savez(path, **arrays)
    return path.read_bytes()


def test_features_of_another_source_are_not_replaced(folder, tmp_path, mel_workdir):
    """Of another program, or ours that were changed since; in a hidden file too."""
    features, output = tmp_path / "out" / "audio_features", tmp_path / "out"
    features.mkdir(parents=True)
    theirs = {name: replaced(features / name, mfcc=np.ones((9, 32), np.float16)) for name in ("a.npz", ".mine.npz")}
    assert extract.extract(folder, output, ("melspectrogram", "mfcc")) == (3, 1)
    theirs["c.npz"] = replaced(features / "c.npz", melspectrogram=np.ones((4, 64), np.float32),
                               mfcc=np.ones((4, 32), np.float16))
    os.utime(folder / "c.ogg", ns=(1, 1))
    assert extract.extract(folder, output, ("melspectrogram", "mfcc")) == (2, 2)
    listed = rows_of(output / "bad_recordings.csv")
    assert [row["filename"] for row in listed] == ["a.wav", "c.ogg"]
    assert "a.npz holds 'mfcc'" in listed[0]["reason"]
    theirs["d.npz"] = replaced(features / "d.npz", melspectrogram=np.ones((255, 64), np.float32),
                               embeddings=np.ones((255, 4), np.float16))
    (output / "metadata.csv").write_text("filename\nb.flac\nd.wav\n")
    before = (features / "b.npz").read_bytes()
    with pytest.raises(UserError, match=r"d\.npz holds 'embeddings'"):
        run_command(extract, f"--source={output}", f"--embeddings_from={mel_workdir}")
    assert (features / "b.npz").read_bytes() == before
    assert {name: (features / name).read_bytes() for name in theirs} == theirs


def test_what_others_made_stays_when_the_recording_changes(folder, tmp_path):
    """What sedjax made of the old recording goes; an array may have any name."""
    path = tmp_path / "out" / "audio_features" / "a.npz"
    path.parent.mkdir(parents=True)
    npz.savez(path, {"file": np.ones((9, 1))})
    extract.extract(folder, tmp_path / "out", ("mfcc", "melspectrogram"))
    assert set(arrays(path)) == {"file", "mfcc", "melspectrogram"}
    os.utime(folder / "a.wav", ns=(1, 1))
    assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (4, 0)
    assert set(arrays(path)) == {"file", "mfcc"}


def test_features_files_that_hold_no_arrays(folder, tmp_path):
    features = tmp_path / "out" / "audio_features"
    features.mkdir(parents=True)
    (features / "a.npz").write_bytes(b"half")
    with zipfile.ZipFile(features / "c.npz", "w") as archive:
        archive.writestr("x.npy", "text")
    (features / "d.npz").mkdir()
    np.savez(features / "b.npz", x=np.array([None, {}]))
    assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (0, 4)
    assert all(name in row["reason"] for name, row in zip(
        ("a.npz", "b.npz", "c.npz", "d.npz"), rows_of(tmp_path / "out" / "bad_recordings.csv")))


@pytest.mark.parametrize("text", ["filename,place\n", "filename\nz.mp3\n",
                                  "\ufeffplace,filename\r\n\"Linz,\r\n1\",z.mp3"])
def test_metadata_keeps_every_byte(folder, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metadata.csv").write_text(text, newline="")
    extract.extract(folder, tmp_path / "out", ("mfcc",))
    assert (tmp_path / "out" / "metadata.csv").read_bytes().startswith(text.encode())
    rows = list(files.read_csv(tmp_path / "out" / "metadata.csv").values())
    assert [row["filename"] for row in rows if row["filename"] != "z.mp3"] == list(SECONDS)


@pytest.mark.parametrize(("name", "text"), [
    ("metadata.csv", "name\na.wav\n"), ("bad_recordings.csv", "mine")])
def test_files_in_the_output_that_are_something_else(folder, tmp_path, monkeypatch, name, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    monkeypatch.setattr(reader, "blocks", None)
    with pytest.raises(UserError, match=name):
        extract.extract(folder, tmp_path / "out", ("mfcc",))
    assert (tmp_path / "out" / name).read_text() == text


def test_provenance_that_was_damaged_vouches_for_nothing(folder, tmp_path, monkeypatch):
    done = []
    original = extractors.extract_features
    monkeypatch.setattr(extractors, "extract_features", lambda paths, *more: original(
        (done.append(path.name) or path for path in paths), *more))
    extract.extract(folder, tmp_path / "out", ("mfcc",))
    changes = [(b'"parameters":"', b'"parameters":"0'), (b'"bytes":', b'"bytes":-'), (b'"seconds":', b'"seconds":-'),
               (b'"recording":', b'"cording":')]
    for name, change in zip(SECONDS, changes):
        with zipfile.ZipFile(tmp_path / "out" / "audio_features" / f"{name[0]}.npz", "a") as archive:
            assert change[0] in archive.comment
            archive.comment = archive.comment.replace(*change)
    done.clear()
    assert extract.extract(folder, tmp_path / "out", ("mfcc",))[0] >= 3
    assert done == [name for name in SECONDS if name != "c.ogg"], "of c.ogg nobody can know that it is ours"


def test_what_an_older_version_extracted_is_used_and_done_again(folder, tmp_path):
    """Checksums in the files, what computed them in extractors.json."""
    extract.extract(folder, tmp_path / "out", ("mfcc",))
    recorded = read_layout(tmp_path / "out").extractor("mfcc")
    for path in (tmp_path / "out" / "audio_features").iterdir():
        sums, _ = npz.npz_sums(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = json.dumps(sums).encode()
    assert read_layout(tmp_path / "out").extractor("mfcc") is None
    (tmp_path / "out" / "extractors.json").write_text(json.dumps({"mfcc": {"parameters": "old"}}))
    assert read_layout(tmp_path / "out").extractor("mfcc") == {"parameters": "old"}
    assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (4, 0)
    assert read_layout(tmp_path / "out").extractor("mfcc") == recorded


def test_a_model_without_embeddings(folder, tmp_path):
    naive = untrained(tmp_path, "naive", {})
    write_layout(tmp_path / "source", recordings=2)
    for flags in ((f"--audio={folder}", f"--output={tmp_path / 'out'}", "--features=embeddings"),
                  (f"--source={tmp_path / 'source'}",)):
        with pytest.raises(UserError, match="The model 'naive' in .* has no embeddings"):
            run_command(extract, *flags, f"--embeddings_from={naive}")
    assert not (tmp_path / "out").exists()


def test_names_of_any_length_and_characters(folder, tmp_path):
    names = ["n" * 251 + ".wav", "é" * 125 + ".wav", "x" * 238 + ".wav", "\u202fnarrow.wav"]
    bad = ["o" * 252 + ".au", "line\n.wav", "red\x1b[31m.wav"]
    for name in (*names, *bad):
        shutil.copy(folder / "c.ogg", folder / name)
    assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (8, 3)
    assert {row["filename"] for row in rows_of(tmp_path / "out" / "bad_recordings.csv")} == set(
        map(errors.printable, bad))
    assert set(names) < {row["filename"] for row in rows_of(tmp_path / "out" / "metadata.csv")}


def test_the_arrays_of_a_file_have_as_many_rows_whatever_the_labels_have(folder, tmp_path):
    for name in ("audio_features", "labels"):
        (tmp_path / "out" / name).mkdir(parents=True)
    np.savez(tmp_path / "out" / "audio_features" / "a.npz", flux=np.ones((8, 1)))
    np.savez(tmp_path / "out" / "labels" / "a_labels.npz", Bell=np.ones((9, 2)))
    assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (4, 0)
    found = arrays(tmp_path / "out" / "audio_features" / "a.npz")
    assert {name: len(value) for name, value in found.items()} == {"flux": 8, "mfcc": 8}


@pytest.mark.parametrize("others", [-2, -1, 0, 1, 2])
def test_rows_are_as_many_as_labels_have(folder, tmp_path, others):
    """Others may round the length of a recording otherwise; what is longer or shorter is another recording."""
    labels = tmp_path / "out" / "labels"
    labels.mkdir(parents=True)
    np.savez(labels / "a_labels.npz", Bell=np.zeros((9 + others, 2), np.uint8))
    done, bad = extract.extract(folder, tmp_path / "out", ("mfcc",))
    assert (done, bad) == ((4, 0) if abs(others) < 2 else (3, 1))
    if abs(others) < 2:
        found = arrays(tmp_path / "out" / "audio_features" / "a.npz")["mfcc"]
        (clip,) = spectral.clips([folder / "a.wav"], ("mfcc",))
        expected = clip.features["mfcc"]
        assert len(found) == 9 + others
        np.testing.assert_array_equal(found[:8], expected[:8])
        np.testing.assert_array_equal(found[9:], expected[8:][:len(found[9:])])
    else:
        reason = rows_of(tmp_path / "out" / "bad_recordings.csv")[0]["reason"]
        assert re.search(rf"a_labels\.npz .* {9 + others} frames.* 9", reason)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    folder, output = tmp_path / "audio", tmp_path / "out"
    folder.mkdir()
    for i in range(60):
        soundfile.write(folder / f"{i:02d}.wav", 0.1 * np.random.default_rng(i).standard_normal(320000), 16000)
    command = [sys.executable, "-m", "data_prep.extract", f"--audio={folder}", f"--output={output}"]
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    deadline = time.monotonic() + 120
    while len(list((output / "audio_features").glob("[0-9]*.npz"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in (output / "audio_features").glob("[0-9]*.npz")}
    assert 3 <= len(written) < 60
    assert not (output / "metadata.csv").exists()
    (output / "audio_features" / ".sedjax-x.npz").write_bytes(b"half")  # as a kill at another moment leaves behind
    assert extract.extract(folder, output, ("melspectrogram", "mfcc")) == (60, 0)
    assert sum(path.stat().st_mtime_ns != before for path, before in written.items()) <= 1, "the last was not noted yet"
    layout = read_layout(output)
    assert len(layout.filenames) == 60
    assert all(len(layout.features(name, ("melspectrogram", "mfcc"))["mfcc"]) == 167 for name in layout.filenames)
    assert not list((output / "audio_features").glob(".*"))


@pytest.fixture(scope="module")
def mel_workdir(tmp_path_factory) -> pathlib.Path:
    return untrained(tmp_path_factory.mktemp("mel"), "conv_transformer", {"melspectrogram": 64})


@pytest.mark.parametrize(("name", "widths", "words"), [
    ("embedding_transformer", {"embeddings": 16}, "takes 'embeddings', so it cannot be an extractor"),
    ("conv_transformer", {"melspectrogram": 40}, "'melspectrogram' of a recording is 64 wide; .* trained on 40")])
def test_a_model_that_does_not_take_these_features(tmp_path, folder, name, widths, words):
    with pytest.raises(UserError, match=words):
        extract.extract(folder, tmp_path / "out", ("embeddings",), str(untrained(tmp_path, name, widths)))
    assert not (tmp_path / "out").exists()


def test_embeddings_of_a_trained_model(folder, tmp_path, mel_workdir):
    output = tmp_path / "out"
    flags = [f"--audio={folder}", f"--output={output}", "--features=melspectrogram,embeddings"]
    run_command(extract, *flags, f"--embeddings_from={mel_workdir}")
    layout = read_layout(output)
    found = {name: arrays(layout.features_path(name)) for name in layout.filenames}
    assert {name: value["embeddings"].shape for name, value in found.items()} == {
        name: (layout.num_frames(name), 16) for name in SECONDS}
    again = [f"--audio={folder}", f"--output={tmp_path / 'again'}", "--features=melspectrogram"]
    run_command(extract, *again)
    run_command(extract, f"--source={tmp_path / 'again'}", f"--embeddings_from={mel_workdir}")
    times = {path: path.stat().st_mtime_ns for place in (output, tmp_path / "again")
             for path in (place / "audio_features").iterdir()}
    run_command(extract, *flags, f"--embeddings_from={mel_workdir}")
    soundfile.write(folder / "e.wav", np.zeros(5000), 16000)
    run_command(extract, *again)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for name, value in found.items():
        added = arrays(read_layout(tmp_path / "again").features_path(name))
        np.testing.assert_allclose(value["embeddings"], added["embeddings"], atol=2e-3)
    run_command(extract, *again[:2], "--features=mfcc")
    assert set(arrays(tmp_path / "again" / "audio_features" / "a.npz")) == {"melspectrogram", "mfcc", "embeddings"}
    assert predict.load(mel_workdir).model.inputs == ("melspectrogram",)


def test_features_are_added_where_there_are_none_and_beside_others(tmp_path):
    """A model that takes the sound embeds recordings that have no features file yet."""
    layout = write_layout(tmp_path / "source", recordings={"a.wav": 20, "b.wav": 30})
    shutil.rmtree(layout.path / "audio_features")
    path = layout.features_path("a.wav")
    extract.add_features(layout, "a.wav", {"embeddings": np.ones((20, 4))})
    np.testing.assert_array_equal(arrays(path)["embeddings"], np.ones((20, 4)))
    extract.add_features(layout, "a.wav", {"mfcc": np.ones((21, 4))})
    extract.add_features(layout, "a.wav", {"embeddings": np.zeros((19, 4))})
    assert {name: (len(value), value.sum()) for name, value in arrays(path).items()} == {
        "mfcc": (20, 80), "embeddings": (20, 0)}
    with pytest.raises(UserError, match=r"a\.npz .* 20 frames.* 22"):
        extract.add_features(layout, "a.wav", {"embeddings": np.zeros((22, 4))})
    path.write_bytes(b"half")
    with pytest.raises(UserError, match=r"a\.npz is damaged"):
        extract.add_features(layout, "a.wav", {"embeddings": np.ones((20, 4))})


def test_a_recording_is_read_once_and_only_for_what_is_wanted(folder, tmp_path, mel_workdir, monkeypatch):
    opened, computed = [], []
    blocks, mel_power, mfcc = reader.blocks, _mel_power, _mfcc
    monkeypatch.setattr(reader, "blocks", lambda path, *more: opened.append(path.name) or blocks(path, *more))
    monkeypatch.setattr(spectral, "_mel_power", lambda x: computed.append("power") or mel_power(x))
    monkeypatch.setattr(spectral, "_mfcc", lambda x: computed.append("mfcc") or mfcc(x))
    extract.extract(folder, tmp_path / "out", ("embeddings",), str(mel_workdir))
    assert opened == list(SECONDS)
    assert set(computed) == {"power"}


@pytest.mark.parametrize(("flags", "words"), [
    ((), "either --audio"), (("--audio=a", "--source=b"), "either --audio"), (("--source=b",), "--source takes"),
    (("--source=b", "--embeddings_from=w", "--output=o"), "--output is for --audio"),
    (("--source=b", "--embeddings_from=w", "--beam_options="), "--beam_options is for --audio"),
    (("--source=b", "--embeddings_from=w", "--features=mfcc"), "--features is for --audio"),
    (("--source=b", "--embeddings_from=w", "--hop_seconds=9.6"), "--hop_seconds is for --audio"),
    (("--source=b", "--embeddings_from=w", "--drop_layers=0"), "--drop_layers is for --audio"),
    (("--audio=a", "--output=o", "--drop_layers=7"), "--drop_layers is for the windows of ATST-Frame"),
    (("--audio=a", "--output=o", "--features=embeddings", "--embeddings_from=w", "--hop_seconds=4.8"),
     "--hop_seconds is for the windows of ATST-Frame"),
    (("--audio=a",), "takes --output"),
    (("--audio=a", "--output=o", "--features=mel"), "--features takes some of .*, not mel"),
    (("--audio=a", "--output=o", "--features="), "not none"),
    (("--audio=a", "--output=o", "--features=embeddings"), "--features=embeddings and --embeddings_from"),
    (("--audio=a", "--output=o", "--embeddings_from=w"), "--features=embeddings and --embeddings_from"),
    (("--audio=a", "--output=gs://o"), "gs://o is not a path"),
    (("--audio=a", "--output=o"), "There is no directory a")])
def test_flags_that_do_not_fit(flags, words):
    with pytest.raises(UserError, match=words):
        run_command(extract, *flags)


def test_a_folder_without_recordings_and_an_output_that_cannot_be(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There are no recordings in"):
        extract.extract(tmp_path / "empty", tmp_path / "out", ("mfcc",))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot create the folder"):
        extract.extract(folder, tmp_path / "file", ("mfcc",))


def test_features_of_another_recording_are_made_again(tmp_path):
    """The file is whole, and of the size that was noted."""
    recordings = tmp_path / "audio"
    recordings.mkdir()
    for seed in range(2):
        soundfile.write(recordings / f"{seed}.wav", 0.1 * np.random.default_rng(seed).standard_normal(16000), 16000)
    extract.extract(recordings, tmp_path / "out", ("mfcc",))
    first, second = sorted((tmp_path / "out" / "audio_features").glob("*.npz"))[:2]
    kept = first.read_bytes()
    made = second.read_bytes()
    second.write_bytes(kept)
    extract.extract(recordings, tmp_path / "out", ("mfcc",))
    assert (first.read_bytes(), second.read_bytes()) == (kept, made)
