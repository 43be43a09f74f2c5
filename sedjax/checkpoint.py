"""Checkpoints with Orbax: the last and the best, weights that can be read on their own."""

import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import pathlib
import shutil
import textwrap
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array
from orbax.checkpoint import checkpoint_managers

from sedjax import parallel
from sedjax.errors import UserError
from sedjax.train_state import TrainState, learned

log = logging.getLogger("sedjax")
UNFINISHED = ".orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class Progress:
    """What training knows besides the state, at one checkpoint.

    Attributes:
      cost: validation cost at this step, None where it was not evaluated.
      thresholds: of each class, chosen with that evaluation.
      best_cost: the lowest so far.
      evaluations_since_best: for early stopping.
      finished: nothing is left to train.
      evaluation_due: a stop cut off the evaluation of this step, so that it must be done before the next.
    """

    cost: float | None = None
    thresholds: tuple[float, ...] = ()
    best_cost: float | None = None
    evaluations_since_best: int = 0
    finished: bool = False
    evaluation_due: bool = False


def without_cost(progress: Progress) -> Progress:
    """The progress of a checkpoint between two evaluations."""
    return dataclasses.replace(progress, cost=None)


def open_manager(workdir: str | os.PathLike, clean: bool = False) -> ocp.CheckpointManager:
    """The checkpoints of a workdir: the last two, and the one with the lowest validation cost.

    With `clean`, as only the training itself may, what a save or a deletion that was cut off has left is removed.
    """
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    parallel.on_first(lambda: _sweep(directory, clean))
    best = checkpoint_managers.BestN(get_metric_fn=lambda metrics: -metrics["cost"], n=1)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best]),
        best_fn=lambda metrics: metrics["cost"], best_mode="min")
    handlers = {"weights": ocp.StandardCheckpointHandler(), "training": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def save(manager: ocp.CheckpointManager, state: TrainState, progress: Progress) -> None:
    """Starts saving; a checkpoint counts only once it is whole. One of the same step is replaced.

    Raises UserError if the disk has no room for it.
    """
    manager.wait_until_finished()
    step, last = int(state.step), manager.latest_step()
    with parallel.together():
        _require_space(manager, step, state)
    if step == last:  # it was saved when a stop cut off its evaluation, which has been done by now
        manager.delete(step)
    # Only an improvement competes for the best, so that of equal costs the first stays.
    improved = progress.cost is not None and progress.evaluations_since_best == 0
    metrics = {"cost": progress.cost if improved else math.inf}
    items = {"weights": state.weights, "training": _training(state)}
    sums = {name: int(_checksum(tree)) for name, tree in items.items()}
    manager.save(step, metrics=metrics, args=ocp.args.Composite(
        progress=ocp.args.JsonSave({**dataclasses.asdict(progress), "checksums": sums}),
        **{name: ocp.args.StandardSave(tree) for name, tree in items.items()}))


def restore(manager: ocp.CheckpointManager, state: TrainState) -> tuple[TrainState, Progress] | None:
    """The last whole checkpoint, on the devices of `state` and with its shapes; None if there is none.

    A damaged one is set aside with a warning, and the one before it is taken.

    Raises UserError if the checkpoint is not of this model, or if all are damaged.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        items = {"weights": _abstract(state.weights), "training": _abstract(_training(state))}
        try:
            found, progress = _read(manager, step, items)
        except _Damaged as error:
            _require_same_shapes(manager, step, items, error)
            log.warning("The checkpoint of step %d in %s is damaged (%s): going on from the one before it.", step,
                        manager.directory, error)
            parallel.on_first(lambda step=step: _set_aside(pathlib.Path(manager.directory), [step]))
            manager.reload()
            continue
        weights, training = found["weights"], found["training"]
        average = {name: weights[name] for name in state.ema} if state.ema else None
        model_state = {**weights, **training.get("learned", {})}
        params = model_state.pop("params")
        return TrainState(training["step"], params, average, model_state, training["opt_state"]), progress
    if steps:
        raise UserError(f"Every checkpoint in {manager.directory} was damaged: start in a new workdir.")
    return None


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether the training in a workdir, if there is one, has ended."""
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        return False
    with open_manager(workdir) as manager:
        step = manager.latest_step()
        if step is None:
            return False
        try:
            return _read(manager, step, {})[1].finished
        except _Damaged:
            return False


def load_weights(workdir: str | os.PathLike, which: str = "best") -> tuple[dict, Progress, int]:
    """The variables to predict with, as numpy arrays, with progress and step.

    Args:
      workdir: of a training.
      which: "best" (lowest validation cost), "last", or a step. If the last is damaged, the one before it is taken,
        with a warning.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    require_some(workdir)
    with open_manager(workdir) as manager:
        steps = {str(step): step for step in sorted(manager.all_steps(), reverse=True)}
        chosen = {"best": manager.best_step(), "last": manager.latest_step(), **steps}.get(which)
        if chosen is None:
            raise UserError(f"There is no checkpoint {which!r} in {workdir}; there are {sorted(steps)}.")
        for step in steps.values() if which == "last" else (chosen,):
            try:
                shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _shapes(manager, step)["weights"])
                found, progress = _read(manager, step, {"weights": shapes})
                return found["weights"], progress, step
            except _Damaged as error:
                log.warning("The checkpoint of step %d in %s is damaged (%s).", step, workdir, error)
        raise UserError(f"The checkpoint {which!r} in {workdir} is damaged: choose another with --checkpoint "
                        f"(there are {sorted(steps.values())}), or train on.")


def require_some(workdir: str | os.PathLike) -> None:
    """Raises UserError if a workdir has no checkpoints."""
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"There are no checkpoints in {workdir}: train with --workdir={workdir} first.")


class _Damaged(Exception):
    """A checkpoint cannot be read, or is not what was saved."""


def _read(manager: ocp.CheckpointManager, step: int, items: dict) -> tuple[dict, Progress]:
    """Items of a checkpoint, with its progress. Raises _Damaged."""
    args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
    try:
        # What TensorStore's threads write to standard error about a damaged file fills a screen.
        with contextlib.redirect_stderr(io.StringIO()):
            found = manager.restore(step, args=ocp.args.Composite(**args, progress=ocp.args.JsonRestore()))
        fields = dict(found["progress"])
        sums = fields.pop("checksums", {})
        progress = Progress(**{**fields, "thresholds": tuple(fields["thresholds"])})
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax, TensorStore and json raise many kinds
        raise _Damaged(_reason(error)) from error
    for name in items:
        if name in sums and sums[name] != int(_checksum(found[name])):
            raise _Damaged(f"{name} are not what was saved")
    return {name: found[name] for name in items}, progress


def _require_same_shapes(manager: ocp.CheckpointManager, step: int, items: dict, error: Exception) -> None:
    """Raises UserError if a checkpoint can be read but is of another model than the items wanted."""
    try:
        found = _shapes(manager, step)
    except _Damaged:
        return
    for name, tree in items.items():
        shapes, wanted = (sorted(x.shape for x in jax.tree.leaves(which)) for which in (found[name], tree))
        if shapes != wanted:
            raise UserError(f"The checkpoint at step {step} in {manager.directory} is not of this model and config: "
                            f"use another --workdir ({error}).") from error


def _shapes(manager: ocp.CheckpointManager, step: int) -> dict:
    try:
        found = manager.item_metadata(step)
        return {name: found[name].tree if hasattr(found[name], "tree") else found[name]
                for name in ("weights", "training")}
    except Exception as error:  # as in _read
        raise _Damaged(_reason(error)) from error


def _require_space(manager: ocp.CheckpointManager, step: int, state: TrainState) -> None:
    needed, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(manager.directory).free
    if free < needed:
        raise UserError(f"The disk is full: the checkpoint of step {step} takes {needed / 1e6:,.1f} MB, and "
                        f"{free / 1e6:,.1f} MB are free in {manager.directory}; make room and start again"
                        + (", the checkpoints before it are whole." if manager.latest_step() is not None else "."))


def _sweep(directory: pathlib.Path, clean: bool) -> None:
    """Sets aside checkpoints with unreadable metrics, with which Orbax opens none of the others.

    With `clean` also removes what a save or a deletion that was cut off has left.
    """
    lost, damaged = [], []
    steps = sorted(int(path.name) for path in directory.glob("[0-9]*") if path.name.isdigit())
    for step in steps:
        try:
            json.loads((directory / str(step) / "metrics" / "metrics").read_text())["cost"]
        except (FileNotFoundError, NotADirectoryError):
            lost.append(step)
        except (ValueError, KeyError, TypeError):
            damaged.append(step)
    if clean:
        # Orbax deletes a checkpoint file by file, once there is a newer one; so the newest was not being deleted.
        damaged += [step for step in lost if step == steps[-1]]
        remains = [directory / str(step) for step in lost if step != steps[-1]]
        for path in (*remains, *directory.glob(f"*{UNFINISHED}")):
            shutil.rmtree(path, ignore_errors=True)
    if damaged:
        log.warning("The checkpoints of steps %s in %s are damaged: they are set aside.", sorted(damaged), directory)
        _set_aside(directory, damaged)


def _set_aside(directory: pathlib.Path, steps: Sequence[int]) -> None:
    """Moves checkpoints to `damaged` beside their folder, so that the step can be saved again."""
    aside = directory.parent / "damaged"
    aside.mkdir(exist_ok=True)
    for step in steps:
        shutil.rmtree(aside / str(step), ignore_errors=True)
        (directory / str(step)).rename(aside / str(step))


@jax.jit
def _checksum(tree) -> Array:
    """A number that changes with any word of any array, so that what a disk has lost is not taken for weights."""
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        words = jax.lax.bitcast_convert_type(leaf.reshape(-1), f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        total = total * np.uint32(31) + (words * (2 * jax.lax.iota(jnp.uint32, words.size) + 1)).sum(dtype=jnp.uint32)
    return total


def _training(state: TrainState) -> dict:
    """What only training needs. Without an average, what is learned is among the weights already."""
    tree = {"step": state.step, "opt_state": state.opt_state}
    return tree if state.ema is None else {**tree, "learned": learned(state.params, state.model_state)}


def _abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _reason(error: Exception) -> str:
    """The beginning of an error's text; TensorStore's go on for a page."""
    return textwrap.shorten(str(error).strip(), 100, placeholder=" ...") or type(error).__name__
