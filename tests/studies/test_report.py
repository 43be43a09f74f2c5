"""The report shows the numbers that are in the workdirs, and evaluates only what was not evaluated yet."""

import dataclasses
import json
import math
import pathlib
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from tiny import TINY_TASK, run_command, tiny_config

from sedjax.commands import evaluate
from sedjax.commands import report as command
from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, Task
from sedjax.studies import report, results
from sedjax.studies.results import Run, _digest, collect
from sedjax.training import trainer, workdir

FINGERPRINTS = {"labels": "of labels", "embeddings": "of embeddings"}
STATISTICS = {key: {"width": width, "fingerprint": dict.fromkeys(("validation", "test"), FINGERPRINTS[key])}
              for key, width in (("embeddings", 16), ("labels", 3))}
FIGURES = ("validation_cost.png", "loss.png", "class_costs.png")
PNG = b"\x89PNG\r\n\x1a\n"


def result(step: int, costs: tuple[float, ...] = (1, 2, 4), recordings: int = 7) -> dict:
    """What evaluate_workdir returns, as far as the report needs it."""
    return {"step": step, "counts": np.zeros((recordings, 3, 4), int).tolist(), "cost": sum(costs),
            "interval": [sum(costs) - 1, sum(costs) + 2],
            "classes": {name: {"cost": cost} for name, cost in zip(TINY_TASK.classes, costs)}, "frames": {},
            "records": {"path": "records", "identity": FINGERPRINTS}}


def kept(content: dict) -> str:
    """The file in a workdir that keeps a result."""
    of = {"step": content["step"], "checkpoint": None, "records": content["records"]["identity"]}
    return json.dumps({"of": of, "digest": _digest(of, content), "result": content})


def write_workdir(path: pathlib.Path, costs=(30.0, 20.0, 25.0), model: str = "embedding_transformer",
                  task: Task = TINY_TASK, **results: dict) -> pathlib.Path:
    """A workdir as a training with 4 steps an epoch leaves it, without checkpoints; `results` are by split."""
    workdir.prepare(path, tiny_config(model), task, STATISTICS)
    lines = []
    for epoch, cost in enumerate(costs, start=1):
        # The first entry is of 3 steps and the second of 1: the mean loss of the epoch is .75 x + .25 y.
        lines += [{"step": 4 * epoch - 1, "loss": 8 / epoch}, {"step": 4 * epoch, "loss": 4 / epoch},
                  {"step": 4 * epoch, "epoch": float(epoch), "validation_loss": 9 / epoch, "validation_cost": cost}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "report").mkdir()
    for split, content in results.items():
        (path / "report" / f"evaluation_{split}.json").write_text(kept(content))
    return path


def make_run(name: str, costs=(30.0, 20.0, 25.0), model: str = "embedding_transformer", task: Task = TINY_TASK,
                class_costs=(1.0, 2.0, 4.0), **changes) -> Run:
    epochs = np.arange(1.0, len(costs) + 1)
    fields = {"name": name, "model": model, "task": task, "parameters": 1234, "seconds": None,
              "steps": (4 * epochs).astype(int), "epochs": epochs, "validation_cost": np.array(costs),
              "validation_loss": 9 / epochs, "train_loss": 7 / epochs, "best": int(np.argmin(costs)),
              "counts": np.zeros((7, 3, 4), int),
              "cost": sum(class_costs), "class_costs": dict(zip(task.classes, class_costs))}
    return Run(**{**fields, **changes})


def by_name(*runs: Run) -> dict[str, list[Run]]:
    """Systems with one run each."""
    return {run.name: [run] for run in runs}


def drawn(show: str, systems: dict[str, list[Run]], folder: pathlib.Path):
    """A figure, which is in the folder as well."""
    figure = report.DRAW[show](systems, path=folder / f"{show}.png")
    assert (folder / f"{show}.png").read_bytes().startswith(PNG)
    return figure


def written(folder: pathlib.Path, *runs: Run) -> str:
    """The page that compares some runs."""
    systems = by_name(*runs)
    figures = {name: report.Figure(title, name, tuple(systems)) for name, title in command.FIGURES.items()}
    return report.write(folder, systems, "test", figures).read_text()


@pytest.fixture
def evaluated(monkeypatch) -> list[tuple[str, str]]:
    """The workdirs, by name, and splits that were evaluated; each gets the result of step 8, its best."""
    calls = []

    def evaluate_workdir(folder: pathlib.Path, split: str) -> dict:
        calls.append((folder.name, split))
        return result(8)

    monkeypatch.setattr(results, "evaluate_workdir", evaluate_workdir)
    return calls


def lines_of(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_systems_hold_what_their_workdirs_tell(tmp_path, evaluated):
    worse = write_workdir(tmp_path / "worse", test=result(8, (3, 2, 4)))
    better = write_workdir(tmp_path / "better", costs=(30.0, 40.0), test=result(4, (1, 2, 3)))
    first, second = collect([worse, better], "test")
    assert evaluated == []
    assert [first.name, second.name] == ["better", "worse"]
    assert second.model == "embedding_transformer"
    assert second.task == TINY_TASK
    np.testing.assert_array_equal(second.steps, [4, 8, 12])
    np.testing.assert_array_equal(second.epochs, [1, 2, 3])
    np.testing.assert_array_equal(second.validation_cost, [30, 20, 25])
    np.testing.assert_array_equal(second.validation_loss, [9, 4.5, 3])
    np.testing.assert_allclose(second.train_loss, [7, 3.5, 7 / 3])
    assert (first.best, second.best) == (0, 1)
    assert (second.cost, len(second.counts)) == (9, 7)
    assert second.class_costs == {"Bell": 3, "Crow": 2, "Drum": 4}
    assert second.seconds is None


def test_parameters_are_those_of_the_model_on_its_features(tmp_path, evaluated):
    folders = [write_workdir(tmp_path / name) for name in ("narrow", "wide")]
    (folders[1] / "features.json").write_text(json.dumps({**STATISTICS, "embeddings": {"width": 17}}))
    narrow, wide = collect(folders, "test")
    assert wide.parameters - narrow.parameters == 16  # one row more in the first matrix, which is 16 wide
    assert narrow.parameters > 16 * 16


def test_seconds_of_training_are_summed_where_the_metrics_tell(tmp_path, evaluated):
    folder = write_workdir(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss": 1, "seconds": 2.5}\n{"step": 14, "loss": 1, "seconds": 40}\n')
    (system,) = collect([folder], "test")
    assert system.seconds == 42.5


def test_a_training_without_steps_has_no_training_loss(tmp_path, evaluated):
    folder = write_workdir(tmp_path / "naive", costs=(), model="naive", test=result(0))
    (folder / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.0, "validation_loss": 6, "validation_cost": 90}\n')
    (system,) = collect([folder], "test")
    assert system.naive
    assert system.parameters == 0  # and the figures can be drawn without any epoch
    assert "| naive | naive | 0 |" in written(tmp_path / "out", system)
    assert np.isnan(system.train_loss).tolist() == [True]


OTHER_RECORDS = {"path": "records", "identity": {**FINGERPRINTS, "labels": "others"}}


@pytest.mark.parametrize("content", [
    None, kept(result(4)), "{", "[]", "{}", "1" * 5000, "[" * 100_000, json.dumps(result(8)),
    kept({**result(8), "records": OTHER_RECORDS}), kept(result(8)).replace(": 7,", ": 3,"),
], ids=["missing", "older", "cut off", "a list", "empty", "number", "deep", "no digest", "other records", "edited"])
def test_only_what_has_no_result_of_its_best_checkpoint_is_evaluated(tmp_path, evaluated, content):
    folder = write_workdir(tmp_path / "run", validation=result(8))
    if content is not None:
        (folder / "report" / "evaluation_test.json").write_text(content)
    for _ in range(2):
        collect([folder], "test")
        collect([folder], "validation")
    assert evaluated == [("run", "test")]
    assert json.loads((folder / "report" / "evaluation_test.json").read_text())["result"] == result(8)


def test_of_equal_costs_the_first_is_the_best_as_for_checkpoints(tmp_path, evaluated):
    folder = write_workdir(tmp_path / "run", costs=(20.0, 20.0, 25.0), test=result(4))
    (system,) = collect([folder], "test")
    assert evaluated == []
    assert system.best == 0


def test_names_are_as_long_as_needed(tmp_path):
    folders = [tmp_path / "a" / "seed0", tmp_path / "b" / "seed0", tmp_path / "b" / "seed1"]
    assert files.distinct_names(folders[1:]) == ["seed0", "seed1"]
    assert files.distinct_names(folders) == ["a/seed0", "b/seed0", "b/seed1"]
    with pytest.raises(UserError, match="given twice"):
        files.distinct_names([folders[0], folders[1], folders[0] / ".." / "seed0"])


def test_what_cannot_be_compared_is_an_error_before_anything_is_evaluated(tmp_path, evaluated):
    folder = write_workdir(tmp_path / "run")
    other = dataclasses.replace(TINY_TASK, classes=("Bell", "Crow", "Dog"))
    with pytest.raises(UserError, match=r"workdir .*/other .*task 'tiny'.*'Drum'.*'Dog'"):
        collect([folder, write_workdir(tmp_path / "other", task=other)], "test")
    with pytest.raises(UserError, match=r"elsewhere is not the workdir"):
        collect([folder, tmp_path / "elsewhere"], "test")
    with pytest.raises(UserError, match=r"/young has no validation cost yet"):
        collect([folder, write_workdir(tmp_path / "young", costs=())], "test")
    with pytest.raises(UserError, match="WORKDIR"):
        run_command(command)
    assert evaluated == []


def test_validation_cost_is_a_line_per_system_and_naive_a_dashed_one(tmp_path):
    systems = by_name(make_run("small"), make_run("large", costs=(28.0, 22.0)),
                      make_run("base", costs=(90.0,), model="naive"))
    (axes,) = drawn("validation_cost", systems, tmp_path).axes
    lines = lines_of(axes)
    assert list(lines) == ["small", "large", "base"]
    np.testing.assert_array_equal(lines["small"], [[1, 30], [2, 20], [3, 25]])
    np.testing.assert_array_equal(lines["large"], [[1, 28], [2, 22]])
    assert set(lines["base"][:, 1]) == {90}
    assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "-", "--"]
    assert [line.get_markevery() for line in axes.get_lines()] == [[1], [1], None]  # the dot at the best
    assert (axes.get_xlabel(), axes.get_title()) == ("epoch", "Validation cost per minute")


def test_losses_are_those_of_training_and_validation(tmp_path):
    run = make_run("small", train_loss=np.array([np.nan, 5.0, 4.0]))
    training, validation = drawn("loss", by_name(run), tmp_path).axes
    assert training.get_title().startswith("Training")
    assert validation.get_title().startswith("Validation")
    np.testing.assert_array_equal(lines_of(training)["small"], [[1, np.nan], [2, 5], [3, 4]])
    np.testing.assert_array_equal(lines_of(validation)["small"], [[1, 9], [2, 4.5], [3, 3]])


def test_each_class_has_one_bar_per_system_and_the_costliest_class_is_on_top(tmp_path):
    systems = by_name(make_run("small", class_costs=(3.0, 2.5, 4.0)), make_run("base", model="naive"))
    (axes,) = drawn("class_costs", systems, tmp_path).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Drum", "Bell", "Crow"]
    assert axes.yaxis_inverted()
    bars = {container.get_label(): container for container in axes.containers}
    assert [bar.get_width() for bar in bars["small"]] == [4, 3, 2.5]
    assert [bar.get_width() for bar in bars["base"]] == [4, 1, 2]
    for place, pair in enumerate(zip(*bars.values())):  # the bars of a class lie around its label, none over another
        edges = [edge for bar in pair for edge in (bar.get_y(), bar.get_y() + bar.get_height())]
        assert edges == sorted(edges)
        assert place - 0.5 < edges[0] < place < edges[-1] < place + 0.5


def test_a_system_has_one_colour_in_all_figures_and_no_other_system_has_it(tmp_path):
    systems = by_name(*(make_run(f"system {i}") for i in range(6)), make_run("base", model="naive"))
    (cost,) = drawn("validation_cost", systems, tmp_path).axes
    colours = {line.get_label(): line.get_color() for line in cost.get_lines()}
    assert len(set(colours.values())) == len(systems)
    for axes in drawn("loss", systems, tmp_path).axes:
        assert {line.get_label(): line.get_color() for line in axes.get_lines()} == colours
    (classes,) = drawn("class_costs", systems, tmp_path).axes
    assert ({bars.get_label(): to_hex(bars[0].get_facecolor()).upper() for bars in classes.containers}
            == {name: colour.upper() for name, colour in colours.items()})


def test_the_systems_after_the_colours_are_out_still_differ(tmp_path):
    systems = by_name(*(make_run(f"system {i}") for i in range(18)))
    (axes,) = drawn("validation_cost", systems, tmp_path).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 18


def test_the_runs_of_a_system_share_a_colour_and_are_averaged(tmp_path):
    systems = {"small": [make_run("a"), make_run("b", costs=(31.0, 21.0, 26.0), class_costs=(3.0, 2.0, 5.0))]}
    figure = drawn("validation_cost", systems, tmp_path)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small"]
    first, second = figure.axes[0].get_lines()
    assert first.get_color() == second.get_color()
    np.testing.assert_array_equal(second.get_ydata(), [31, 21, 26])
    assert report.class_costs(systems) == {"small": {"Drum": 4.5, "Bell": 2, "Crow": 2}}


def test_published_costs_stand_beside_those_of_their_own_task_only(tmp_path):
    final, naive = report.PUBLISHED
    for name, total in ((final, 38.60), (naive, 108.8553)):
        assert set(report.PUBLISHED[name]) == set(MLPC_2025.classes)
        assert math.isclose(sum(report.PUBLISHED[name].values()), total, abs_tol=5e-4)
    renamed = dataclasses.replace(MLPC_2025, name="ours", classes=MLPC_2025.classes[::-1], costs=MLPC_2025.costs[::-1])
    dearer = dataclasses.replace(MLPC_2025, costs=((0, 2, 0, 5), *MLPC_2025.costs[1:]))
    costs = tuple(range(10))
    assert list(report.class_costs(by_name(make_run("small", task=renamed, class_costs=costs)))) == [
        "small", final, naive]
    for other in (dearer, dataclasses.replace(MLPC_2025, classes=(*MLPC_2025.classes[:-1], "Alarm"))):
        assert list(report.class_costs(by_name(make_run("small", task=other, class_costs=costs)))) == ["small"]
    (axes,) = drawn("class_costs", by_name(make_run("small", task=MLPC_2025, class_costs=costs)), tmp_path).axes
    bars = {container.get_label(): container for container in axes.containers}
    top = axes.get_yticklabels()[0].get_text()
    assert (top, bars[final][0].get_width(), bars[naive][0].get_width()) == ("Siren", 4.02, 18.4102)


def test_tables_say_what_the_systems_hold():
    counts = np.zeros((7, 3, 4), int)
    counts[..., 2] = 10  # all right: whatever recordings are drawn, the cost is 0
    systems = by_name(make_run("a|b", parameters=40821514, counts=counts),
                      make_run("base", model="naive", class_costs=(1.0, 2.0, 9.0), counts=counts))
    assert report.table(systems, "test").splitlines() == [
        "| system | model | parameters | best step | validation cost | test cost | 95 % interval |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        r"| a\|b | embedding_transformer | 40,821,514 | 8 | 20.00 | 7.00 | 0.00 to 0.00 |",
        "| base | naive | 1,234 | 8 | 20.00 | 12.00 | 0.00 to 0.00 |"]
    timed = report.table({**systems, "a|b": [dataclasses.replace(systems["a|b"][0], seconds=1800.4)]}, "validation")
    assert [line.split(" | ")[-1] for line in timed.splitlines()] == ["training (s) |", "---: |", "1,800 |", " |"]
    assert "| validation cost | 95 % interval |" in timed
    assert report.class_table(systems).splitlines() == [
        "| system | Drum | Crow | Bell | total |", "| --- | ---: | ---: | ---: | ---: |",
        r"| a\|b | 4.00 | 2.00 | 1.00 | **7.00** |", "| base | 9.00 | 2.00 | 1.00 | **12.00** |"]


def test_the_command_writes_one_page_that_shows_all_figures(tmp_path, evaluated, capsys):
    folders = [write_workdir(tmp_path / "one", test=result(8), validation=result(8, (5, 5, 5))),
               write_workdir(tmp_path / "two", test=result(8, (0, 0, 1)), validation=result(8, (9, 9, 9)))]
    run_command(command, *folders)
    page = (tmp_path / "one" / "report" / "index.md").read_text()
    assert "| two | embedding_transformer |" in capsys.readouterr().out
    systems = by_name(*collect(folders, "test"))
    assert report.table(systems, "test") in page
    assert report.class_table(systems) in page
    assert "test split (7 recordings)" in page
    assert "cannot be compared" not in page
    assert all(f"]({name})" in page for name in FIGURES)

    run_command(command, *folders, "--split=validation", f"--output={tmp_path / 'new' / 'folder'}")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").glob("[!.]*")) == sorted([*FIGURES, "index.md"])
    assert re.search(r"\*\*15\.00\*\*.*\n.*\*\*27\.00\*\*", (tmp_path / "new" / "folder" / "index.md").read_text())
    assert (tmp_path / "one" / "report" / "index.md").read_text() == page
    assert evaluated == []


def test_a_page_of_different_recordings_says_so(tmp_path):
    page = written(tmp_path, make_run("one"), make_run("two", counts=np.zeros((1200, 3, 4), int)))
    assert "1,200 or 7 recordings" in page
    assert "cannot be compared" in page


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="Cannot create the folder"):
        written(blocked, make_run("one"))

    def disk_full(path: pathlib.Path, text: str, **options) -> None:
        with path.open("w") as file:
            file.write(text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", disk_full)
    with pytest.raises(UserError, match=r"index\.md: No space left"):
        written(tmp_path / "out", make_run("one"))
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == sorted(FIGURES)


def test_a_report_of_a_training_holds_what_evaluate_says(tmp_path, records):
    folder = tmp_path / "naive"
    trainer.train(tiny_config("naive", data__path=str(records), train__duration="0 epochs"), folder)
    run_command(command, folder)
    run_command(evaluate, f"--workdir={folder}", f"--json={tmp_path / 'result.json'}")
    kept = json.loads((folder / "report" / "evaluation_test.json").read_text())["result"]
    said = json.loads((tmp_path / "result.json").read_text())
    assert list(said) == ["cost", "interval", "classes", "frames", "records"]
    assert said["records"]["path"] == str(records)
    assert said["records"]["identity"].keys() == {"labels"}
    assert len(kept.pop("counts")) == 4
    assert kept == {"step": 0, **said}
    assert "| naive | naive | 0 | 0 | " in (folder / "report" / "index.md").read_text()
    assert f"| {said['cost']:.2f} |" in (folder / "report" / "index.md").read_text()


def test_a_result_that_cannot_be_kept_and_outputs_of_others(tmp_path, evaluated):
    folder = write_workdir(tmp_path / "run")
    (folder / "report").rmdir()
    (folder / "report").write_text("mine")  # as good as a workdir that is read-only
    run_command(command, folder, f"--output={tmp_path / 'out'}")
    assert (folder / "report").read_text() == "mine"
    (tmp_path / "out" / "index.md").write_text("mine")
    evaluated.clear()
    with pytest.raises(UserError, match=r"out/index\.md already exists"):
        run_command(command, folder, f"--output={tmp_path / 'out'}")
    assert evaluated == []
    assert (tmp_path / "out" / "index.md").read_text() == "mine"
