"""Checkpoints with Orbax: the last two and the best, weights that can be read on their own.

Which one is the best is said in one place, the progress of the newest checkpoint: the step whose validation cost was
the lowest until then. "best" is the checkpoint of that step, as it was saved, or an error, and never another one. It is
an error if the newest progress cannot be read, if metrics.jsonl has a lower cost (so that the newest checkpoint is
gone), or if the best checkpoint is missing or damaged. Where nothing has been evaluated yet, the newest is the best.

A checkpoint is as it was saved if its progress has the digest that is in it and the step that its folder is called, and
its arrays have the checksums that are in its progress. Checkpoints of older versions have checksums of arrays only; a
training that resumes from one adds the rest to the best.

A folder is called by its step only while it is whole: it is renamed once it is written, and before it is deleted. So a
kill at any moment leaves none that is not, and what is not whole has been damaged. Only training changes anything here.
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
    """The checkpoints of a workdir as its training has them.

    Attributes:
      directory: of the checkpoints.
      steps: of which there is one, in ascending order.
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
        """Starts saving. Of a step that is saved already only the progress is replaced."""
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
        """Waits until what was started is whole, then deletes all but the last two and the best."""
        self._checkpointer.wait_until_finished()
        if self._saved is None:
            return
        for step in [step for step in self.steps[:-2] if step != self._saved.best_step]:
            self.steps.remove(step)
            if parallel.is_process_zero():
                with contextlib.suppress(Damaged):  # what sedjax did not write stays
                    read_progress(self.directory, step)
                    _delete(self.directory / str(step))

    def close(self) -> None:
        self.wait_until_finished()
        self._checkpointer.close()


@contextlib.contextmanager
def open_manager(workdir: str | os.PathLike) -> Iterator[Manager]:
    """The checkpoints of a workdir, for its training: what an interrupted save or deletion has left is removed."""
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    parallel.on_process_zero(lambda: _sweep(directory))
    manager = Manager(directory)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: Manager, state: TrainState, progress: Progress) -> None:
    """Starts saving; a checkpoint counts only once it is whole.

    Of a step that is saved already only the progress is replaced: a stop had interrupted its evaluation.

    Raises UserError if the state is not finite, or the disk has no room for it.
    """
    manager.wait_until_finished()
    step = int(state.step)
    with parallel.all_or_none():
        _require_space(manager, step, state)
    items = {"weights": state.eval_variables, "training": _training(state)}
    if not all(_summary(tree)[1] for tree in items.values()):
        raise diverged("state of the training", step, manager)
    manager.start(step, progress, items)


def diverged(what: str, step: int, manager: Manager) -> UserError:
    """What to say of a number that is not finite. What is saved is finite."""
    last = manager.latest_step()
    return UserError(f"The {what} became NaN or infinite at step {step}; the last good checkpoint in "
                     f"{manager.directory.parent} is {'none yet' if last is None else f'that of step {last}'}: lower "
                     "optimizer.learning_rate or set optimizer.clip_norm, and start in a new workdir.")


def restore(manager: Manager, state: TrainState) -> tuple[TrainState, Progress] | None:
    """The last whole checkpoint, on the devices of `state` and with its shapes; None if there is none.

    A damaged one is set aside with a warning, and the one before it is taken.

    Raises UserError if the checkpoint is not of this model, or if all are damaged.
    """
    directory, steps = manager.directory, manager.steps[::-1]
    for step in steps:
        wanted = {"weights": _abstract(state.eval_variables), "training": _abstract(_training(state))}
        try:
            found, progress = _read(directory, step, wanted, wanted["weights"])
        except Damaged as error:
            log.warning("The checkpoint of step %d in %s is damaged (%s): resuming from the one before it.", step,
                        directory, error)
            parallel.on_process_zero(lambda step=step: _set_aside(directory, step))
            manager.steps.remove(step)
            continue
        if progress.best_step is None and progress.best_cost is not None:
            best = step_of_cost(directory, progress.best_cost)
            progress = dataclasses.replace(progress, best_step=best)
            if best is not None:
                parallel.on_process_zero(lambda best=best: add_digest(directory, best))
        weights, training = found["weights"], found["training"]
        average = {name: weights[name] for name in state.ema} if state.ema else None
        model_state = {**weights, **training.get("learned", {})}
        params = model_state.pop("params")
        return TrainState(training["step"], params, average, model_state, training["opt_state"]), progress
    if steps:
        raise UserError(f"Every checkpoint in {directory} was damaged: start in a new workdir.")
    return None


def load_weights(workdir: str | os.PathLike, which: str | int = "best",
                 shapes: dict | None = None) -> tuple[dict, Progress, int]:
    """The variables to predict with, as numpy arrays, with progress and step.

    Args:
      workdir: of a training.
      which: "best" (lowest validation cost), "last", or a step. If the last is damaged, the one before it is taken,
        with a warning.
      shapes: those of the model's variables, as a tree; those of the checkpoint if None.

    Raises:
      UserError: there is no such checkpoint, it is damaged or not finite, or it is of another model.
    """
    directory = require_some(workdir)
    steps = saved_steps(directory)
    newest = None
    if which == "best":
        best, newest = find_best(pathlib.Path(workdir))
        chosen = [best]
    elif which == "last":
        chosen = steps[::-1]
    else:
        chosen = [step for step in steps if str(step) == str(which)]
    if not chosen:
        raise UserError(f"There is no checkpoint {which} in {workdir}; there are {listed(steps)}.")
    for step in chosen:
        try:
            found, progress = _read(directory, step, {"weights": None}, shapes)
            if newest and not is_best(progress, newest):
                raise Damaged("its progress is not that of the best")
            return found["weights"], progress, step
        except Damaged as error:
            log.warning("The checkpoint of step %d in %s is damaged (%s).", step, workdir, error)
    raise UserError(f"The checkpoint {which!r} in {workdir} (step {chosen[0]}) is missing or damaged: "
                    f"{otherwise(steps)}")


def require_some(workdir: str | os.PathLike) -> pathlib.Path:
    """The folder of a workdir's checkpoints. Raises UserError if it has none."""
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    if not saved_steps(directory):
        raise UserError(f"There are no checkpoints in {workdir}: train with --workdir={workdir} first.")
    return directory


def _read(directory: pathlib.Path, step: int, wanted: dict[str, Any],
          shapes: dict | None = None) -> tuple[dict, Progress]:
    """Items of a checkpoint, with its progress.

    Args:
      directory: of the checkpoints.
      step: of the one.
      wanted: the arrays of each item on their devices, as jax.ShapeDtypeStruct; None for numpy arrays.
      shapes: what the weights must be, if that is known.

    Raises:
      Damaged: it cannot be read, or is not what was saved.
      UserError: its weights are those of another model, or something in it is not finite.
    """
    folder = directory / str(step)
    if odd := next((path for path in folder.rglob("*") if not (path.is_file() or path.is_dir())), None):
        raise Damaged(f"{odd.relative_to(folder)} is not a file")  # TensorStore would wait for a pipe
    progress, sums = read_record(directory, step)
    found = {}
    for name, tree in wanted.items():
        path = folder / name
        stored = _shapes(path)
        if name == "weights" and shapes is not None and (odd := _difference(stored, shapes)):
            raise UserError(f"The checkpoint of step {step} in {directory} is not of the model in config.json: {odd}; "
                            "use another --workdir.")
        tree = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored) if tree is None else tree
        found[name] = _from_disk(lambda handler, path=path, tree=tree: handler.restore(
            path, args=ocp.args.StandardRestore(tree)))
        checksum, finite = _summary(found[name])
        if name in sums and sums[name] != int(checksum):
            raise Damaged(f"{name} are not what was saved")
        if not finite:
            raise UserError(f"The checkpoint of step {step} in {directory} holds NaN or infinity: its training "
                            "diverged; choose another checkpoint, or train in a new workdir.")
    return found, progress


@functools.cache
def _ignore_abandoned_tasks() -> None:
    """Keeps tracebacks of a damaged checkpoint or a full disk off the screen, those that come late included.

    When Orbax fails to read or write an array, it closes its event loop while others are in progress; each of them then
    ends with an exception that nobody can catch.
    """
    report = sys.unraisablehook

    def is_closed_loop(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def hook(event):
        if not is_closed_loop(event.exc_value):
            report(event)

    def shows(record: logging.LogRecord) -> bool:
        return not ((record.exc_info and is_closed_loop(record.exc_info[1]))
                    or record.getMessage().startswith("Task was destroyed but it is pending"))

    sys.unraisablehook = hook
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).addFilter(shows)


def _from_disk(read):
    """What `read` returns of a handler of arrays. Raises Damaged."""
    _ignore_abandoned_tasks()
    try:
        # What TensorStore's threads write to standard error about a damaged file fills a screen.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return read(handler)
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax, TensorStore and json raise many kinds
        raise Damaged(reason_of(error)) from error


def _shapes(path: pathlib.Path) -> dict:
    """Shapes and types of the arrays of an item, as a tree. Raises Damaged."""
    def read(handler: ocp.StandardCheckpointHandler) -> dict:
        found = handler.metadata(path)
        found = found.tree if hasattr(found, "tree") else found
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found)

    return _from_disk(read)


def _difference(stored: dict, wanted: dict) -> str:
    """The first array by name that is not in both, or has another shape there; nothing if there is none."""
    shapes = [{"/".join(str(key.key) for key in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
              for tree in (stored, wanted)]
    names = [name for name in sorted(shapes[0].keys() | shapes[1].keys()) if shapes[0].get(name) != shapes[1].get(name)]
    if not names:
        return ""
    there, here = (of.get(names[0], "missing") for of in shapes)
    return f"{names[0]} is {there} there and {here} in the model"


def _require_space(manager: Manager, step: int, state: TrainState) -> None:
    needed, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(manager.directory).free
    if free < needed:
        raise UserError(f"The disk is full: the checkpoint of step {step} takes {needed / 1e6:,.1f} MB, and "
                        f"{free / 1e6:,.1f} MB are free in {manager.directory}; make room and start again"
                        + (", the checkpoints before it are whole." if manager.latest_step() is not None else "."))


def _sweep(directory: pathlib.Path) -> None:
    """Makes the folder, and removes what an interrupted save or deletion has left in it."""
    make_folder(directory)
    for path in (*directory.glob(f"*{UNFINISHED}*"), *directory.glob(f"*{DELETED}")):
        shutil.rmtree(path, ignore_errors=True)


def _delete(path: pathlib.Path) -> None:
    doomed = path.with_name(path.name + DELETED)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _set_aside(directory: pathlib.Path, step: int) -> None:
    """Moves a checkpoint to `damaged` beside their folder, so that the step can be saved again."""
    aside = make_folder(directory.parent / "damaged")
    names = (f"{step}{suffix}" for suffix in ("", *(f".{i}" for i in range(1, 1000))))
    target = next(aside / name for name in names if not os.path.lexists(aside / name))
    (directory / str(step)).rename(target)


@jax.jit
def _summary(tree) -> tuple[Array, Array]:
    """A number that changes with any word of any array, and whether all of them are finite.

    So what a disk has lost is not taken for weights.
    """
    total, finite = jnp.uint32(0), jnp.bool_(True)
    for leaf in jax.tree.leaves(tree):
        words = jax.lax.bitcast_convert_type(leaf.reshape(-1), f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        total = total * np.uint32(31) + (words * (2 * jax.lax.iota(jnp.uint32, words.size) + 1)).sum(dtype=jnp.uint32)
        finite &= jnp.isfinite(leaf).all()
    return total, finite


def _training(state: TrainState) -> dict:
    """What only training needs. Without an average, what is learned is among the weights already."""
    tree = {"step": state.step, "opt_state": state.opt_state}
    return tree if state.ema is None else {**tree, "learned": trained_variables(state.params, state.model_state)}


def _abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


