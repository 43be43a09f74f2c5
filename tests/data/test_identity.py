"""Another data set in the place of the one that a model was trained on is noticed."""

import json
import shutil

import numpy as np
import pytest
from sedjax.data_prep import records as build_records
from tiny import change_npz, run_command, tiny_config, write_layout

from sedjax.commands import evaluate
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, Task
from sedjax.data import identity
from sedjax.data.records import open_records
from sedjax.studies.results import collect, evaluate_workdir, same_recordings
from sedjax.training import trainer, workdir


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records, others with inverted labels, and a naive training on the first."""
    path = tmp_path_factory.mktemp("identity")
    layout = write_layout(path / "source", recordings=12, splits=True)
    build_records.build(layout.path, path / "records", ("embeddings",))
    config = tiny_config("naive", data__path=str(path / "records"), train__duration="0 epochs")
    trainer.train(config, path / "run")
    for filename in layout.filenames:
        with np.load(layout.labels_path(filename)) as labels:
            inverted = {name: 1 - marks for name, marks in labels.items()}
        change_npz(layout.labels_path(filename), **inverted)
    build_records.build(layout.path, path / "others", ("embeddings",))
    return path


@pytest.fixture
def copy(made, tmp_path):
    """The same at another path."""
    shutil.copytree(made, tmp_path / "copy")
    path = tmp_path / "copy"
    config = json.loads((path / "run" / "config.json").read_text())
    config["data"]["path"] = str(path / "records")
    (path / "run" / "config.json").write_text(json.dumps(config))
    return path


def config_of(path):
    return tiny_config("naive", data__path=str(path), train__duration="0 epochs")


def test_report_and_evaluate_tell_what_is_there_now(copy, caplog):
    (before,) = collect([copy / "run"], "test")
    assert evaluate_workdir(copy / "run", "test")["cost"] == before.cost
    shutil.rmtree(copy / "records")
    assert collect([copy / "run"], "test")[0].cost == before.cost  # those of the training are what was evaluated
    (copy / "others").rename(copy / "records")
    with caplog.at_level("WARNING", "sedjax"):
        (after,) = collect([copy / "run"], "test")
    assert after.cost == evaluate_workdir(copy / "run", "test")["cost"] != before.cost
    assert not same_recordings([before, after])


def test_a_training_resumes_on_its_own_records_only_wherever_they_are(copy, capsys):
    with pytest.raises(UserError, match=r"run .*other records .*others: the labels of"):
        trainer.train(config_of(copy / "others"), copy / "run")
    (copy / "records").rename(copy / "moved")
    trainer.train(config_of(copy / "moved"), copy / "run")
    assert workdir.read(copy / "run")[0].data.path == str(copy / "moved")
    run_command(evaluate, f"--workdir={copy / 'run'}")
    assert f"test split of {copy / 'moved'}" in capsys.readouterr().out
    (copy / "result.json").write_text("mine")
    with pytest.raises(UserError, match=r"result\.json already exists"):
        run_command(evaluate, f"--workdir={copy / 'run'}", f"--json={copy / 'result.json'}")


def test_records_and_workdirs_without_fingerprints_still_work(copy):
    for path, parts in ((copy / "records" / "metadata.json", ("labels", ("features", "embeddings"))),
                        (copy / "run" / "features.json", ("labels",))):
        known = json.loads(path.read_text())
        known.pop("checksum", None)
        for part in parts:
            entry = known[part] if isinstance(part, str) else known[part[0]][part[1]]
            del entry["fingerprint"]
        path.write_text(json.dumps(known))
    trainer.train(config_of(copy / "records"), copy / "run")
    (before,) = collect([copy / "run"], "test")
    assert before.recordings == ""
    shard = next((copy / "others").glob("*test*"))
    (copy / "records" / shard.name).write_bytes(shard.read_bytes())
    assert collect([copy / "run"], "test")[0].cost != before.cost


@pytest.mark.parametrize("name", ["metadata.json", "features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "[" * 100_000])
def test_damaged_metadata_of_records(made, tmp_path, name, text):
    shutil.copytree(made / "records", tmp_path / "records")
    (tmp_path / "records" / name).write_text(text)
    with pytest.raises(UserError, match="records"):
        open_records(str(tmp_path / "records"), "train").read(0, ("embeddings",))


@pytest.mark.parametrize("change", [
    lambda m: m["lengths"].update(train=[7, *m["lengths"]["train"][1:]]), lambda m: m["lengths"].update(train=[]),
    lambda m: m["lengths"].update(train=[-1]), lambda m: m["labels"].update(width=2),
    lambda m: m["features"]["embeddings"].update(width=7), lambda m: m["features"]["embeddings"].update(mean=[0.0]),
    lambda m: m["features"]["embeddings"].update(extractor={}), lambda m: m.update(task="{}"),
    lambda m: m.update(task="[" * 9999), lambda m: m.update(features={})])
def test_edited_metadata_of_records(made, tmp_path, change):
    shutil.copytree(made / "records", tmp_path / "records")
    path = tmp_path / "records" / "metadata.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="records"):
        open_records(str(tmp_path / "records"), "train").read(0, ("embeddings",))


def test_fingerprints_cover_what_they_are_of():
    task = Task("a", ("Bell",), ((0, 1, 0, 5),))

    def of(task=task, votes="v", features="f", names=("1", "2")):
        return identity.split_fingerprints(task, {name: {"labels": votes, "x": features} for name in names})

    assert of() == of(Task("b", ("Bell",), ((0.0, 1.0, 0.0, 5.0),)))
    for other in (of(Task("a", ("Bell",), ((0, 1, 0, 6),))), of(MLPC_2025), of(votes="w")):
        assert other["labels"] != of()["labels"]
        assert other["x"] == of()["x"]
    assert of(features="g")["x"] != of()["x"]
    for key in ("labels", "x"):
        assert len({of(names=names)[key] for names in (("1", "2"), ("2", "1"), ("1",), ("12",))}) == 4
    arrays = [np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float16),
              np.ones((2, 3), np.float32)]
    assert len(set(map(identity.array_digest, arrays))) == len(arrays)


def test_extractors_that_differ():
    one, other = ({"embeddings": {"extractor": {"parameters": name, "path": "p"}}} for name in ("one", "other"))
    identity.require_same_extractors(one, one, "here", "there")
    identity.require_same_extractors(one, {"embeddings": {"extractor": None}}, "here", "there")
    with pytest.raises(UserError, match=r"embeddings in here .* 'other' \(p\).* 'one' \(p\)"):
        identity.require_same_extractors(one, other, "here", "there")
