"""Checkpoints with Orbax: the last and the best, weights that can be read on their own."""

import dataclasses
import math
import os
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sedjax.errors import UserError
from sedjax.train_state import TrainState, learned


@dataclasses.dataclass(frozen=True)
class Progress:
    """What training knows besides the state, at one checkpoint.

    Attributes:
      cost: validation cost at this step, None where it was not evaluated.
      thresholds: of each class, chosen with that evaluation.
      best_cost: the lowest so far.
      evaluations_since_best: for early stopping.
      finished: nothing is left to train.
    """

    cost: float | None = None
    thresholds: tuple[float, ...] = ()
    best_cost: float | None = None
    evaluations_since_best: int = 0
    finished: bool = False


def without_cost(progress: Progress) -> Progress:
    """The progress of a checkpoint between two evaluations."""
    return dataclasses.replace(progress, cost=None)


def open_manager(workdir: str | os.PathLike) -> ocp.CheckpointManager:
    """The checkpoints of a workdir: the last two, and the one with the lowest validation cost."""
    best = checkpoint_managers.BestN(get_metric_fn=lambda metrics: -metrics["cost"], n=1)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best]),
        best_fn=lambda metrics: metrics["cost"], best_mode="min")
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    handlers = {"weights": ocp.StandardCheckpointHandler(), "training": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def save(manager: ocp.CheckpointManager, state: TrainState, progress: Progress) -> None:
    """Starts saving; a checkpoint counts only once it is whole."""
    # Only an improvement competes for the best, so that of equal costs the first stays.
    improved = progress.cost is not None and progress.evaluations_since_best == 0
    metrics = {"cost": progress.cost if improved else math.inf}
    manager.save(int(state.step), metrics=metrics, args=ocp.args.Composite(
        weights=ocp.args.StandardSave(state.weights), training=ocp.args.StandardSave(_training(state)),
        progress=ocp.args.JsonSave(dataclasses.asdict(progress))))


def restore(manager: ocp.CheckpointManager, state: TrainState) -> tuple[TrainState, Progress] | None:
    """The last checkpoint, on the devices of `state` and with its shapes; None if there is none.

    Raises UserError if the checkpoint is not of this model.
    """
    step = manager.latest_step()
    if step is None:
        return None
    try:
        found = manager.restore(step, args=ocp.args.Composite(
            weights=ocp.args.StandardRestore(_abstract(state.weights)),
            training=ocp.args.StandardRestore(_abstract(_training(state))), progress=ocp.args.JsonRestore()))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The checkpoint at step {step} in {manager.directory} is not of this model and config: "
                        f"use another --workdir ({_first_line(error)}).") from error
    weights, training = found["weights"], found["training"]
    average = {name: weights[name] for name in state.ema} if state.ema else None
    model_state = {**weights, **training.get("learned", {})}
    params = model_state.pop("params")
    restored = TrainState(training["step"], params, average, model_state, training["opt_state"])
    return restored, _progress(found["progress"])


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether the training in a workdir, if there is one, has ended."""
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        return False
    with open_manager(workdir) as manager:
        step = manager.latest_step()
        if step is None:
            return False
        found = manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
    return _progress(found["progress"]).finished


def load_weights(workdir: str | os.PathLike, which: str = "best") -> tuple[dict, Progress, int]:
    """The variables to predict with, as numpy arrays, with progress and step.

    Args:
      workdir: of a training.
      which: "best" (lowest validation cost), "last", or a step.

    Raises:
      UserError: there is no such checkpoint.
    """
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"There are no checkpoints in {workdir}: train with --workdir={workdir} first.")
    with open_manager(workdir) as manager:
        steps = {str(step): step for step in manager.all_steps()}
        step = {"best": manager.best_step(), "last": manager.latest_step(), **steps}.get(which)
        if step is None:
            raise UserError(f"There is no checkpoint {which!r} in {workdir}; there are {sorted(steps)}.")
        shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), manager.item_metadata(step)["weights"])
        found = manager.restore(step, args=ocp.args.Composite(
            weights=ocp.args.StandardRestore(shapes), progress=ocp.args.JsonRestore()))
    return found["weights"], _progress(found["progress"]), step


def _training(state: TrainState) -> dict:
    """What only training needs. Without an average, what is learned is among the weights already."""
    tree = {"step": state.step, "opt_state": state.opt_state}
    return tree if state.ema is None else {**tree, "learned": learned(state.params, state.model_state)}


def _abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _progress(fields: dict) -> Progress:
    return Progress(**{**fields, "thresholds": tuple(fields["thresholds"])})


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
