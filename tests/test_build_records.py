"""Records from a directory: what is damaged is named, and nothing half-written stays."""

import os

import numpy as np
import pytest
from tiny import change_npz, run_command, write_layout

from data_prep import build_records
from sedjax import input_pipeline
from sedjax.errors import UserError
from sedjax.layout import read_layout, read_splits

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
        assert input_pipeline.open_records(str(tmp_path / "records"), split).filenames == names


def test_split_seed_overrides_the_file(layout, tmp_path):
    build_records.build(layout.path, tmp_path / "records", KEYS, split_seed=1)
    found = input_pipeline.open_records(str(tmp_path / "records"), "train").filenames
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
    found = input_pipeline.open_records(str(tmp_path / "records"), "train")
    assert layout.filenames[2] not in found.filenames
    assert len(found.filenames) == len(found.lengths) == len(read_splits(layout)["train"]) - 1


@pytest.mark.parametrize(("change", "words"), [
    (lambda a: a[:-3], "frames"),
    (lambda a: np.where(np.arange(len(a))[:, None] == 4, np.nan, a), "NaN or infinity, first in frame 4"),
    (lambda a: a[:, :7], "7 wide"),
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
    found = input_pipeline.open_records(str(tmp_path / "records"), "train")
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
        input_pipeline.open_records(str(tmp_path / "records"), "train").read(0, KEYS)
