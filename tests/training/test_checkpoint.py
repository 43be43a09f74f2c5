"""Checkpoints as whoever reads them has them: the best one, bit for bit, or an error, and nothing is changed."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from sedjax.core.errors import UserError
from sedjax.training import checkpoint
from sedjax.training.progress import Progress, is_finished, progress_path, saved_steps
from sedjax.training.train_state import TrainState

COSTS = {1: 9.0, 2: 3.0, 3: 5.0, 4: 4.0}


def state_at(step: int) -> TrainState:
    params = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4) + step, "bias": np.zeros(4, np.float32)}
    return TrainState(step=np.array(step, np.int32), params=params, ema=None, model_state={},
                      opt_state={"mu": jax.tree.map(lambda x: x / 7, params)})


def write_workdir(folder: pathlib.Path, costs: dict[int, float]) -> pathlib.Path:
    """A workdir with checkpoints of a finished training, and each evaluation in metrics.jsonl."""
    best = {}
    with checkpoint.open_manager(folder) as manager:
        for step, cost in costs.items():
            best = {step: cost} if cost < min(best.values(), default=np.inf) else best
            (best_step, best_cost), = best.items()
            checkpoint.save(manager, state_at(step), Progress(
                cost=cost, thresholds=(step / 10, 0.5), best_cost=best_cost, best_step=best_step,
                finished=step == max(costs)))
    lines = [{"step": step, "epoch": 1.0, "validation_loss": 1.0, "validation_cost": cost, "seconds": 1.0}
             for step, cost in costs.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """With checkpoints of the steps 2 (the best), 3 and 4."""
    return write_workdir(tmp_path_factory.mktemp("workdir") / "run", COSTS)


@pytest.fixture(scope="module")
def newest_is_best(tmp_path_factory):
    return write_workdir(tmp_path_factory.mktemp("workdir") / "run", {1: 5.0, 2: 4.0, 3: 3.0})


def content(folder: pathlib.Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def remove(path: pathlib.Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def copy(source: pathlib.Path, path: pathlib.Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)


def damages(path: pathlib.Path, donor: pathlib.Path):
    """Each damage of a file or folder: its name, and a function. `donor` is the same part of another checkpoint."""
    yield "deleted", lambda: remove(path)
    if path.is_dir():
        yield "emptied", lambda: (remove(path), path.mkdir())
        yield "a file", lambda: (remove(path), path.write_bytes(b"2"))
    else:
        yield "emptied", lambda: path.write_bytes(b"")
        yield "cut", lambda: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        yield "flipped", lambda: flip(path)
        yield "a folder", lambda: (remove(path), path.mkdir())
    if donor.exists():
        yield "swapped", lambda: (remove(path), copy(donor, path))


@pytest.mark.parametrize(("which", "step"), [("workdir", 2), ("workdir", 4), ("newest_is_best", 3)])
def test_the_best_is_the_best_or_an_error(which, step, request, tmp_path):
    """Whatever happened to anything in the best checkpoint, or in the newest, which says which one is the best."""
    folder = shutil.copytree(request.getfixturevalue(which), tmp_path / "run")
    expected, progress, best = checkpoint.load_weights(folder)
    top, other = (folder / "checkpoints" / name for name in (str(step), "3" if step != 3 else "2"))
    paths = [folder / "metrics.jsonl", top, *(path for path in sorted(top.rglob("*")) if "training" not in path.parts),
             top / "training"]
    if step != best:  # of the newest only the progress matters
        paths = [path for path in paths if path.is_dir() or path.parent.name == "progress"]
    outcomes = []
    for path in paths:
        donor = other / path.relative_to(top) if path.is_relative_to(top) else folder / "none"
        for name, damage in damages(path, donor):
            copy(path, tmp_path / "kept")
            damage()
            before = content(folder)
            try:
                weights, *others = checkpoint.load_weights(folder)
            except UserError:
                outcomes.append(False)
            else:
                outcomes.append(True)
                assert others == [progress, best], f"{path.name} {name}"
                jax.tree.map(np.testing.assert_array_equal, weights, expected)
            assert content(folder) == before, f"{path.name} {name}"
            remove(path)
            (tmp_path / "kept").rename(path)
    assert {True, False} == set(outcomes)


@pytest.mark.parametrize(("plant", "message"), [
    (lambda path: copy(path / "3", path / "9"), "step 9.* damaged"),
    (lambda path: copy(path / "3", path / "1"), None),
    (lambda path: (path / "9").write_text("x"), "step 9.* damaged"),
    (lambda path: (path / "9").mkdir(), "step 9.* damaged"),
    (lambda path: copy(path / "4", path / "04"), None),
    (lambda path: copy(path / "4", path / "4.orbax-checkpoint-tmp"), None)])
def test_what_was_put_beside_the_checkpoints_is_never_the_best(workdir, plant, message, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / "run")
    plant(folder / "checkpoints")
    if message is None:
        assert checkpoint.load_weights(folder)[2] == 2
    else:
        with pytest.raises(UserError, match=message):
            checkpoint.load_weights(folder)
        assert checkpoint.load_weights(folder, "last")[2] == 4
        with checkpoint.open_manager(folder) as manager:  # training goes on, and deletes nothing that is not its own
            assert checkpoint.restore(manager, state_at(0))[1].best_step == 2
        assert (folder / "damaged" / "9").exists()
    assert checkpoint.load_weights(folder, 2)[2] == 2


def change_progress(folder: pathlib.Path, of: int, **changes) -> None:
    path = progress_path(folder / "checkpoints", of)
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))


@pytest.mark.parametrize("changes", [
    {"thresholds": [0.2, 0.4]}, {"cost": 3.5}, {"step": 3}, {"best_step": 4}, {"digest": ...}, {"digest": None},
    {"checksums": {}}, {"checksums": {"weights": 1, "training": 1}}, {"finished": "yes"}, {"best_cost": None},
    {"thresholds": ["a"]}, {"step": ...}, {"cost": ..., "step": ..., "digest": ..., "best_step": ...},
    {"thresholds": [0.9, 0.9], "step": ..., "digest": ..., "best_step": ...}])
def test_a_changed_progress_is_damage(workdir, changes, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / "run")
    change_progress(folder, 2, **changes)
    with pytest.raises(UserError, match=r"'best'.*step 2.*damaged.*2, 3, 4"):
        checkpoint.load_weights(folder)


def test_checkpoints_of_older_versions(workdir, tmp_path):
    """Without digest, step and best step: the best is the first with the lowest cost, and still not another one."""
    folder = shutil.copytree(workdir, tmp_path / "run")
    for step in (2, 3, 4):
        change_progress(folder, step, digest=..., step=..., best_step=...)
        (folder / "checkpoints" / str(step) / "metrics").mkdir()
    assert is_finished(folder)
    assert checkpoint.load_weights(folder)[2] == 2
    with checkpoint.open_manager(folder) as manager:
        state, progress = checkpoint.restore(manager, state_at(0))
        assert (int(state.step), progress.best_step) == (4, 2)
        assert checkpoint.load_weights(folder)[2] == 2  # also between these two
        checkpoint.save(manager, state_at(5), progress)
    assert saved_steps(folder / "checkpoints") == [2, 4, 5]
    assert checkpoint.load_weights(folder)[2] == 2
    shutil.rmtree(folder / "checkpoints" / "2")
    with pytest.raises(UserError, match="step 2.*missing or damaged"):
        checkpoint.load_weights(folder)
    shutil.rmtree(folder / "checkpoints" / "5")
    with pytest.raises(UserError, match=r"best checkpoint .* 3\.000, is missing or damaged"):
        checkpoint.load_weights(folder)


def test_training_sets_aside_what_is_damaged_and_deletes_no_best(newest_is_best, tmp_path):
    """It resumes from the checkpoint before; an earlier step that was set aside under the same number stays."""
    folder = shutil.copytree(newest_is_best, tmp_path / "run")
    for damaged in ("3", "3.1"):
        remove(folder / "checkpoints" / "3" / "progress")
        before = content(folder / "checkpoints" / "2")
        with checkpoint.open_manager(folder) as manager:
            state, progress = checkpoint.restore(manager, state_at(0))
            assert (int(state.step), progress.best_step) == (2, 2)
            assert content(folder / "checkpoints" / "2") == before
            checkpoint.save(manager, state_at(3), progress)
        assert (folder / "damaged" / damaged / "weights").is_dir()


def test_a_kill_while_deleting_leaves_no_half_of_a_checkpoint(workdir, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / "run")
    checkpoints = folder / "checkpoints"
    (checkpoints / "3").rename(checkpoints / f"3{checkpoint.DELETED}")
    assert checkpoint.load_weights(folder)[2] == 2
    with checkpoint.open_manager(folder) as manager:
        assert checkpoint.restore(manager, state_at(0))[1].finished
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4"]


def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, monkeypatch):
    """In parameters and in what the optimizer keeps; a version that did save them is refused."""
    bad = state_at(2)
    bad.params["bias"][1] = np.inf
    worse = state_at(2)
    worse.opt_state["mu"]["kernel"][0] = np.nan
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, state_at(1), Progress())
        for state in (bad, worse):
            with pytest.raises(UserError, match="NaN or infinite at step 2; the last good checkpoint .* step 1 "):
                checkpoint.save(manager, state, Progress())
        manager.start(2, Progress(), {"weights": bad.eval_variables, "training": checkpoint._training(bad)})
    for which in ("best", "last", 2):
        with pytest.raises(UserError, match="step 2 .* NaN or infinity"):
            checkpoint.load_weights(tmp_path, which)
    with checkpoint.open_manager(tmp_path) as manager, pytest.raises(UserError, match="step 2 .* NaN or infinity"):
        checkpoint.restore(manager, state_at(0))


def test_a_model_without_parameters(tmp_path):
    """Its empty tree of parameters is in the checkpoint, but not among the variables of the model."""
    state = TrainState(step=np.zeros((), np.int32), params={}, ema=None, opt_state={},
                       model_state={"statistics": {"mean": np.ones(3, np.float32)}})
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, state, Progress(finished=True))
    shapes = jax.eval_shape(lambda: state.model_state)
    found, _, step = checkpoint.load_weights(tmp_path, "best", shapes)
    assert (step, found["statistics"]["mean"].tolist()) == (0, [1, 1, 1])
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.restore(manager, state)[1].finished


def test_weights_of_another_model_and_unknown_steps(workdir):
    shapes = jax.eval_shape(lambda: state_at(0).eval_variables)
    assert checkpoint.load_weights(workdir, 3, shapes)[2] == 3
    for change, words in (({"bias": jax.ShapeDtypeStruct((5,), np.float32)}, r"params/bias is \(4,\) there and \(5,\)"),
                          ({"other": shapes["params"]["bias"]}, "params/other is missing there")):
        with pytest.raises(UserError, match=words):
            checkpoint.load_weights(workdir, "last", {"params": {**shapes["params"], **change}})
    for which in (612, "612", "", "2.0", "worst"):
        with pytest.raises(UserError, match=f"no checkpoint {which} in .* 2, 3, 4"):
            checkpoint.load_weights(workdir, which)
