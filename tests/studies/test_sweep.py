"""Sweeps: what is finished stays, what was cut off goes on, what fails stops nothing; the table says what was found."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from tiny import TINY_TASK, run_command, tiny_config

from configs.sweeps import report as report_sweep
from sedjax.commands import sweep as command
from sedjax.core.errors import UserError
from sedjax.models import registry
from sedjax.scoring import losses, metrics
from sedjax.studies import study, sweep
from sedjax.studies.results import System, collect
from sedjax.training import optimizer, train_state, train_step
from sedjax.training import trainer as training
from sedjax.training.configs import base_config, changed
from sedjax.training.metric_writer import read_metrics
from sedjax.training.progress import is_finished

SMALL = {"model__width": 24, "model__layers": 1, "model__heads": 4, "model__feed_forward": 16, "model__positions": 40,
         "model__head_width": 8, "model__channels": (2, 3), "model__resnet_width": 2}
STATISTICS = {"width": 64, "mean": [0.0] * 64, "std": [1.0] * 64, "level_mean": [0.0] * 64, "level_std": [9.0] * 64}


def rows(size: str):
    return sweep.freeze(report_sweep.get_config(size).to_dict()).rows


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
@pytest.mark.parametrize("row", [row for row in rows("report") if row.name not in ("naive", "imagenet", "end_to_end")],
                         ids=lambda row: row.name)
def test_a_step_of_every_row(row):
    config = shrunk(row.config)
    rng = np.random.default_rng(0)
    model = registry.build_from(config, TINY_TASK)
    batch = {"features": {key: rng.exponential(size=(4, 20, 64)).astype(np.float32) for key in model.inputs},
             "votes": (rng.random((4, 20, 3)) < 0.2).astype(np.float16),
             "frame_mask": np.arange(20)[None] < np.array([20, 13, 5, 0])[:, None],
             "clip_id": np.array([0, 1, 2, -1], np.int32)}
    adamw = optimizer.make_optimizer(config.optimizer, 0, 10)
    features = dict.fromkeys(model.inputs, STATISTICS)
    create = functools.partial(train_state.create, model, adamw, features, config.train.ema > 0, 0)
    state = jax.eval_shape(create) if row.name in TRACED else create()
    step = functools.partial(train_step.train_step, model=model, optimizer=adamw, ema=config.train.ema,
                             weights=losses.class_weights(TINY_TASK, **vars(config.loss)))
    if row.name in TRACED:
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
        found = {row.name: row for row in rows(size)}
        for row in found.values():
            if row.parent and row.name not in ("conv", "embeddings", "end_to_end"):  # these are another model
                pairs = zip(*(sorted(dataclasses.asdict(each.config)["model"].items())
                              for each in (row, found[row.parent])))
                different = [pair for pair in pairs if pair[0] != pair[1]]
                assert 0 < len(different) + (row.config != found[row.parent].config) <= 4
        assert found["final"].config.model["stem"] == "linear"
    assert {row.config.data.path for row in rows("report")} == {"records/mlpc"}
    moved = report_sweep.get_config()
    moved.data.path = "elsewhere"
    assert {row.config.data.path for row in sweep.freeze(moved.to_dict()).rows} == {"elsewhere"}


CONFIG_FILE = """
from sedjax.training.configs import base_config, changed
from sedjax.studies.sweep import add, add_figure, new_sweep

def get_config():
    sweep = new_sweep()
    sweep.data.path = {records!r}
    sweep.seeds = (0, 1)
    base = changed(base_config("embedding_transformer"), data__batch_size=8, data__eval_batch_size=8,
                   data__max_frames=40, data__bucket_frames=40, train__duration="4 steps", train__save_every="1 steps",
                   train__evaluate_every="2 steps", train__log_every="1 steps", optimizer__learning_rate=1e-2,
                   model__width=16, model__heads=2, model__layers=0, model__feed_forward=16, model__positions=40,
                   model__head_width=8)
    add(sweep, "base", "the base", base=base)
    add(sweep, "broken", "broken", parent="base", published="better", optimizer__learning_rate=1e30)
    add(sweep, "linear", "one layer", parent="base", published="worse", model__head_width=0)
    add(sweep, "pretrained", "pretrained", parent="base", published="better", train__initial_weights="none.npz")
    add_figure(sweep, "costs", "Costs", "validation_cost", ("base", "linear"))
    add_figure(sweep, "classes", "Classes", "class_costs", ("base", "linear"))
    add_figure(sweep, "missing", "Missing", "loss", ("base", "pretrained"))
    return sweep
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
    for show in study.DRAW:
        monkeypatch.setitem(study.DRAW, show, lambda systems, path: drawn.update({path.name: systems}))
    with pytest.raises(UserError, match=r"2 runs failed: broken/seed0: The loss became NaN .*broken/seed1"):
        run_command(command, *arguments)
    # What was finished is left alone, what was cut off goes on from its last step, what fails stops nothing.
    assert trained == ["base/seed1", "broken/seed0", "broken/seed1", "linear/seed0", "linear/seed1"]
    entries = read_metrics(folder / "base" / "seed1")
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4]

    page = (folder / "report" / "index.md").read_text()
    assert "- `pretrained/seed0`: there is no file none.npz, its initial weights" in page
    assert "- `broken/seed1`: The loss became NaN" in page
    assert "| pretrained | the base |  | better | not run |" in page
    assert page in capsys.readouterr().out
    runs = {name: [collect([folder / name / f"seed{seed}"], "test")[0] for seed in (0, 1)]
            for name in ("base", "linear")}
    difference = np.mean([run.cost for run in runs["linear"]]) - np.mean([run.cost for run in runs["base"]])
    row = next(line for line in page.splitlines() if line.startswith("| one layer | the base"))
    assert f"| {difference:+.2f} |" in row
    assert f"| {study.spread([run.cost for run in runs['linear']])} |" in row

    # The figures show these runs: both seeds of both systems, on the validation split.
    assert set(drawn) == {"costs.png", "classes.png"}
    assert [system.name for system in drawn["costs.png"]] == ["the base"] * 2 + ["one layer"] * 2
    kept = {float(entry["validation_cost"]) for name in ("base", "linear") for seed in (0, 1)
            for entry in read_metrics(folder / name / f"seed{seed}") if "validation_cost" in entry}
    assert {float(cost) for system in drawn["costs.png"] for cost in system.validation_cost} == kept
    for system in drawn["classes.png"]:
        assert system.cost == pytest.approx(system.validation_cost.min(), abs=1e-9)
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
    study_config = sweep.new_sweep()
    with pytest.raises(UserError, match="no systems"):
        sweep.freeze(study_config.to_dict())
    sweep.add(study_config, "one", "one", base=base_config("embedding_transformer"), model__heads=3)
    with pytest.raises(UserError, match=r"systems\.one: model\.width = 1024 .* model\.heads = 3"):
        sweep.freeze(study_config.to_dict())
    study_config.systems.one.config.model.heads = 4
    study_config.systems.one.parent = "two"
    with pytest.raises(UserError, match="no system 'two' to compare it with"):
        sweep.freeze(study_config.to_dict())
    study_config.systems.one.parent = ""
    sweep.add_figure(study_config, "figure", "Figure", "loss", ("three",))
    with pytest.raises(UserError, match=r"figures\.figure: there is no system 'three'"):
        sweep.freeze(study_config.to_dict())
    study_config.figures.figure.show = "sound"
    with pytest.raises(UserError, match="figures.figure.show must be .* not 'sound'"):
        sweep.freeze(study_config.to_dict())
    fields = study_config.to_dict() | {"figures": {}}
    for changes, words in (({"seeds": (0, -1)}, r"seeds\[1\] must be"), ({"seeds": 3}, "seeds must be"),
                           ({"systems": [1]}, "systems must be"), ({"systems": {"one": 3}}, "systems.one must be"),
                           ({"systems": {"one": {"title": "x"}}}, r"systems\.one\.place is missing"),
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


def system(name: str, counts: np.ndarray) -> System:
    score = metrics.score(counts, TINY_TASK)
    return System(name=name, model="embedding_transformer", task=TINY_TASK, parameters=7, seconds=60.0,
                         steps=np.array([4]), epochs=np.array([1.0]), validation_cost=np.array([score.cost]),
                         validation_loss=np.array([1.0]), train_loss=np.array([1.0]), best=0, counts=counts,
                         cost=score.cost, interval=score.interval,
                         class_costs={name: figures["cost"] for name, figures in score.classes.items()})


def counts(seed: int, misses: float, recordings: int = 40) -> np.ndarray:
    """Of ten segments a recording and class: some missed, the rest right."""
    missed = np.random.default_rng(seed).binomial(10, misses, (recordings, 3))
    zeros = np.zeros_like(missed)
    return np.stack([zeros, zeros, 10 - missed, missed], axis=-1)


def test_verdicts():
    good, same, bad = ([system(name, counts(seed, share)) for seed in seeds] for name, share, seeds in (
        ("good", 0.1, (1, 2)), ("same", 0.1, (3, 4)), ("bad", 0.4, (5, 6))))
    assert study.compare(good, bad).verdict == "better"
    assert study.compare(bad, good).verdict == "worse"
    assert study.compare(good, same).verdict == "no evidence"
    assert study.compare(good, bad).difference == pytest.approx(
        np.mean([run.cost for run in good]) - np.mean([run.cost for run in bad]))
    known = [dataclasses.replace(run, recordings="a") for run in good]
    assert study.compare(known, bad).verdict == "better"
    for other in (system("short", counts(1, 0.1, recordings=5)), dataclasses.replace(bad[0], recordings="b")):
        with pytest.raises(UserError, match="not evaluated on the same recordings"):
            study.compare(known, [other])


def test_what_an_interval_of_single_runs_covers():
    three = [system("A", counts(seed, share)) for seed, share in ((1, 0.05), (2, 0.1), (3, 0.2))]
    one = [system("B", counts(4, 0.4))]
    silent = [dataclasses.replace(one[0], model="naive")]
    assert study.compare(three, three).note == study.compare(three, silent).note == ""
    assert "spread of the other" in study.compare(one, three).note
    assert study.compare(one, one).note == study.compare(three[:1], silent).note == "recordings only"
    known, borrowed = (np.diff(study.compare(three, side).interval)[0] for side in (silent, one))
    assert known < borrowed


@pytest.mark.parametrize(("found", "published", "words"), [
    ("better", "better", "confirmed"), ("worse", "better", "contradicted"), ("no evidence", "better", "not confirmed"),
    ("no evidence", "no difference", "no contradiction"), ("better", "no difference", "contradicted"),
    ("better", "", ""),
])
def test_what_a_verdict_says_of_a_published_one(found, published, words):
    assert study.agreement(found, published) == words


def test_the_table_has_a_row_for_every_system():
    config = tiny_config()
    found = [study.Row("a", "A", "", "", (0, 1), config), study.Row("b", "B", "a", "better", (0, 1), config),
             study.Row("c", "C", "b", "worse", (0,), config)]
    runs = {"a": [system("A", counts(seed, 0.4)) for seed in (1, 2)], "b": [system("B", counts(3, 0.1))]}
    lines = study.table(found, runs, runs).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2][:6] == ["A", "", "", "", "", "7"]
    assert cells[3][:6] == ["B", "A", "better", "better", "confirmed", "7"]
    assert cells[3][-2].endswith("(one run, spread of the other's)")
    assert cells[4][:6] == ["C", "B", "", "worse", "not run", ""]
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", cells[2][7])
    assert cells[3][7] == f"{runs['b'][0].cost:.2f}"
    assert len({len(line) for line in cells}) == 1
    assert study.class_table(found, runs).count("\n") == 3
