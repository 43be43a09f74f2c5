"""Checkpoints with Orbax: the last two and the best, with weights that can be read on their own.

The progress of the newest checkpoint is the only record of which one is the best: the step with the lowest validation
cost so far. "best" loads the checkpoint of exactly that step, unchanged since it was saved, or raises an error. It is
an error if the newest progress is unreadable, if metrics.jsonl has a lower cost (so the newest checkpoint is missing),
or if the best checkpoint is missing or damaged. Before the first evaluation, the newest is the best.

A checkpoint is intact if its progress matches its own digest and the step in its folder's name, and its arrays match
the checksums in its progress. Checkpoints of older versions have only the checksums of arrays; a run that resumes from
them adds the step and the digest to the best.

A folder is named after its step only while it is complete: it is renamed after it is written, and before it is deleted.
So a kill never leaves an incomplete one: one that is incomplete was damaged later. Only training changes anything here.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.core.files import make_folder, write_json
from sedjax.training.progress import (
    UNFINISHED,
    Damaged,
    Progress,
    add_digest,
    find_best,
    is_best,
    listed,
    otherwise,
    progress_path,
    read_progress,
    read_record,
    reason_of,
    record_of,
    saved_steps,
    step_of_cost,
)
from sedjax.training.train_state import TrainState, trained_variables

log = logging.getLogger("sedjax")
DELETED = ".deleted"


class Manager:
    """Saves and deletes the checkpoints of a workdir during training.

    Attributes:
      directory: folder of the checkpoints.
      steps: steps that have a checkpoint, in ascending order.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory, self.steps = directory, saved_steps(directory)
        self._saved: Progress | None = None
        _ignore_abandoned_tasks()
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(
            weights=ocp.StandardCheckpointHandler(), training=ocp.StandardCheckpointHandler(),
            progress=ocp.JsonCheckpointHandler()))

    def latest_step(self) -> int | None:
        return max(self.steps, default=None)

    def start(self, step: int, progress: Progress, items: dict) -> None:
        """Starts saving. If the step is already saved, only its progress is replaced."""
        record = record_of(step, progress, {name: int(_summary(tree)[0]) for name, tree in items.items()})
        if step in self.steps:
            path = progress_path(self.directory, step)
            parallel.on_process_zero(lambda: write_json(path, record, ours=True, durable=True))
        else:
            trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            self._checkpointer.save(self.directory / str(step), args=ocp.args.Composite(
                progress=ocp.args.JsonSave(record), **trees))
            self.steps.append(step)
        self._saved = progress

    def wait_until_finished(self) -> None:
        """Waits until the save in progress is complete, then deletes all but the last two and the best."""
        self._checkpointer.wait_until_finished()
        if self._saved is None:
            return
        for step in [step for step in self.steps[:-2] if step != self._saved.best_step]:
            self.steps.remove(step)
            if parallel.is_process_zero():
                with contextlib.suppress(Damaged):  # keeps anything that sedjax did not write
                    read_progress(self.directory, step)
                    _delete(self.directory / str(step))

    def close(self) -> None:
        self.wait_until_finished()
        self._checkpointer.close()


@contextlib.contextmanager
def open_manager(workdir: str | os.PathLike) -> Iterator[Manager]:
    """The manager of a workdir's checkpoints; removes what an interrupted save or deletion left behind."""
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    parallel.on_process_zero(lambda: _sweep(directory))
    manager = Manager(directory)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: Manager, state: TrainState, progress: Progress) -> None:
    """Starts saving; a checkpoint counts only once it is complete.

    If the step is already saved (a stop interrupted its evaluation), only its progress is replaced.

    Raises UserError if the state is not finite, or the disk is full.
    """
    manager.wait_until_finished()
    step = int(state.step)
    with parallel.all_or_none():
        _require_space(manager, step, state)
    items = {"weights": state.eval_variables, "training": _training(state)}
    if not all(_summary(tree)[1] for tree in items.values()):
        raise diverged("training state", step, manager)
    manager.start(step, progress, items)


def diverged(what: str, step: int, manager: Manager) -> UserError:
    """The error for a value that is not finite. Saved checkpoints are always finite."""
    last = manager.latest_step()
    good = "no good checkpoint yet" if last is None else f"the last good checkpoint is that of step {last}"
    return UserError(f"The {what} became NaN or infinite at step {step}; {good} in {manager.directory.parent}: lower "
                     "optimizer.learning_rate or set optimizer.clip_norm, and start in a new workdir.")


def restore(manager: Manager, state: TrainState) -> tuple[TrainState, Progress] | None:
    """The last intact checkpoint, with the shapes of `state` and on its devices; None if there are no checkpoints.

    A damaged one is set aside with a warning, and the previous one is tried.

    Raises UserError if the checkpoint belongs to another model, or if all are damaged.
    """
    directory, steps = manager.directory, manager.steps[::-1]
    for step in steps:
        targets = {"weights": _abstract(state.eval_variables), "training": _abstract(_training(state))}
        try:
            items, progress = _read(directory, step, targets, targets["weights"])
        except Damaged as error:
            log.warning("The checkpoint of step %d in %s is damaged (%s): resuming from the previous one.", step,
                        directory, error)
            parallel.on_process_zero(lambda step=step: _set_aside(directory, step))
            manager.steps.remove(step)
            continue
        if progress.best_step is None and progress.best_cost is not None:
            best = step_of_cost(directory, progress.best_cost)
            progress = dataclasses.replace(progress, best_step=best)
            if best is not None:
                parallel.on_process_zero(lambda best=best: add_digest(directory, best))
        weights, training = items["weights"], items["training"]
        average = {name: weights[name] for name in state.ema} if state.ema else None
        model_state = {**weights, **training.get("learned", {})}
        params = model_state.pop("params")
        return TrainState(training["step"], params, average, model_state, training["opt_state"]), progress
    if steps:
        raise UserError(f"All checkpoints in {directory} were damaged: start in a new workdir.")
    return None


def load_weights(workdir: str | os.PathLike, which: str | int = "best",
                 shapes: dict | None = None) -> tuple[dict, Progress, int]:
    """The variables to predict with, as numpy arrays, with the progress and the step.

    Args:
      workdir: workdir of a training run.
      which: "best" (lowest validation cost), "last", or a step. If the last is damaged, the previous one is loaded
        with a warning.
      shapes: tree of the shapes that the model's variables have; None accepts those of the checkpoint.

    Raises:
      UserError: the checkpoint does not exist, is damaged or not finite, or belongs to another model.
    """
    directory = require_some(workdir)
    steps = saved_steps(directory)
    newest = None
    if which == "best":
        best, newest = find_best(pathlib.Path(workdir))
        candidates = [best]
    elif which == "last":
        candidates = steps[::-1]
    else:
        candidates = [step for step in steps if str(step) == str(which)]
    if not candidates:
        raise UserError(f"There is no checkpoint {which} in {workdir}; choose one of {listed(steps)}.")
    for step in candidates:
        try:
            items, progress = _read(directory, step, {"weights": None}, shapes)
            if newest and not is_best(progress, newest):
                raise Damaged("its progress is not that of the best checkpoint")
            return items["weights"], progress, step
        except Damaged as error:
            log.warning("The checkpoint of step %d in %s is damaged (%s).", step, workdir, error)
    raise UserError(f"The checkpoint {which!r} in {workdir} (step {candidates[0]}) is missing or damaged: "
                    f"{otherwise(steps)}")


def require_some(workdir: str | os.PathLike) -> pathlib.Path:
    """The folder of a workdir's checkpoints. Raises UserError if it has none."""
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    if not saved_steps(directory):
        raise UserError(f"There are no checkpoints in {workdir}: train with --workdir={workdir} first.")
    return directory


def _read(directory: pathlib.Path, step: int, targets: dict[str, Any],
          shapes: dict | None = None) -> tuple[dict, Progress]:
    """Items of a checkpoint, with its progress.

    Args:
      directory: folder of the checkpoints.
      step: step of the checkpoint.
      targets: for each item, jax.ShapeDtypeStructs of its arrays with their devices; None for numpy arrays.
      shapes: expected shapes of the weights, if known.

    Raises:
      Damaged: the checkpoint is unreadable, or differs from what was saved.
      UserError: the weights belong to another model, or a value is not finite.
    """
    folder = directory / str(step)
    if special := next((path for path in folder.rglob("*") if not (path.is_file() or path.is_dir())), None):
        raise Damaged(f"{special.relative_to(folder)} is not a file")  # TensorStore would wait for a pipe
    progress, checksums = read_record(directory, step)
    items = {}
    for name, tree in targets.items():
        path = folder / name
        stored = _shapes(path)
        if name == "weights" and shapes is not None and (difference := _difference(stored, shapes)):
            raise UserError(f"The checkpoint of step {step} in {directory} does not match the model in config.json: "
                            f"{difference}; use another --workdir.")
        tree = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored) if tree is None else tree
        items[name] = _from_disk(lambda handler, path=path, tree=tree: handler.restore(
            path, args=ocp.args.StandardRestore(tree)))
        checksum, finite = _summary(items[name])
        if name in checksums and checksums[name] != int(checksum):
            raise Damaged(f"the checksum of {name} does not match")
        if not finite:
            raise UserError(f"The checkpoint of step {step} in {directory} contains NaN or infinity: training "
                            "diverged; choose another checkpoint, or train in a new workdir.")
    return items, progress


@functools.cache
def _ignore_abandoned_tasks() -> None:
    """Hides the tracebacks, late ones included, that a damaged checkpoint or a full disk causes.

    When Orbax fails to read or write an array, it closes its event loop while others are in progress; each of those
    then raises an exception that cannot be caught.
    """
    report, report_uncaught = sys.unraisablehook, sys.excepthook

    def is_closed_loop(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def hook(event):
        if not is_closed_loop(event.exc_value):
            report(event)

    def uncaught(kind, error, trace):  # TensorStore's threads print theirs as uncaught
        if not is_closed_loop(error):
            report_uncaught(kind, error, trace)

    def shows(record: logging.LogRecord) -> bool:
        return not ((record.exc_info and is_closed_loop(record.exc_info[1]))
                    or record.getMessage().startswith("Task was destroyed but it is pending"))

    sys.unraisablehook, sys.excepthook = hook, uncaught
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).addFilter(shows)


def _from_disk(read):
    """The result of `read(handler)` with an Orbax array handler. Raises Damaged."""
    _ignore_abandoned_tasks()
    try:
        # TensorStore's threads fill a screen of standard error for each damaged file.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return read(handler)
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax, TensorStore and json raise many types
        raise Damaged(reason_of(error)) from error


def _shapes(path: pathlib.Path) -> dict:
    """Shapes and dtypes of the arrays of an item, as a tree. Raises Damaged."""
    def read(handler: ocp.StandardCheckpointHandler) -> dict:
        metadata = handler.metadata(path)
        metadata = metadata.tree if hasattr(metadata, "tree") else metadata
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata)

    return _from_disk(read)


def _difference(stored: dict, expected: dict) -> str:
    """Describes the first array by name that only one tree has, or whose shapes differ; "" if there is none."""
    shapes = [{"/".join(str(key.key) for key in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
              for tree in (stored, expected)]
    names = [name for name in sorted(shapes[0].keys() | shapes[1].keys()) if shapes[0].get(name) != shapes[1].get(name)]
    if not names:
        return ""
    there, here = (by_name.get(names[0], "missing") for by_name in shapes)
    return f"{names[0]} is {there} there and {here} in the model"


def _require_space(manager: Manager, step: int, state: TrainState) -> None:
    needed, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(manager.directory).free
    if free < needed:
        raise UserError(f"The disk is full: the checkpoint of step {step} takes {needed / 1e6:,.1f} MB, but only "
                        f"{free / 1e6:,.1f} MB are free in {manager.directory}; free some space and start again"
                        + (", earlier checkpoints are intact." if manager.latest_step() is not None else "."))


def _sweep(directory: pathlib.Path) -> None:
    """Creates the folder, and removes what an interrupted save or deletion left in it."""
    make_folder(directory)
    for path in (*directory.glob(f"*{UNFINISHED}*"), *directory.glob(f"*{DELETED}")):
        shutil.rmtree(path, ignore_errors=True)


def _delete(path: pathlib.Path) -> None:
    renamed = path.with_name(path.name + DELETED)
    path.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def _set_aside(directory: pathlib.Path, step: int) -> None:
    """Moves a checkpoint to `damaged` in the workdir, so that the step can be saved again."""
    damaged = make_folder(directory.parent / "damaged")
    names = (f"{step}{suffix}" for suffix in ("", *(f".{i}" for i in range(1, 1000))))
    target = next(damaged / name for name in names if not os.path.lexists(damaged / name))
    (directory / str(step)).rename(target)


@jax.jit
def _summary(tree) -> tuple[Array, Array]:
    """A checksum over every word of every array, to detect corruption on disk, and whether all values are finite."""
    total, finite = jnp.uint32(0), jnp.bool_(True)
    for leaf in jax.tree.leaves(tree):
        words = jax.lax.bitcast_convert_type(leaf.reshape(-1), f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        total = total * np.uint32(31) + (words * (2 * jax.lax.iota(jnp.uint32, words.size) + 1)).sum(dtype=jnp.uint32)
        finite &= jnp.isfinite(leaf).all()
    return total, finite


def _training(state: TrainState) -> dict:
    """The state that only training needs. Without an average, the weights already hold the trained variables."""
    tree = {"step": state.step, "opt_state": state.opt_state}
    return tree if state.ema is None else {**tree, "learned": trained_variables(state.params, state.model_state)}


def _abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


