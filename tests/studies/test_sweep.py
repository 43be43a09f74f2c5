"""Sweeps: what is finished stays, what was cut off goes on, what fails stops nothing; the table says what was found."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from tiny import TINY_TASK, run_command

from configs.sweeps import report as report_sweep
from sedjax.commands import sweep as command
from sedjax.core.errors import UserError
from sedjax.models import registry
from sedjax.scoring import losses, metrics
from sedjax.studies import report, sweep
from sedjax.studies.results import Run, collect
from sedjax.training import optimizer, train_state, train_step
from sedjax.training import trainer as training
from sedjax.training.configs import base_config, changed
from sedjax.training.metric_writer import read_metrics
from sedjax.training.progress import is_finished

SMALL = {"model__width": 24, "model__layers": 1, "model__heads": 4, "model__feed_forward": 16, "model__positions": 40,
         "model__head_width": 8, "model__channels": (2, 3), "model__resnet_width": 2}
STATISTICS = {"width": 64, "mean": [0.0] * 64, "std": [1.0] * 64, "level_mean": [0.0] * 64, "level_std": [9.0] * 64}


def systems(size: str) -> dict:
    """The config of each system of the report's study with its first seed, by name."""
    study = sweep.freeze(report_sweep.get_config(size).to_dict())
    return {name: study.runs[study.folders(name)[0]] for name in study.systems}


def shrunk(config):
    """A config whose sizes are tiny and whose structure is the same."""
    model = {key.removeprefix("model__"): value for key, value in SMALL.items()}
    model = {key: value for key, value in model.items() if config.model.get(key)}
    if config.model.get("heads") in (6, 8):
        model["heads"] = config.model["heads"]
    factors = {"Drum": 2.0} if config.loss.class_factors else {}
    return dataclasses.replace(config, model={**config.model, **model},
                               loss=dataclasses.replace(config.loss, class_factors=factors))


# What differs from another row in sizes or factors only, or has tests of its own, need not be compiled.
TRACED = {"resnet", "wide", "head", "heads_6", "no_decay", "no_pos_weight", "factors", "absolute_costs", "no_level"}


# The naive system learns nothing; the row from ImageNet weights differs from the one before in its initial values; that
# from raw audio is the config of a test of its own.
@pytest.mark.parametrize("name", [name for name in systems("report") if name not in ("naive", "imagenet",
                                                                                     "end_to_end")])
def test_a_step_of_every_row(name):
    config = shrunk(systems("report")[name])
    rng = np.random.default_rng(0)
    model = registry.build_from(config, TINY_TASK)
    batch = {"features": {key: rng.exponential(size=(4, 20, 64)).astype(np.float32) for key in model.inputs},
             "votes": (rng.random((4, 20, 3)) < 0.2).astype(np.float16),
             "frame_mask": np.arange(20)[None] < np.array([20, 13, 5, 0])[:, None],
             "clip_id": np.array([0, 1, 2, -1], np.int32)}
    adamw = optimizer.make_optimizer(config.optimizer, 0, 10)
    features = dict.fromkeys(model.inputs, STATISTICS)
    create = functools.partial(train_state.create, model, adamw, features, config.train.ema > 0, 0)
    state = jax.eval_shape(create) if name in TRACED else create()
    step = functools.partial(train_step.train_step, model=model, optimizer=adamw, ema=config.train.ema,
                             weights=losses.class_weights(TINY_TASK, **vars(config.loss)))
    if name in TRACED:
        after, _ = jax.eval_shape(step, state, batch, jax.random.key(0))
    else:
        after, scalars = jax.jit(step)(state, batch, jax.random.key(0))
        assert np.isfinite(scalars["loss"])
        assert scalars["gradient_norm"] > 0
        assert all(np.isfinite(now).all() for now in jax.tree.leaves(after.params))
    for before, now in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params)):
        assert before.shape == now.shape


def test_every_row_differs_from_its_parent_by_a_few_keys():
    for size in ("report", "small"):
        study, configs = sweep.freeze(report_sweep.get_config(size).to_dict()), systems(size)
        for name, system in study.systems.items():
            if system.parent and name not in ("conv", "embeddings", "end_to_end"):  # these are another model
                config, parent = configs[name], configs[system.parent]
                pairs = zip(*(sorted(dataclasses.asdict(each)["model"].items()) for each in (config, parent)))
                different = [pair for pair in pairs if pair[0] != pair[1]]
                assert 0 < len(different) + (config != parent) <= 4
        assert configs["final"].model["stem"] == "linear"
        assert list(study.runs)[:4] == ["naive/seed0", "conv/seed0", "conv/seed1", "conv/seed2"]  # in the file's order
        assert [config.train.seed for config in study.runs.values()][:4] == [0, 0, 1, 2]
    assert {config.data.path for config in systems("report").values()} == {"records/mlpc"}
    moved = report_sweep.get_config()
    moved.data.path = "elsewhere"
    assert {config.data.path for config in sweep.freeze(moved.to_dict()).runs.values()} == {"elsewhere"}


CONFIG_FILE = """
from sedjax.training.configs import base_config, changed
from sedjax.studies.sweep import sweep_config

def get_config():
    base = changed(base_config("embedding_transformer"), data__batch_size=8, data__eval_batch_size=8,
                   data__max_frames=40, data__bucket_frames=40, train__duration="4 steps", train__save_every="1 steps",
                   train__evaluate_every="2 steps", train__log_every="1 steps", optimizer__learning_rate=1e-2,
                   model__width=16, model__heads=2, model__layers=0, model__feed_forward=16, model__positions=40,
                   model__head_width=8)
    config = sweep_config(
        [("base", "the base", "", base),
         ("broken", "broken", "base", changed(base, optimizer__learning_rate=1e30)),
         ("linear", "one layer", "base", changed(base, model__head_width=0)),
         ("pretrained", "pretrained", "base", changed(base, train__initial_weights="none.npz"))],
        [("costs", "Costs", "validation_cost", ("base", "linear")),
         ("classes", "Classes", "class_costs", ("base", "linear")),
         ("missing", "Missing", "loss", ("base", "pretrained"))],
        seeds=(0, 1))
    config.data.path = {records!r}
    return config
"""


@pytest.fixture
def config_file(tmp_path, records):
    (tmp_path / "study.py").write_text(CONFIG_FILE.format(records=str(records)))
    return tmp_path / "study.py"


def test_a_sweep_survives_failures_and_cuts(config_file, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    arguments = (f"--config={config_file}", f"--workdir={folder}")
    trained = []
    write, train = training.MetricWriter.write, sweep.train

    def cut_off(self, step, scalars):
        if step == 3 and "base/seed1" in str(self._file.name):
            raise KeyboardInterrupt
        write(self, step, scalars)

    def counted(config, path, stop):
        trained.append(f"{path.parent.name}/{path.name}")
        return train(config, path, stop)

    monkeypatch.setattr(sweep, "train", counted)
    with monkeypatch.context() as patch:
        patch.setattr(training.MetricWriter, "write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run_command(command, *arguments)
    assert trained == ["base/seed0", "base/seed1"]
    assert is_finished(folder / "base" / "seed0")
    assert not is_finished(folder / "base" / "seed1")
    assert not (folder / "report").exists()

    trained.clear()
    drawn = {}
    for show in report.DRAW:
        monkeypatch.setitem(report.DRAW, show, lambda systems, path: drawn.update({path.name: systems}))
    with pytest.raises(UserError, match=r"2 runs failed: broken/seed0: The loss became NaN .*broken/seed1"):
        run_command(command, *arguments)
    # What was finished is left alone, what was cut off goes on from its last step, what fails stops nothing.
    assert trained == ["base/seed1", "broken/seed0", "broken/seed1", "linear/seed0", "linear/seed1"]
    entries = read_metrics(folder / "base" / "seed1")
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4]

    page = (folder / "report" / "index.md").read_text()
    assert "- `pretrained/seed0`: there is no file none.npz, its initial weights" in page
    assert "- `broken/seed1`: The loss became NaN" in page
    assert "| pretrained | the base | not run |" in page
    assert page in capsys.readouterr().out
    runs = {name: [collect([folder / name / f"seed{seed}"], "test")[0] for seed in (0, 1)]
            for name in ("base", "linear")}
    difference = np.mean([run.cost for run in runs["linear"]]) - np.mean([run.cost for run in runs["base"]])
    row = next(line for line in page.splitlines() if line.startswith("| one layer | the base"))
    assert f"| {difference:+.2f} |" in row
    assert f"| {report.spread([run.cost for run in runs['linear']])} |" in row

    # The figures show these runs: both seeds of both systems, on the validation split.
    assert set(drawn) == {"costs.png", "classes.png"}
    assert {title: len(shown) for title, shown in drawn["costs.png"].items()} == {"the base": 2, "one layer": 2}
    kept = {float(entry["validation_cost"]) for name in ("base", "linear") for seed in (0, 1)
            for entry in read_metrics(folder / name / f"seed{seed}") if "validation_cost" in entry}
    shown = [run for runs in drawn["costs.png"].values() for run in runs]
    assert {float(cost) for run in shown for cost in run.validation_cost} == kept
    for shown in drawn["classes.png"].values():
        for run in shown:
            assert run.cost == pytest.approx(run.validation_cost.min(), abs=1e-9)
    assert "Not drawn" in page.split("### Missing")[1]

    trained.clear()
    run_command(command, *arguments, "--only=linear")
    assert trained == []
    with pytest.raises(UserError, match=r"another config: model\.head_width is 0 there and 4 now"):
        run_command(command, *arguments, "--only=linear", "--config.systems.linear.config.model.head_width=4")
    # A finished run of other records does not count, whether it is chosen or not.
    path = folder / "base" / "seed0" / "features.json"
    known = json.loads(path.read_text())
    known["labels"]["fingerprint"]["train"] = "another"
    path.write_text(json.dumps(known))
    for only in ("base", "linear"):
        with pytest.raises(UserError, match=r"1 runs failed: base/seed0: .*other records .* labels of the"):
            run_command(command, *arguments, f"--only={only}")
        assert "- `base/seed0`: The workdir" in (folder / "report" / "index.md").read_text()
    assert trained == []
    with pytest.raises(UserError, match="no system 'lineal'"):
        run_command(command, *arguments, "--only=lineal")


def test_what_is_no_sweep():
    with pytest.raises(UserError, match="not a sweep"):
        sweep.freeze(base_config("naive").to_dict())
    with pytest.raises(UserError, match="systems must have at least 1"):
        sweep.freeze(sweep.sweep_config([]).to_dict())
    one = ("one", "One", "", base_config("embedding_transformer"))
    with pytest.raises(UserError, match=r"systems\.one is given twice"):
        sweep.sweep_config([one, one])
    with pytest.raises(UserError, match="title 'One'"):
        sweep.freeze(sweep.sweep_config([one, ("two", *one[1:])]).to_dict())
    config = sweep.sweep_config([one], [("figure", "Figure", "loss", ("three",))])
    config.systems.one.config.model.heads = 3
    with pytest.raises(UserError, match=r"systems\.one: model\.width = 1024 .* model\.heads = 3"):
        sweep.freeze(config.to_dict())
    config.systems.one.config.model.heads = 4
    config.systems.one.parent = "two"
    with pytest.raises(UserError, match="no system 'two' to compare it with"):
        sweep.freeze(config.to_dict())
    config.systems.one.parent = ""
    with pytest.raises(UserError, match=r"figures\.figure: there is no system 'three'"):
        sweep.freeze(config.to_dict())
    config.figures.figure.show = "sound"
    with pytest.raises(UserError, match="figures.figure.show must be .* not 'sound'"):
        sweep.freeze(config.to_dict())
    fields = config.to_dict() | {"figures": {}}
    for changes, words in (({"seeds": (0, -1)}, r"seeds\[1\] must be"), ({"seeds": 3}, "seeds must be"),
                           ({"seeds": ()}, "seeds must have at least 1"),
                           ({"systems": [1]}, "systems must be"), ({"systems": {"one": 3}}, "systems.one must be"),
                           ({"systems": {"one": {"title": "x"}}}, r"systems\.one\.config is missing"),
                           ({"systems": {"../x": {}}}, "systems.*../x"), ({"systems": {".": {}}}, "systems"),
                           ({"figures": {"a": {"title": "x", "shw": 1}}}, r"figures\.a\.shw; did you mean"),
                           ({"data": {"path": 3}}, "data.path must be"), ({"colour": 1}, "key colour")):
        with pytest.raises(UserError, match=words):
            sweep.freeze(fields | changes)


def test_changed_keys_and_only_they():
    base = base_config("embedding_transformer")
    config = changed(base, model__heads=8, loss__class_factors={"Siren": 2.0})
    assert (config.model.heads, base.model.heads) == (8, 4)
    assert config.loss.class_factors.to_dict() == {"Siren": 2.0}
    assert base.loss.class_factors.to_dict() == {}
    with pytest.raises((KeyError, AttributeError), match="head"):
        changed(base, model__head=8)


def make_run(name: str, counts: np.ndarray) -> Run:
    score = metrics.score(counts, TINY_TASK)
    return Run(name=name, model="embedding_transformer", task=TINY_TASK, parameters=7, seconds=60.0,
               steps=np.array([4]), epochs=np.array([1.0]), validation_cost=np.array([score.cost]),
               validation_loss=np.array([1.0]), train_loss=np.array([1.0]), best=0, counts=counts, cost=score.cost,
               class_costs={name: figures["cost"] for name, figures in score.classes.items()})


def counts(seed: int, misses: float, recordings: int = 40) -> np.ndarray:
    """Of ten segments a recording and class: some missed, the rest right."""
    missed = np.random.default_rng(seed).binomial(10, misses, (recordings, 3))
    zeros = np.zeros_like(missed)
    return np.stack([zeros, zeros, 10 - missed, missed], axis=-1)


def test_verdicts():
    good, same, bad = ([make_run(name, counts(seed, share)) for seed in seeds] for name, share, seeds in (
        ("good", 0.1, (1, 2)), ("same", 0.1, (3, 4)), ("bad", 0.4, (5, 6))))
    def verdict(runs, baseline):
        return report.verdict(report.compare(runs, baseline)[0])

    assert (verdict(good, bad), verdict(bad, good), verdict(good, same)) == ("better", "worse", "no evidence")
    known = [dataclasses.replace(run, recordings="a") for run in good]
    assert verdict(known, bad) == "better"
    for other in (make_run("short", counts(1, 0.1, recordings=5)), dataclasses.replace(bad[0], recordings="b")):
        with pytest.raises(UserError, match="not evaluated on the same recordings"):
            report.compare(known, [other])


def test_what_an_interval_of_single_runs_covers():
    three = [make_run("A", counts(seed, share)) for seed, share in ((1, 0.05), (2, 0.1), (3, 0.2))]
    one = [make_run("B", counts(4, 0.4))]
    silent = [dataclasses.replace(one[0], model="naive")]
    notes = [report.compare(*sides)[1] for sides in ((three, three), (three, silent), (one, three), (one, one),
                                                     (three[:1], silent))]
    assert notes == ["", "", "one run, spread of the other's", "recordings only", "recordings only"]
    known, borrowed = (np.diff(report.compare(three, side)[0])[0] for side in (silent, one))
    assert known < borrowed


def test_the_table_has_a_row_for_every_system():
    runs = {"A": [make_run("A", counts(seed, 0.4)) for seed in (1, 2)], "B": [make_run("B", counts(3, 0.1))], "C": []}
    lines = report.table(runs, "test", {"B": "A", "C": "B"}).splitlines()
    titles, _, first, second, third = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    first, second, third = (dict(zip(titles, cells, strict=True)) for cells in (first, second, third))
    assert (first["system"], first["against"], first["verdict"], first["parameters"]) == ("A", "", "", "7")
    assert (second["against"], second["verdict"], second["best step"]) == ("A", "better", "4")
    assert second["interval of the difference"].endswith("(one run, spread of the other's)")
    assert float(second["difference"]) == pytest.approx(
        runs["B"][0].cost - np.mean([run.cost for run in runs["A"]]), abs=5e-3)
    assert [value for value in third.values() if value] == ["C", "B", "not run"]
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", first["test cost"])
    assert second["test cost"] == f"{runs['B'][0].cost:.2f}"
    score = metrics.score(runs["B"][0].counts, TINY_TASK)
    assert second["95 % interval"] == "{:.2f} to {:.2f}".format(*score.interval)
    assert report.class_table(runs).count("\n") == 3
