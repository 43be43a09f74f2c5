import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from tiny import TINY_TASK, run_command, write_layout

from sedjax.commands import score
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.scoring import submission
from sedjax.scoring.submission import write_submission

ROOT = pathlib.Path(__file__).parents[2]


def random_segments(lengths: dict[str, int], classes: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {filename: rng.random((length, classes)) < 0.2 for filename, length in lengths.items()}


@pytest.fixture
def pair(tmp_path):
    """Predictions and ground truth of one recording of 10 segments: 1 false alarm of Speech, 2 missed of Siren."""
    truth = np.zeros((10, 10), bool)
    truth[:2, 9] = True
    predicted = np.zeros((10, 10), bool)
    predicted[5, 0] = True
    paths = tmp_path / "p.csv", tmp_path / "g.csv"
    for path, values in zip(paths, (predicted, truth)):
        write_submission(path, MLPC_2025, {"1.mp3": values})
    return paths


def test_json_and_table_hold_the_cost(pair, tmp_path, capsys):
    run_command(score, "--predictions", pair[0], "--ground_truth", pair[1], "--json", tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    # A tenth of 50 segments a minute at 1, a fifth at 15.
    assert content["cost"] == pytest.approx(5 * 1 + 10 * 15)
    assert content["interval"] == pytest.approx([155, 155])
    assert set(content) == {"cost", "interval", "classes"}
    assert list(content["classes"]) == list(MLPC_2025.classes)
    assert content["classes"]["Speech"] == pytest.approx({"cost": 5, "TP": 0, "FP": 5, "TN": 45, "FN": 0})
    assert content["classes"]["Siren"] == pytest.approx({"cost": 150, "TP": 0, "FP": 0, "TN": 40, "FN": 10})

    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:6] == ["class", "cost", "TP", "FP", "TN", "FN"]
    assert [row.split("  ")[0] for row in rows] == [*MLPC_2025.classes, "total"]
    assert rows[9].split() == ["Siren", "150.0000", "0.0000", "0.0000", "40.0000", "10.0000"]
    assert "155.0000" in rows[-1]
    assert "95 % interval 155.00 to 155.00" in rows[-1]


def test_the_order_of_recordings_in_the_files_does_not_matter():
    lengths = {"a": 3, "b": 20, "c": 11}
    predictions, truth = (random_segments(lengths, 3, seed) for seed in (0, 1))
    base = submission.score_submissions(predictions, truth, TINY_TASK)
    backwards = dict(reversed(predictions.items()))
    assert submission.score_submissions(backwards, truth, TINY_TASK) == base
    both = np.concatenate(list(predictions.values())), np.concatenate(list(truth.values()))
    assert submission.score_submissions({"all": both[0]}, {"all": both[1]}, TINY_TASK).cost == pytest.approx(base.cost)
    assert base.cost > 0


def test_a_perfect_prediction_costs_nothing():
    truth = random_segments({"a": 30}, 3, 0)
    assert submission.score_submissions(truth, truth, TINY_TASK).cost == 0


def test_other_recordings_are_an_error_that_names_both_files(pair, tmp_path):
    write_submission(pair[1], MLPC_2025, {"2.mp3": np.zeros((10, 10), bool)})
    with pytest.raises(UserError, match=r"p\.csv lacks 1 of the 1 recordings of .*g\.csv, first '2\.mp3'"):
        run_command(score, "--predictions", pair[0], "--ground_truth", pair[1], "--json", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    write_submission(pair[1], MLPC_2025, {"1.mp3": np.zeros((11, 10), bool)})
    with pytest.raises(UserError, match=r"of '1\.mp3' is 10 in .*p\.csv .*11 in .*g\.csv; .* at 12\.0"):
        run_command(score, "--predictions", pair[0], "--ground_truth", pair[1])


def test_the_score_is_not_written_over_other_files(pair, tmp_path):
    (tmp_path / "mine.json").write_text("[]")
    (tmp_path / "link").symlink_to(pair[1])
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix}
    for output in (*pair, tmp_path / "link", tmp_path / "mine.json"):  # sedjax wrote both of the pair
        with pytest.raises(UserError, match=rf"{output.name} "):
            run_command(score, "--predictions", pair[0], "--ground_truth", pair[1], "--json", output)
    assert {path: path.read_bytes() for path in before} == before


def test_recordings_are_counted_block_by_block(monkeypatch):
    truth, predictions = (random_segments({str(i): 1 + i % 4 for i in range(10)}, 3, seed) for seed in (0, 1))
    whole = submission.score_submissions(predictions, truth, TINY_TASK)
    monkeypatch.setattr(submission, "RECORDINGS_AT_ONCE", 3)
    assert submission.score_submissions(predictions, truth, TINY_TASK) == whole


def test_costs_are_those_of_the_file(tmp_path):
    (tmp_path / "costs.json").write_text(TINY_TASK.to_json())
    truth, predictions = ({"a": np.full((2, 3), active)} for active in (True, False))
    for name, segments in (("p", predictions), ("g", truth)):
        write_submission(tmp_path / f"{name}.csv", TINY_TASK, segments)
    arguments = "--predictions", tmp_path / "p.csv", "--ground_truth", tmp_path / "g.csv"
    with pytest.raises(UserError, match="column 'Speech' of the task 'MLPC 2025' is missing, and 'Bell' is unknown"):
        run_command(score, *arguments)
    run_command(score, *arguments, "--costs", tmp_path / "costs.json", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["cost"] == pytest.approx(50 * (5 + 10 + 15))


def test_without_ground_truth_only_the_format_is_checked(pair, capsys):
    run_command(score, "--predictions", pair[0])
    assert "valid submission of the task 'MLPC 2025'; recordings: 1, segments: 10." in capsys.readouterr().out
    pair[0].write_text(pair[0].read_text().replace("1.2", "1.3"))
    with pytest.raises(UserError, match=r"p\.csv, line 3, column 'onset'"):
        run_command(score, "--predictions", pair[0])


def test_recordings_and_segments_are_those_of_the_directory(tmp_path, capsys):
    layout = write_layout(tmp_path / "data", recordings={"1.mp3": 20, "2.mp3": 21, "3.mp3": 7, "4.mp3": 30, "5.mp3": 5},
                          splits=True)
    assert submission.expected_segments(layout) == {"1.mp3": 2, "2.mp3": 3, "3.mp3": 1, "4.mp3": 3, "5.mp3": 1}
    path = tmp_path / "p.csv"
    segments = random_segments(submission.expected_segments(layout), 3, seed=0)
    write_submission(path, layout.task, segments)
    run_command(score, "--predictions", path, "--dataset", layout.path)
    assert "valid submission of the task 'data'; recordings: 5, segments: 10." in capsys.readouterr().out

    with pytest.raises(UserError, match=r"p\.csv names 4 .*data.* '1\.mp3'"):
        run_command(score, "--predictions", path, "--dataset", layout.path, "--split", "test")
    write_submission(path, layout.task, {"5.mp3": segments["5.mp3"]})
    run_command(score, "--predictions", path, "--dataset", layout.path, "--split", "test")
    with pytest.raises(UserError, match=r"p\.csv lacks 4 of the 5 recordings of .*data, first '1\.mp3'"):
        run_command(score, "--predictions", path, "--dataset", layout.path)

    write_submission(path, layout.task, segments | {"2.mp3": segments["2.mp3"][:2]})
    with pytest.raises(UserError, match=r"of '2\.mp3' is 2 in .*p\.csv .*3 in .*data; .* starts at 2\.4"):
        run_command(score, "--predictions", path, "--dataset", layout.path)


def test_lengths_come_from_labels_where_there_are_no_features(tmp_path):
    layout = write_layout(tmp_path, recordings={"1.mp3": 20, "2.mp3": 21})
    expected = submission.expected_segments(layout)
    layout.features_path("2.mp3").unlink()
    assert submission.expected_segments(layout) == expected
    layout.labels_path("2.mp3").unlink()
    with pytest.raises(UserError, match=r"neither features nor labels nor audio of '2\.mp3'"):
        submission.expected_segments(layout)
    for content in (b"", b"no zip", layout.features_path("1.mp3").read_bytes()[:300]):
        layout.features_path("2.mp3").write_bytes(content)
        with pytest.raises(UserError, match=r"2\.npz is damaged"):
            submission.expected_segments(layout)


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "score needs --predictions"),
    (["p.csv"], r"argument 'p\.csv'"),
    (["--predictions=p.csv", "--json=o.json"], "--json needs --ground_truth"),
    (["--predictions=p.csv", "--split=test"], "--split needs --dataset"),
    (["--predictions=p.csv"], r"There is no file p\.csv"),
    (["--predictions=p.csv", "--costs=c.json"], r"no file c\.json"),
    (["--predictions=p.csv", "--dataset=d"], "There is no directory d"),
])
def test_wrong_arguments_are_explained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_command(score, *arguments)


def run_process(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sedjax", "score", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True)


def test_the_command_ends_with_status_0_and_nothing_on_standard_error(pair):
    done = run_process(f"--predictions={pair[0]}", f"--ground_truth={pair[1]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "155.0000" in done.stdout


def test_a_mistake_ends_with_status_2_and_one_sentence(pair):
    pair[0].write_text(pair[0].read_text().replace("0,1,0", "0,7,0", 1))
    done = run_process(f"--predictions={pair[0]}", f"--ground_truth={pair[1]}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {pair[0]}, line ")
    assert done.stderr.count("\n") == 1
