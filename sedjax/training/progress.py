"""What each checkpoint says of its training besides the state, in a file of its own that can be checked."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import textwrap
from typing import Any

import numpy as np
import pydantic
from pydantic import FiniteFloat

from sedjax.core.bounds import parse_json
from sedjax.core.errors import UserError, printable
from sedjax.core.files import read_text, write_json
from sedjax.training.metric_writer import read_metrics

UNFINISHED = ".orbax-checkpoint-tmp"
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


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether the training in a workdir, if there is one, has ended."""
    directory = pathlib.Path(workdir) / "checkpoints"
    try:
        return any(read_progress(directory, step).finished for step in saved_steps(directory)[-1:])
    except Damaged:
        return False


class Damaged(Exception):
    """A checkpoint cannot be read, or is not what was saved."""


class _Record(pydantic.BaseModel):
    """What is in the file of a progress besides it; without step and digest where an older version wrote it."""

    checksums: dict[str, int] = {}
    step: int | None = None
    digest: str | None = None


def saved_steps(directory: pathlib.Path) -> list[int]:
    """The steps of which there is a checkpoint, or something in its place, in ascending order."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def step_of_cost(directory: pathlib.Path, cost: float) -> int | None:
    """The first step with a validation cost, among the checkpoints."""
    for step in saved_steps(directory):
        with contextlib.suppress(Damaged):
            if read_progress(directory, step).cost == cost:
                return step
    return None


def listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def progress_path(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / str(step) / "progress" / "metadata"


def read_progress(directory: pathlib.Path, step: int) -> Progress:
    return read_record(directory, step)[0]


def read_record(directory: pathlib.Path, step: int) -> tuple[Progress, dict[str, int]]:
    """Progress of a checkpoint, and the checksums of its arrays. Raises Damaged."""
    path = progress_path(directory, step)
    try:
        text = read_text(path)
        fields, record, progress = (parse_json(text, form, path) for form in (dict[str, Any], _Record, Progress))
    except UserError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        raise Damaged(reason_of(error)) from error
    if missing := EVERY_VERSION - fields.keys():
        raise Damaged(f"its progress has no {min(missing)}")
    older = not {"step", "digest", "best_step"} & fields.keys()
    if not older and (record.step != step or record.digest != _digest(fields)):
        raise Damaged("its progress is not what was saved")
    return progress, record.checksums


def record_of(step: int, progress: Progress, checksums: dict[str, int]) -> dict:
    """What the file of a progress holds."""
    record = {**dataclasses.asdict(progress), "thresholds": list(progress.thresholds), "step": step,
              "checksums": checksums}
    return {**record, "digest": _digest(record)}


def _digest(record: dict) -> str:
    text = json.dumps({key: value for key, value in record.items() if key != "digest"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def reason_of(error: Exception) -> str:
    """The beginning of an error's text; TensorStore's go on for a page."""
    return printable(textwrap.shorten(str(error).strip(), 100, placeholder=" ...")) or type(error).__name__


def find_best(workdir: pathlib.Path) -> tuple[int, Progress]:
    """The step of the best checkpoint, whether or not that is whole, and the progress of the newest, which names it.

    Raises UserError if it cannot be known.
    """
    directory = workdir / "checkpoints"
    steps = saved_steps(directory)
    try:
        newest = read_progress(directory, steps[-1])
    except Damaged as error:
        raise UserError(f"Which checkpoint in {workdir} is the best cannot be known, because that of step {steps[-1]} "
                        f"is damaged ({error}): {otherwise(steps)}") from error
    costs = [(entry["validation_cost"], entry["step"]) for entry in read_metrics(workdir) if "validation_cost" in entry]
    cost, step = min(costs, default=(np.inf, None))
    saving = any(directory.glob(f"{step}{UNFINISHED}*"))
    if cost < (np.inf if newest.best_cost is None else newest.best_cost) and not saving:
        raise UserError(f"The best checkpoint in {workdir} is that of step {step}, by its validation cost in "
                        f"metrics.jsonl, but it is missing: {otherwise(steps)}")
    if newest.best_cost is None:
        return steps[-1], newest
    best = step_of_cost(directory, newest.best_cost) if newest.best_step is None else newest.best_step
    if best is None:
        raise UserError(f"The best checkpoint in {workdir}, with the validation cost {newest.best_cost:.3f}, is "
                        f"missing or damaged: {otherwise(steps)}")
    return best, newest


def is_best(progress: Progress, newest: Progress) -> bool:
    """Whether a progress is that of the best checkpoint, according to the newest."""
    if newest.best_cost is None:
        return progress == newest
    # If the newest has a digest, the best has one too: otherwise it could be edited as one of an older version.
    return progress.cost == newest.best_cost and newest.best_step in (None, progress.best_step)


def add_digest(directory: pathlib.Path, step: int) -> None:
    """Writes the progress of the best checkpoint, which an older version saved, as this version does."""
    progress, sums = read_record(directory, step)
    record = record_of(step, dataclasses.replace(progress, best_step=step), sums)
    write_json(progress_path(directory, step), record, ours=True, durable=True)


def otherwise(steps: list[int]) -> str:
    return f"resume the training, or choose another with --checkpoint (there are {listed(steps)})."
