"""Features and records from an Apache Beam pipeline are those of one process."""

import os
import pathlib
import sys

import numpy as np
import pytest
import soundfile
from sedjax.data_prep import extract, extraction
from sedjax.data_prep import records as build_records
from tiny import run_command, write_layout
from workdirs import arrays, rows_of

from sedjax.core.errors import UserError
from sedjax.data.layout import read_layout
from sedjax.data.records import open_records

# The direct runner may fetch a program from the network first.
RUNNER = "--runner=FnApiRunner"
PROCESSES = f"{RUNNER} --direct_num_workers=2 --direct_running_mode=multi_processing"


def test_without_beam_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "sedjax.data_prep.beam", raising=False)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", np.zeros(100), 16000)
    with pytest.raises(UserError, match="needs Apache Beam, which is not installed"):
        run_command(extract, f"--audio={tmp_path / 'audio'}", f"--output={tmp_path / 'out'}", "--beam_options=")
    layout = write_layout(tmp_path / "source", splits=True)
    with pytest.raises(UserError, match="needs Apache Beam, which is not installed"):
        run_command(build_records, f"--source={layout.path}", f"--output={tmp_path / 'records'}", "--beam_options=")
    assert not (tmp_path / "records").exists()


@pytest.fixture
def beam():
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
    from sedjax.data_prep import beam

    return beam


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Forty recordings, of which two cannot be read."""
    path = tmp_path / "audio"
    path.mkdir()
    for i in range(40):
        soundfile.write(path / f"{i:02d}.wav", 0.1 * np.random.default_rng(i).standard_normal(3000 + i), 16000)
    (path / "07.wav").write_bytes(b"")
    (path / "23.wav").write_bytes(b"no audio")
    return path


def test_features_are_those_of_one_process(beam, folder, tmp_path, capsys):
    flags = [f"--audio={folder}", "--features=melspectrogram,mfcc"]
    outputs = tmp_path / "one", tmp_path / "many"
    for output, more in zip(outputs, ([], [f"--beam_options={PROCESSES}"])):
        with pytest.raises(SystemExit) as end:
            run_command(extract, *flags, f"--output={output}", *more)
        assert end.value.code == extract.SOME_BAD_STATUS
        assert "of 38 recordings; 2 cannot be read" in capsys.readouterr().out
    one, many = ({path.name: arrays(path) for path in (output / "audio_features").iterdir()} for output in outputs)
    assert many.keys() == one.keys()
    for name, features in one.items():
        assert many[name].keys() == features.keys()
        for key, value in features.items():
            np.testing.assert_array_equal(many[name][key], value)
    for name in ("metadata.csv", "bad_recordings.csv"):
        assert rows_of(outputs[0] / name) == rows_of(outputs[1] / name)
    assert not list(outputs[1].glob(".beam*"))
    times = {path: path.stat().st_mtime_ns for path in (outputs[1] / "audio_features").iterdir()}
    soundfile.write(folder / "07.wav", np.zeros(100), 16000)
    assert extract.extract(folder, outputs[1], ("melspectrogram", "mfcc"), beam_options=RUNNER) == (39, 1)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_what_workers_did_before_a_kill_is_kept(beam, folder, tmp_path, monkeypatch):
    def killed(*arguments, original=beam.over, **options):
        original(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(beam, "over", killed)
    with pytest.raises(KeyboardInterrupt):
        extract.extract(folder, tmp_path / "out", ("mfcc",), beam_options=RUNNER)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "audio_features").iterdir()}
    assert len(times) == 38
    assert extract.extract(folder, tmp_path / "out", ("mfcc",)) == (38, 2)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(("options", "words"), [
    ("--runner=NoRunner", "NoRunner"), ("--runner='", "No closing quotation"),
    ("--direct_num_workers=two", "direct_num_workers"), ("--direct_num_worker=2", "direct_num_worker")])
def test_options_that_are_wrong(beam, folder, tmp_path, options, words):
    with pytest.raises(UserError, match=rf"--beam_options.*{words}"):
        extract.extract(folder, tmp_path / "out", ("mfcc",), beam_options=options)


def test_a_disk_that_is_full(beam, folder, tmp_path, monkeypatch):
    def full(path, **_):
        raise UserError(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(extraction.files, "atomic_output", full)
    for options in (None, RUNNER):
        with pytest.raises(UserError, match=r"^Cannot write .*\.npz: No space left on device\.$"):
            extract.extract(folder, tmp_path / "out", ("mfcc",), beam_options=options)


@pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # TFDS, on the protobuf that Beam takes
def test_records_are_those_of_one_process(beam, tmp_path):
    layout = write_layout(tmp_path / "source", recordings=12, splits=True)
    damaged = layout.features_path(layout.filenames[2])
    damaged.write_bytes(damaged.read_bytes()[:-200])
    keys = ("embeddings", "melspectrogram")
    with pytest.raises(UserError, match=r"1 of 12 recordings .*102\.npz is damaged"):
        build_records.build(layout.path, tmp_path / "many", keys, beam_options=RUNNER)
    build_records.build(layout.path, tmp_path / "one", keys, skip_bad=True)
    build_records.build(layout.path, tmp_path / "many", keys, skip_bad=True, beam_options=PROCESSES)
    assert sorted(os.listdir(tmp_path)) == ["many", "one", "source"]
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "many"))
    for split in ("train", "validation", "test"):
        one, many = (open_records(str(tmp_path / name), split) for name in ("one", "many"))
        assert one.filenames == many.filenames
        np.testing.assert_array_equal(one.lengths, many.lengths)
        assert one.features == many.features
        for index in range(len(one.filenames)):
            expected, votes = one.read(index, keys)
            found, found_votes = many.read(index, keys)
            np.testing.assert_array_equal(found_votes, votes)
            for key in keys:
                np.testing.assert_array_equal(found[key], expected[key])
    assert read_layout(layout.path).filenames
