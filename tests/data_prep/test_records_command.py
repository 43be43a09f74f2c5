"""Records from a directory: what is damaged is named, and nothing half-written stays."""

import os
import pathlib

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sedjax.data_prep import records as build_records
from sedjax.data_prep import shards, staging
from tiny import change_npz, run_command, write_layout

from sedjax.core import npz
from sedjax.core.errors import UserError
from sedjax.data.layout import read_layout, read_splits
from sedjax.data.records import open_records

KEYS = ("embeddings",)


@pytest.fixture
def layout(tmp_path):
    return write_layout(tmp_path / "source", recordings=12, splits=True)


def test_command_and_the_reports_split(layout, tmp_path, capsys):
    (layout.path / "splits.csv").unlink()
    run_command(build_records, f"--source={layout.path}", f"--output={tmp_path / 'records'}", "--features=embeddings")
    assert "Wrote 7 train, 2 validation, 3 test recordings" in capsys.readouterr().out
    expected = read_splits(layout, split_seed=42)
    for split, names in expected.items():
        assert open_records(str(tmp_path / "records"), split).filenames == names


def test_split_seed_overrides_the_file(layout, tmp_path):
    build_records.build(layout.path, tmp_path / "records", KEYS, split_seed=1)
    found = open_records(str(tmp_path / "records"), "train").filenames
    assert found == read_splits(layout, 1)["train"] != read_splits(layout)["train"]


def damage(layout, filename):
    path = layout.features_path(filename)
    path.write_bytes(path.read_bytes()[:-200])


def test_a_truncated_file_stops_it_or_is_left_out(layout, tmp_path):
    damage(layout, layout.filenames[2])
    with pytest.raises(UserError, match=r"1 of 12 recordings .*102\.npz is damaged"):
        build_records.build(layout.path, tmp_path / "records", KEYS)
    assert os.listdir(tmp_path) == ["source"]
    build_records.build(layout.path, tmp_path / "records", KEYS, skip_bad=True)
    found = open_records(str(tmp_path / "records"), "train")
    assert layout.filenames[2] not in found.filenames
    assert len(found.filenames) == len(found.lengths) == len(read_splits(layout)["train"]) - 1


@pytest.mark.parametrize(("change", "words"), [
    (lambda a: a[:-3], "frames"),
    (lambda a: np.where(np.arange(len(a))[:, None] == 4, np.nan, a), "NaN or infinity, first in frame 4"),
    (lambda a: a[:, :7], "width 7"),
])
def test_features_that_do_not_fit(layout, tmp_path, change, words):
    path = layout.features_path(layout.filenames[5])
    with np.load(path) as archive:
        changed = change(archive["embeddings"])
    change_npz(path, embeddings=changed.astype(np.float16), melspectrogram=None)
    with pytest.raises(UserError, match=words):
        build_records.build(layout.path, tmp_path / "records", KEYS)
    assert os.listdir(tmp_path) == ["source"]


def test_another_class_list(layout, tmp_path):
    costs = tmp_path / "costs.json"
    costs.write_text('{"Bell": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}, "Gong": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}}')
    with pytest.raises(UserError, match="no file has the class 'Gong'"):
        build_records.build(layout.path, tmp_path / "records", KEYS, costs=str(costs))


def test_an_output_that_exists(layout, tmp_path):
    build_records.build(layout.path, tmp_path / "records", KEYS)
    with pytest.raises(UserError, match="exists already"):
        build_records.build(layout.path, tmp_path / "records", KEYS)
    build_records.build(layout.path, tmp_path / "records", ("embeddings", "melspectrogram"), overwrite=True)
    found = open_records(str(tmp_path / "records"), "train")
    assert set(found.features) == {"embeddings", "melspectrogram"}


def test_an_output_that_cannot_be_written(layout, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        build_records.build(layout.path, tmp_path / "file" / "records", KEYS)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="There is no directory"):
        build_records.build(tmp_path / "nowhere", tmp_path / "records", KEYS)
    unlabelled = write_layout(tmp_path / "unlabelled", labels=False)
    with pytest.raises(UserError, match="has no labels"):
        build_records.build(unlabelled.path, tmp_path / "records", KEYS)
    assert read_layout(unlabelled.path).filenames


def test_damaged_records_are_an_error(layout, tmp_path):
    build_records.build(layout.path, tmp_path / "records", KEYS)
    for path in (tmp_path / "records").glob("*train*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        open_records(str(tmp_path / "records"), "train").read(0, KEYS)


def snapshot(path: pathlib.Path) -> dict[str, bytes | None]:
    return {str(each.relative_to(path)): each.read_bytes() if each.is_file() else None for each in path.rglob("*")}


def test_only_records_are_replaced(layout, tmp_path, monkeypatch):
    build_records.build(layout.path, tmp_path / "records", KEYS)
    build_records.build(layout.path, layout.path / "inside", KEYS)
    for name, extra in (("notes", "notes.txt"), ("shard", "sed_records-train.array_record-00001-of-00002"),
                        ("subfolder", "dir/x"), ("link", None)):
        build_records.build(layout.path, tmp_path / name, KEYS)
        if extra is None:
            shard = next((tmp_path / name).glob("*train*"))
            shard.rename(tmp_path / "shard.bin")
            shard.symlink_to(tmp_path / "shard.bin")
        else:
            (tmp_path / name / extra).parent.mkdir(exist_ok=True)
            (tmp_path / name / extra).write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "to source").symlink_to(layout.path)
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / "dataset_info.json").write_text('{"name": "x", "fileFormat": "array_record", "splits": []}')
    monkeypatch.setattr(build_records, "read_layout", None)  # nothing is read before
    monkeypatch.chdir(layout.path)
    before = snapshot(tmp_path)
    for output in (layout.path, ".", "./", "..", "../source/", "audio_features", "inside", tmp_path, tmp_path / "notes",
                   tmp_path / "shard", tmp_path / "subfolder", tmp_path / "link", tmp_path / "file",
                   tmp_path / "to source", tmp_path / "to source" / "labels", tmp_path / "info"):
        with pytest.raises(UserError, match=r"choose another --output"):
            run_command(build_records, f"--source={layout.path}", f"--output={output}", "--features=embeddings",
                        "--overwrite")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("killed_at", ["old away", "new there"])
def test_a_kill_leaves_the_old_records_or_the_new(layout, tmp_path, monkeypatch, killed_at):
    output = tmp_path / "records"
    build_records.build(layout.path, output, KEYS)
    before = snapshot(output)
    rename = pathlib.Path.rename

    def killed(path, target):
        if killed_at == "new there" or path == output:
            rename(path, target)
        if path != output or killed_at == "old away":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", killed)
        patch.setattr(staging, "_clear", lambda *_: None)  # a killed process does nothing more
        with pytest.raises(KeyboardInterrupt):
            build_records.build(layout.path, output, ("embeddings", "mfcc"), overwrite=True)
    (tmp_path / f"{staging.PREFIX}mine").mkdir()
    (tmp_path / f"{staging.PREFIX}mine" / "x").write_text("mine")
    with staging.staging(tmp_path / "other"):
        pass
    assert output.exists() == (killed_at == "new there")
    with staging.staging(output):  # what the next build begins with
        found = snapshot(output)
    assert (found == before) == (killed_at == "old away")
    assert sorted(os.listdir(tmp_path)) == [f"{staging.PREFIX}mine", "records", "source"]


def test_a_build_in_another_process_is_left_alone(tmp_path):
    with staging.staging(tmp_path / "records") as one, staging.staging(tmp_path / "records") as other:
        assert one.exists()
        assert other.exists()
    assert os.listdir(tmp_path) == []


def test_a_recording_is_read_once(layout, tmp_path, monkeypatch):
    read, read_npz = [], npz.read_npz
    monkeypatch.setattr(npz, "read_npz", lambda path, keys=None: read.append(path) or read_npz(path, keys))
    build_records.build(layout.path, tmp_path / "records", ("embeddings", "mfcc"))
    paths = [path(filename) for filename in layout.filenames for path in (layout.features_path, layout.labels_path)]
    assert sorted(read) == sorted(paths)


def test_shards_are_in_order_and_complete(layout, tmp_path, monkeypatch):
    damage(layout, layout.filenames[2])
    for filename in read_splits(layout)["test"]:
        layout.labels_path(filename).unlink()
    build_records.build(layout.path, tmp_path / "one", KEYS, skip_bad=True)
    monkeypatch.setattr(shards, "SHARD_RECORDINGS", 1)
    build_records.build(layout.path, tmp_path / "many", KEYS, skip_bad=True)
    assert len(list((tmp_path / "many").glob("*-train.*"))) == 8
    assert not list((tmp_path / "many").glob("*-test.*")), "no recording of the split is good"
    one, many = (open_records(str(tmp_path / name), "train") for name in ("one", "many"))
    assert one.filenames == many.filenames == tuple(name for name in read_splits(layout)["train"]
                                                    if name != layout.filenames[2])
    assert one.metadata.entries == many.metadata.entries
    for index in range(len(one.filenames)):
        for expected, found in zip(one.read(index, KEYS), many.read(index, KEYS)):
            jax.tree.map(np.testing.assert_array_equal, found, expected)
    build_records.build(layout.path, tmp_path / "many", KEYS, skip_bad=True, overwrite=True)


def test_a_disk_that_is_full(layout, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(tfds.core.ExampleWriter, "write", full)
    with pytest.raises(UserError, match=r"^Cannot write .*No space left on device"):
        build_records.build(layout.path, tmp_path / "records", KEYS)
    assert os.listdir(tmp_path) == ["source"]


def test_a_feature_has_a_fingerprint_of_its_own(layout, tmp_path):
    for name, keys in (("one", KEYS), ("two", ("mfcc", *KEYS))):
        build_records.build(layout.path, tmp_path / name, keys)
    one, two = (open_records(str(tmp_path / name), "test").identity(KEYS) for name in ("one", "two"))
    assert one == two
    assert one.keys() == {"embeddings", "labels"}


@pytest.mark.parametrize("key", ["labels", "a/b", "", "a\n"])
def test_names_that_records_cannot_have(layout, tmp_path, key):
    with pytest.raises(UserError, match="cannot have a feature"):
        build_records.build(layout.path, tmp_path / "records", (key,))
