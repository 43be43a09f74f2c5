"""Training from the command line's functions: learns, resumes bit for bit, agrees with predict and score."""

import json

import numpy as np
import pytest
from tiny import TINY_TASK, run_command, tiny_config, write_layout

from data_prep import ground_truth
from sedjax import checkpoint, evaluate, predict, score
from sedjax.errors import UserError
from sedjax.input_pipeline import Features
from sedjax.layout import read_layout
from sedjax.metric_writer import read_metrics
from sedjax.task import Task
from sedjax.train import train


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """A workdir whose model found the events, with thresholds tuned on the validation split."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config(data__path=str(records), train__duration="30 epochs", train__patience=0, train__ema=0.8,
                         train__evaluate_every="5 epochs", train__save_every="5 epochs",
                         optimizer__learning_rate=3e-2, model__standardize=True,
                         decision__thresholds=(0.2, 0.35, 0.5, 0.65, 0.8))
    train(config, folder)
    return folder


def test_training_finds_the_events(trained, records):
    """The embeddings show each class in a column of its own; silence would cost what the misses cost."""
    entries = [entry for entry in read_metrics(trained) if "validation_cost" in entry]
    best = min(entry["validation_cost"] for entry in entries)
    result = evaluate.evaluate_workdir(trained, "validation")
    assert result["cost"] == pytest.approx(best, abs=1e-9)
    silent = sum((row["TP"] + row["FN"]) * TINY_TASK.costs[i][3] for i, row in enumerate(result["classes"].values()))
    assert result["cost"] < 0.4 * silent
    recalls = [row["recall"] for row in result["frames"].values() if row["recall"] is not None]
    assert np.mean(recalls) > 0.5


def test_evaluate_predict_and_score_agree(trained, source, tmp_path):
    result = evaluate.evaluate_workdir(trained, "test")
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
    detector = predict.load(trained)
    layout = read_layout(source)
    together = detector.predict(Features.of(layout, detector.task, ("embeddings",), detector.widths))
    write_layout(tmp_path, recordings={"one.mp3": 33}, labels=False)
    features = layout.features(layout.filenames[3], ("embeddings",))
    np.savez(tmp_path / "audio_features" / "one.npz", **features)
    alone = detector.predict(Features.of(
        read_layout(tmp_path), detector.task, ("embeddings",), detector.widths))
    np.testing.assert_allclose(alone[0].frames, together[3].frames, atol=1e-5)
    assert alone[0].segments.shape == (-(-len(features["embeddings"]) // 10), 3)


def test_mixup_needs_pairs_on_each_device(records, tmp_path):
    with pytest.raises(UserError, match=r"\(in pairs, for train.mixup\) = 8 cannot be shared by 8 devices "
                                        "in 2 parts each; the nearest is 16"):
        train(tiny_config(data__path=str(records), train__mixup=0.2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recordings_longer_than_any_clip(trained, tmp_path):
    write_layout(tmp_path, recordings={"long.mp3": 1003}, labels=False)
    detector = predict.load(trained)
    found = detector.predict(Features.of(
        read_layout(tmp_path), detector.task, ("embeddings",), detector.widths))
    assert found[0].frames.shape == (1003, 3)
    assert found[0].active.shape == (101, 3)


def test_a_finished_training_is_left_alone(trained, records):
    before = (trained / "metrics.jsonl").read_bytes()
    config = predict.load(trained).config
    assert train(config, trained).finished
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_the_weights_need_no_records_and_no_config(trained):
    detector = predict.load(trained)
    TINY_TASK.require_same(detector.task, where="the workdir")
    assert len(detector.thresholds) == 3
    with pytest.raises(UserError, match="no checkpoint 77"):
        predict.load(trained, "77")
    with pytest.raises(UserError, match="is not the workdir of a training"):
        predict.load(trained / "nowhere")


def test_early_stopping(records, tmp_path):
    config = tiny_config(data__path=str(records), train__duration="50 epochs", train__patience=2,
                         optimizer__learning_rate=1e-9)
    progress = train(config, tmp_path / "run")
    assert progress.finished
    entries = [entry for entry in read_metrics(tmp_path / "run") if "validation_cost" in entry]
    assert len(entries) == 3
    # The best, and the last two.
    assert checkpoint._steps(tmp_path / "run" / "checkpoints") == [entry["step"] for entry in entries]


def test_a_loss_that_explodes_stops_with_the_last_good_checkpoint(records, tmp_path):
    config = tiny_config(data__path=str(records), optimizer__learning_rate=1e30, train__log_every="1 steps")
    with pytest.raises(UserError, match=r"became NaN or infinite at step \d+; the last good checkpoint"):
        train(config, tmp_path / "run")


def test_another_config_or_task_in_a_workdir(trained, records, tmp_path):
    config = tiny_config(data__path=str(records), model__layers=2)
    with pytest.raises(UserError, match=r"another config: \S+ is"):
        train(config, trained)
    write_layout(tmp_path / "other", Task("other", ("Crow", "Bell", "Drum"), TINY_TASK.costs), splits=True,
                 recordings=10)
    from data_prep.build_records import build

    build(tmp_path / "other", tmp_path / "records", ("embeddings",))
    with pytest.raises(UserError, match="same classes in another order, from position 0: 'Crow' instead of 'Bell'"):
        evaluate.evaluate_workdir(trained, "validation", data=str(tmp_path / "records"))
    with pytest.raises(UserError, match="same classes in another order"):
        train(tiny_config(data__path=str(tmp_path / "records")), trained)


def test_a_batch_that_the_devices_cannot_share(records, tmp_path):
    with pytest.raises(UserError, match="data.batch_size = 12 cannot be shared by 8 devices; the nearest is 8 or 16"):
        train(tiny_config(data__path=str(records), data__batch_size=12), tmp_path / "run")
