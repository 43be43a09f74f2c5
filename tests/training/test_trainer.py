"""Training from the command line's functions: learns, resumes bit for bit, agrees with predict and score."""

import dataclasses
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from sedjax.data_prep import ground_truth
from tiny import TINY_TASK, run_command, tiny_config, write_layout

from sedjax.commands import evaluate, predict, score
from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.data.layout import read_layout
from sedjax.inference.trained import load_model
from sedjax.studies import results
from sedjax.studies.results import evaluate_workdir
from sedjax.training import checkpoint, workdir
from sedjax.training.metric_writer import MetricWriter, read_metrics
from sedjax.training.progress import saved_steps
from sedjax.training.trainer import Entry, train


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """A workdir whose model found the events, with thresholds tuned on the validation split."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config(data__path=str(records), data__bucket_frames=20, train__duration="30 epochs",
                         train__patience=0, train__ema=0.8,
                         train__evaluate_every="5 epochs", train__save_every="5 epochs",
                         optimizer__learning_rate=3e-2, model__standardize=True,
                         decision__thresholds=(0.2, 0.35, 0.5, 0.65, 0.8))
    train(config, folder)
    return folder


def test_training_finds_the_events(trained, records):
    """The embeddings show each class in a column of its own; silence would cost what the misses cost."""
    entries = [entry for entry in read_metrics(trained) if "validation_cost" in entry]
    best = min(entry["validation_cost"] for entry in entries)
    result = evaluate_workdir(trained, "validation")
    assert result["cost"] == pytest.approx(best, abs=1e-9)
    silent = sum((row["TP"] + row["FN"]) * TINY_TASK.costs[i][3] for i, row in enumerate(result["classes"].values()))
    assert result["cost"] < 0.4 * silent
    recalls = [row["recall"] for row in result["frames"].values() if row["recall"] is not None]
    assert np.mean(recalls) > 0.5


def test_evaluate_predict_and_score_agree(trained, source, tmp_path):
    result = evaluate_workdir(trained, "test")
    run_command(evaluate, f"--workdir={trained}", "--split=test", f"--json={tmp_path / 'e.json'}")
    written = json.loads((tmp_path / "e.json").read_text())
    assert set(written) >= {"cost", "interval", "classes", "frames"}
    assert written["cost"] == result["cost"]
    run_command(predict, f"--workdir={trained}", f"--source={source}", "--split=test", f"--output={tmp_path / 'p.csv'}")
    run_command(ground_truth, f"--source={source}", "--split=test", f"--output={tmp_path / 'g.csv'}")
    run_command(score, f"--predictions={tmp_path / 'p.csv'}", f"--ground_truth={tmp_path / 'g.csv'}",
                f"--costs={source / 'costs.json'}", f"--json={tmp_path / 's.json'}")
    scored = json.loads((tmp_path / "s.json").read_text())
    assert scored["cost"] == pytest.approx(result["cost"], abs=1e-9)
    assert scored["classes"] == result["classes"]
    assert scored["interval"] == pytest.approx(result["interval"])


def test_a_recording_alone_in_a_batch_and_without_labels(trained, source, tmp_path):
    model, layout = load_model(trained), read_layout(source)
    together = list(predict.predict_directory(model, source).values())
    write_layout(tmp_path, recordings={"one.mp3": 33}, labels=False)
    features = layout.features(layout.filenames[3], ("embeddings",))
    np.savez(tmp_path / "audio_features" / "one.npz", **features)
    alone = predict.predict_directory(model, tmp_path)["one.mp3"]
    np.testing.assert_allclose(alone.frames, together[3].frames, atol=1e-5)
    assert alone.segments.shape == (-(-len(features["embeddings"]) // 10), 3)


def test_mixup_needs_pairs_on_each_device(records, tmp_path):
    with pytest.raises(UserError, match=r"\(in pairs, for train.mixup\) = 8 .* 8 devices in 2 parts each; "
                                        "use 16"):
        train(tiny_config(data__path=str(records), train__mixup=0.2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recordings_longer_than_any_clip(trained, tmp_path):
    write_layout(tmp_path, recordings={"long.mp3": 1003}, labels=False)
    found = predict.predict_directory(load_model(trained), tmp_path)["long.mp3"]
    assert found.frames.shape == (1003, 3)
    assert found.active.shape == (101, 3)


def test_a_finished_training_is_left_alone(trained, records):
    before = (trained / "metrics.jsonl").read_bytes()
    config = load_model(trained).config
    assert train(config, trained).finished
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_the_weights_need_no_records_and_no_config(trained):
    detector = load_model(trained)
    TINY_TASK.require_same(detector.task, where="the workdir")
    assert len(detector.thresholds) == 3
    with pytest.raises(UserError, match="no checkpoint 77"):
        load_model(trained, "77")
    with pytest.raises(UserError, match="nowhere is not the workdir"):
        load_model(trained / "nowhere")


def test_early_stopping(records, tmp_path):
    config = tiny_config(data__path=str(records), train__duration="50 epochs", train__patience=2, model__layers=0,
                         optimizer__learning_rate=1e-9)
    progress = train(config, tmp_path / "run")
    assert progress.finished
    entries = [entry for entry in read_metrics(tmp_path / "run") if "validation_cost" in entry]
    assert len(entries) == 3
    # The best, and the last two.
    assert saved_steps(tmp_path / "run" / "checkpoints") == [entry["step"] for entry in entries]


@pytest.mark.parametrize(("changes", "words"), [
    ({"train__log_every": "1 steps"}, r"The (loss|gradient norm) became NaN or infinite at step 2"),
    ({"train__evaluate_every": "1 steps"}, "The loss on the validation split became NaN or infinite at step 1")])
def test_a_training_that_diverges_ends_before_anything_of_it_is_saved(changes, words, records, tmp_path):
    config = tiny_config(data__path=str(records), optimizer__learning_rate=1e30, model__layers=0, **changes)
    with pytest.raises(UserError, match=f"{words}; no good checkpoint"):
        train(config, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_the_first_number_that_is_not_finite_is_named(tmp_path):
    writer, manager = mock.Mock(spec=MetricWriter), mock.Mock(spec=checkpoint.Manager)
    manager.directory, manager.latest_step.return_value = tmp_path / "checkpoints", 4
    entry = Entry(writer, manager, 5)
    entry.add(7, {"loss": np.ones(3), "gradient_norm": np.array([1, np.inf, np.nan])})
    entry.add(8, {"loss": np.array(np.nan), "gradient_norm": np.array(np.nan)})
    with pytest.raises(UserError, match="The gradient norm became NaN or infinite at step 7; .* step 4 "):
        entry.write()


def test_probabilities_that_are_not_finite_have_no_cost(trained, monkeypatch):
    """NaN is above no threshold: it would be scored as silence."""
    detector = load_model(trained)
    bad = jax.tree.map(lambda x: x * np.float32(np.nan), detector.variables)
    monkeypatch.setattr(results, "load_model", lambda *_: dataclasses.replace(detector, variables=bad))
    with pytest.raises(UserError, match="NaN or infinite probabilities for 4 of 4 recordings, the first of them 120"):
        evaluate_workdir(trained, "test")


@pytest.mark.parametrize(("model", "changes", "words"), [
    ("naive", {"train__initial_weights": "typo.npz"}, "typo.npz"),
    ("embedding_transformer", {"model__stem": "conv", "optimizer__accumulate": 4}, "accumulate .* batch norm")])
def test_what_cannot_be_trained_leaves_no_workdir(model, changes, words, records, tmp_path):
    with pytest.raises(UserError, match=words):
        train(tiny_config(model, data__path=str(records), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_a_workdir_is_left_alone(records, tmp_path):
    """Of what a training writes nothing may be there; other files may, and what a killed start has left."""
    config = tiny_config("naive", data__path=str(records))
    task, features = TINY_TASK, {"labels": {"width": 3}}
    (tmp_path / "train.log").write_text("a log")
    (tmp_path / "checkpoints").mkdir()
    workdir.prepare(tmp_path, config, task, features)
    (tmp_path / "config.json").unlink()
    workdir.prepare(tmp_path, config, task, features)
    (tmp_path / "config.json").unlink()
    for name in ("config.json", "features.json", "metrics.jsonl", "parameters.txt", "task.json", "checkpoints/mine",
                 "damaged/mine", "report/mine"):
        path = tmp_path / name
        kept = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"mine": 1}')
        with pytest.raises(UserError, match=name.partition("/")[0]):
            workdir.prepare(tmp_path, config, task, features)
        assert path.read_text() == '{"mine": 1}'
        path.unlink() if kept is None else path.write_bytes(kept)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in (("train.log", "a file of that name"), ("loop/a", "loop"), ("a/" + "x" * 300, "too long")):
        with pytest.raises(UserError, match=words):
            workdir.require_usable(tmp_path / name, config, task, features)
    assert not (tmp_path / "a").exists()
    workdir.prepare(tmp_path, config, task, features)
    with pytest.raises(UserError, match="config.json"):  # no output of another command may replace it
        files.require_replaceable(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["", "[]", "1", '{"model": 1}', '{"model": {"name": []}}', '{"data": []}',
                                  '{"labels": 3}', '{"labels": {"width": "3"}}', '{"labels": {"width": 1e99}}',
                                  "[" * 100_000])
def test_other_json_than_expected(trained, text, tmp_path):
    """In each file of a workdir that is read: an error that names it, or a line that is left out."""
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    for name in ("config.json", "features.json", "task.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=name):
            workdir.read(folder)
        (folder / name).write_bytes(kept)
    entries = read_metrics(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(f'{text}\n{{"step": 1, "loss": NaN}}\n{{"step": "1", "loss": 1}}\n{{"loss": 1}}\n')
    assert read_metrics(folder) == entries


def test_a_checkpoint_of_another_architecture(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    kept = (folder / "features.json").read_bytes()
    (folder / "features.json").write_text('{"labels": {"width": 3}}')
    with pytest.raises(UserError, match="features.json .* takes 'embeddings', which is missing"):
        load_model(folder)
    (folder / "features.json").write_bytes(kept)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["feed_forward"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="model in config.json: params/.* there and .* in the model"):
        load_model(folder)


def test_another_config_or_task_in_a_workdir(trained, records, tmp_path):
    config = tiny_config(data__path=str(records), model__layers=2)
    with pytest.raises(UserError, match=r"another config: \S+ is"):
        train(config, trained)
    write_layout(tmp_path / "other", Task("other", ("Crow", "Bell", "Drum"), TINY_TASK.costs), splits=True,
                 recordings=10)
    from sedjax.data_prep.records import build

    build(tmp_path / "other", tmp_path / "records", ("embeddings",))
    with pytest.raises(UserError, match="same classes in another order, from position 0: 'Crow' instead of 'Bell'"):
        evaluate_workdir(trained, "validation", data=str(tmp_path / "records"))
    with pytest.raises(UserError, match="same classes in another order"):
        train(tiny_config(data__path=str(tmp_path / "records")), trained)


def test_a_batch_that_the_devices_cannot_share(records, tmp_path):
    with pytest.raises(UserError, match="data.batch_size = 12 .* 8 devices; use 8 or 16"):
        train(tiny_config(data__path=str(records), data__batch_size=12), tmp_path / "run")
