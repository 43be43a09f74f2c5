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
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pydantic
from jaxtyping import Array
from pydantic import FiniteFloat

from sedjax import parallel
from sedjax.errors import UserError
from sedjax.files import make_folder, parse_json, printable, read_text, write_json
from sedjax.metric_writer import read_metrics
from sedjax.train_state import TrainState, learned

log = logging.getLogger("sedjax")
UNFINISHED = ".orbax-checkpoint-tmp"
DELETED = ".deleted"
EVERY_VERSION = {"cost", "thresholds", "best_cost", "evaluations_since_best", "finished"}  # wrote these of a progress


@dataclasses.dataclass(frozen=True)
class Progress:
    """What training knows besides the state, at one checkpoint.

    Attributes:
      cost: validation cost at this step, None where it was not evaluated.
      thresholds: of each class, chosen with that evaluation.
      best_cost: the lowest so far.
      best_step: the first with that cost; None in checkpoints of older versions too.
      evaluations_since_best: for early stopping.
      finished: nothing is left to train.
      evaluation_due: a stop interrupted the evaluation of this step, so that it must be done before the next.
      task: Task.digest of what the outputs mean; "" in checkpoints of older versions.
    """

    cost: FiniteFloat | None = None
    thresholds: tuple[FiniteFloat, ...] = ()
    best_cost: FiniteFloat | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    finished: bool = False
    evaluation_due: bool = False
    task: str = ""


def without_cost(progress: Progress) -> Progress:
    """The progress of a checkpoint between two evaluations."""
    return dataclasses.replace(progress, cost=None)


class Manager:
    """The checkpoints of a workdir as its training has them.

    Attributes:
      directory: of the checkpoints.
      steps: of which there is one, in ascending order.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory, self.steps = directory, _steps(directory)
        self._saved: Progress | None = None
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(
            weights=ocp.StandardCheckpointHandler(), training=ocp.StandardCheckpointHandler(),
            progress=ocp.JsonCheckpointHandler()))

    def latest_step(self) -> int | None:
        return max(self.steps, default=None)

    def start(self, step: int, progress: Progress, items: dict) -> None:
        """Starts saving. Of a step that is saved already only the progress is replaced."""
        record = _record(step, progress, {name: int(_summary(tree)[0]) for name, tree in items.items()})
        if step in self.steps:
            path = _progress_path(self.directory, step)
            parallel.on_first(lambda: write_json(path, record, ours=True, durable=True))
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
            if parallel.is_first():
                with contextlib.suppress(_Damaged):  # what sedjax did not write stays
                    _read_progress(self.directory, step)
                    _delete(self.directory / str(step))

    def close(self) -> None:
        self.wait_until_finished()
        self._checkpointer.close()


@contextlib.contextmanager
def open_manager(workdir: str | os.PathLike) -> Iterator[Manager]:
    """The checkpoints of a workdir, for its training: what an interrupted save or deletion has left is removed."""
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    parallel.on_first(lambda: _sweep(directory))
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
    with parallel.together():
        _require_space(manager, step, state)
    items = {"weights": state.weights, "training": _training(state)}
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
        wanted = {"weights": _abstract(state.weights), "training": _abstract(_training(state))}
        try:
            found, progress = _read(directory, step, wanted, wanted["weights"])
        except _Damaged as error:
            log.warning("The checkpoint of step %d in %s is damaged (%s): resuming from the one before it.", step,
                        directory, error)
            parallel.on_first(lambda step=step: _set_aside(directory, step))
            manager.steps.remove(step)
            continue
        if progress.best_step is None and progress.best_cost is not None:
            best = _step_of_cost(directory, progress.best_cost)
            progress = dataclasses.replace(progress, best_step=best)
            if best is not None:
                parallel.on_first(lambda best=best: _add_digest(directory, best))
        weights, training = found["weights"], found["training"]
        average = {name: weights[name] for name in state.ema} if state.ema else None
        model_state = {**weights, **training.get("learned", {})}
        params = model_state.pop("params")
        return TrainState(training["step"], params, average, model_state, training["opt_state"]), progress
    if steps:
        raise UserError(f"Every checkpoint in {directory} was damaged: start in a new workdir.")
    return None


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether the training in a workdir, if there is one, has ended."""
    directory = pathlib.Path(workdir) / "checkpoints"
    try:
        return any(_read_progress(directory, step).finished for step in _steps(directory)[-1:])
    except _Damaged:
        return False


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
    steps = _steps(directory)
    newest = None
    if which == "best":
        best, newest = _best(pathlib.Path(workdir))
        chosen = [best]
    elif which == "last":
        chosen = steps[::-1]
    else:
        chosen = [step for step in steps if str(step) == str(which)]
    if not chosen:
        raise UserError(f"There is no checkpoint {which} in {workdir}; there are {_listed(steps)}.")
    for step in chosen:
        try:
            found, progress = _read(directory, step, {"weights": None}, shapes)
            if newest and not _is_best(progress, newest):
                raise _Damaged("its progress is not that of the best")
            return found["weights"], progress, step
        except _Damaged as error:
            log.warning("The checkpoint of step %d in %s is damaged (%s).", step, workdir, error)
    raise UserError(f"The checkpoint {which!r} in {workdir} (step {chosen[0]}) is missing or damaged: "
                    f"{_otherwise(steps)}")


def require_some(workdir: str | os.PathLike) -> pathlib.Path:
    """The folder of a workdir's checkpoints. Raises UserError if it has none."""
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    if not _steps(directory):
        raise UserError(f"There are no checkpoints in {workdir}: train with --workdir={workdir} first.")
    return directory


class _Damaged(Exception):
    """A checkpoint cannot be read, or is not what was saved."""


class _Record(pydantic.BaseModel):
    """What is in the file of a progress besides it; without step and digest where an older version wrote it."""

    checksums: dict[str, int] = {}
    step: int | None = None
    digest: str | None = None


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps of which there is a checkpoint, or something in its place, in ascending order."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def _best(workdir: pathlib.Path) -> tuple[int, Progress]:
    """The step of the best checkpoint, whether or not that is whole, and the progress of the newest, which names it.

    Raises UserError if it cannot be known.
    """
    directory = workdir / "checkpoints"
    steps = _steps(directory)
    try:
        newest = _read_progress(directory, steps[-1])
    except _Damaged as error:
        raise UserError(f"Which checkpoint in {workdir} is the best cannot be known, because that of step {steps[-1]} "
                        f"is damaged ({error}): {_otherwise(steps)}") from error
    costs = [(entry["validation_cost"], entry["step"]) for entry in read_metrics(workdir) if "validation_cost" in entry]
    cost, step = min(costs, default=(np.inf, None))
    saving = any(directory.glob(f"{step}{UNFINISHED}*"))
    if cost < (np.inf if newest.best_cost is None else newest.best_cost) and not saving:
        raise UserError(f"The best checkpoint in {workdir} is that of step {step}, by its validation cost in "
                        f"metrics.jsonl, but it is missing: {_otherwise(steps)}")
    if newest.best_cost is None:
        return steps[-1], newest
    best = _step_of_cost(directory, newest.best_cost) if newest.best_step is None else newest.best_step
    if best is None:
        raise UserError(f"The best checkpoint in {workdir}, with the validation cost {newest.best_cost:.3f}, is "
                        f"missing or damaged: {_otherwise(steps)}")
    return best, newest


def _is_best(progress: Progress, newest: Progress) -> bool:
    """Whether a progress is that of the best checkpoint, according to the newest."""
    if newest.best_cost is None:
        return progress == newest
    # If the newest has a digest, the best has one too: otherwise it could be edited as one of an older version.
    return progress.cost == newest.best_cost and newest.best_step in (None, progress.best_step)


def _add_digest(directory: pathlib.Path, step: int) -> None:
    """Writes the progress of the best checkpoint, which an older version saved, as this version does."""
    progress, sums = _read_record(directory, step)
    record = _record(step, dataclasses.replace(progress, best_step=step), sums)
    write_json(_progress_path(directory, step), record, ours=True, durable=True)


def _step_of_cost(directory: pathlib.Path, cost: float) -> int | None:
    """The first step with a validation cost, among the checkpoints."""
    for step in _steps(directory):
        with contextlib.suppress(_Damaged):
            if _read_progress(directory, step).cost == cost:
                return step
    return None


def _otherwise(steps: list[int]) -> str:
    return f"resume the training, or choose another with --checkpoint (there are {_listed(steps)})."


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def _progress_path(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / str(step) / "progress" / "metadata"


def _read_progress(directory: pathlib.Path, step: int) -> Progress:
    return _read_record(directory, step)[0]


def _read_record(directory: pathlib.Path, step: int) -> tuple[Progress, dict[str, int]]:
    """Progress of a checkpoint, and the checksums of its arrays. Raises _Damaged."""
    path = _progress_path(directory, step)
    try:
        text = read_text(path)
        fields, record, progress = (parse_json(text, form, path) for form in (dict[str, Any], _Record, Progress))
    except UserError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        raise _Damaged(_reason(error)) from error
    if missing := EVERY_VERSION - fields.keys():
        raise _Damaged(f"its progress has no {min(missing)}")
    older = not {"step", "digest", "best_step"} & fields.keys()
    if not older and (record.step != step or record.digest != _digest(fields)):
        raise _Damaged("its progress is not what was saved")
    return progress, record.checksums


def _record(step: int, progress: Progress, checksums: dict[str, int]) -> dict:
    """What the file of a progress holds."""
    record = {**dataclasses.asdict(progress), "thresholds": list(progress.thresholds), "step": step,
              "checksums": checksums}
    return {**record, "digest": _digest(record)}


def _digest(record: dict) -> str:
    text = json.dumps({key: value for key, value in record.items() if key != "digest"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(directory: pathlib.Path, step: int, wanted: dict[str, Any],
          shapes: dict | None = None) -> tuple[dict, Progress]:
    """Items of a checkpoint, with its progress.

    Args:
      directory: of the checkpoints.
      step: of the one.
      wanted: the arrays of each item on their devices, as jax.ShapeDtypeStruct; None for numpy arrays.
      shapes: what the weights must be, if that is known.

    Raises:
      _Damaged: it cannot be read, or is not what was saved.
      UserError: its weights are those of another model, or something in it is not finite.
    """
    folder = directory / str(step)
    if odd := next((path for path in folder.rglob("*") if not (path.is_file() or path.is_dir())), None):
        raise _Damaged(f"{odd.relative_to(folder)} is not a file")  # TensorStore would wait for a pipe
    progress, sums = _read_record(directory, step)
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
            raise _Damaged(f"{name} are not what was saved")
        if not finite:
            raise UserError(f"The checkpoint of step {step} in {directory} holds NaN or infinity: its training "
                            "diverged; choose another checkpoint, or train in a new workdir.")
    return found, progress


@functools.cache
def _ignore_abandoned_reads() -> None:
    """Keeps tracebacks of a damaged checkpoint off the screen, those that come late included.

    When Orbax fails to read an array, it closes its event loop while other reads are in progress; each of them then
    ends with an exception in TensorStore's thread, that nobody can catch.
    """
    report = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def _from_disk(read):
    """What `read` returns of a handler of arrays. Raises _Damaged."""
    _ignore_abandoned_reads()
    try:
        # What TensorStore's threads write to standard error about a damaged file fills a screen.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return read(handler)
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax, TensorStore and json raise many kinds
        raise _Damaged(_reason(error)) from error


def _shapes(path: pathlib.Path) -> dict:
    """Shapes and types of the arrays of an item, as a tree. Raises _Damaged."""
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
    return tree if state.ema is None else {**tree, "learned": learned(state.params, state.model_state)}


def _abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _reason(error: Exception) -> str:
    """The beginning of an error's text; TensorStore's go on for a page."""
    return printable(textwrap.shorten(str(error).strip(), 100, placeholder=" ...")) or type(error).__name__
