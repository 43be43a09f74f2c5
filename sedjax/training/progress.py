"""The progress of training, stored with each checkpoint in a separate file with a digest."""

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
EVERY_VERSION = {"cost", "thresholds", "best_cost", "evaluations_since_best", "finished"}  # keys in all versions


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of training at one checkpoint, apart from the state.

    Attributes:
      cost: validation cost at this step; None if it was not evaluated.
      thresholds: threshold of each class, chosen in that evaluation.
      best_cost: lowest validation cost so far.
      best_step: first step with that cost; None also in checkpoints of older versions.
      evaluations_since_best: evaluations since `best_step`, for early stopping.
      finished: whether training is finished.
      evaluation_due: whether a stop interrupted the evaluation of this step, which must then come before the next step.
      task: Task.digest of the task that defines the outputs; "" in checkpoints of older versions.
    """

    cost: FiniteFloat | None = None
    thresholds: tuple[FiniteFloat, ...] = ()
    best_cost: FiniteFloat | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    finished: bool = False
    evaluation_due: bool = False
    task: str = ""


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether a workdir holds a finished training run."""
    directory = pathlib.Path(workdir) / "checkpoints"
    try:
        return any(read_progress(directory, step).finished for step in saved_steps(directory)[-1:])
    except Damaged:
        return False


class Damaged(Exception):
    """A checkpoint is unreadable, or differs from what was saved."""


class _Record(pydantic.BaseModel):
    """The other fields of a progress file; older versions wrote neither step nor digest."""

    checksums: dict[str, int] = {}
    step: int | None = None
    digest: str | None = None


def saved_steps(directory: pathlib.Path) -> list[int]:
    """The steps that have a checkpoint, intact or not, in ascending order."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def step_of_cost(directory: pathlib.Path, cost: float) -> int | None:
    """The first checkpointed step whose validation cost is `cost`; None if there is none."""
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
    """The progress of a checkpoint, and the checksums of its arrays. Raises Damaged."""
    path = progress_path(directory, step)
    try:
        text = read_text(path)
        fields, record, progress = (parse_json(text, form, path) for form in (dict[str, Any], _Record, Progress))
    except UserError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        raise Damaged(reason_of(error)) from error
    if missing := EVERY_VERSION - fields.keys():
        raise Damaged(f"its progress lacks {min(missing)}")
    older = not {"step", "digest", "best_step"} & fields.keys()
    if not older and (record.step != step or record.digest != _digest(fields)):
        raise Damaged("its progress does not match its digest")
    return progress, record.checksums


def record_of(step: int, progress: Progress, checksums: dict[str, int]) -> dict:
    """The contents of a progress file."""
    record = {**dataclasses.asdict(progress), "thresholds": list(progress.thresholds), "step": step,
              "checksums": checksums}
    return {**record, "digest": _digest(record)}


def _digest(record: dict) -> str:
    text = json.dumps({key: value for key, value in record.items() if key != "digest"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def reason_of(error: Exception) -> str:
    """The start of an error's text; TensorStore's errors fill a page."""
    return printable(textwrap.shorten(str(error).strip(), 100, placeholder=" ...")) or type(error).__name__


def find_best(workdir: pathlib.Path) -> tuple[int, Progress]:
    """The step of the best checkpoint, intact or not, and the progress of the newest, which records it.

    Raises UserError if the best step is unknown.
    """
    directory = workdir / "checkpoints"
    steps = saved_steps(directory)
    try:
        newest = read_progress(directory, steps[-1])
    except Damaged as error:
        raise UserError(f"The best checkpoint in {workdir} is unknown, because the newest, step {steps[-1]}, is "
                        f"damaged ({error}): {otherwise(steps)}") from error
    costs = [(entry["validation_cost"], entry["step"]) for entry in read_metrics(workdir) if "validation_cost" in entry]
    cost, step = min(costs, default=(np.inf, None))
    saving = any(directory.glob(f"{step}{UNFINISHED}*"))
    if cost < (np.inf if newest.best_cost is None else newest.best_cost) and not saving:
        raise UserError(f"The best checkpoint in {workdir} is that of step {step}, according to the validation costs "
                        f"in metrics.jsonl, but it is missing: {otherwise(steps)}")
    if newest.best_cost is None:
        return steps[-1], newest
    best = step_of_cost(directory, newest.best_cost) if newest.best_step is None else newest.best_step
    if best is None:
        raise UserError(f"The best checkpoint in {workdir}, with a validation cost of {newest.best_cost:.3f}, is "
                        f"missing or damaged: {otherwise(steps)}")
    return best, newest


def is_best(progress: Progress, newest: Progress) -> bool:
    """Whether a progress is that of the best checkpoint, according to the newest."""
    if newest.best_cost is None:
        return progress == newest
    # If the newest has a digest, so must the best: otherwise an edited file could pass as one of an older version.
    return progress.cost == newest.best_cost and newest.best_step in (None, progress.best_step)


def add_digest(directory: pathlib.Path, step: int) -> None:
    """Rewrites the progress of the best checkpoint, saved by an older version, in the current form."""
    progress, checksums = read_record(directory, step)
    record = record_of(step, dataclasses.replace(progress, best_step=step), checksums)
    write_json(progress_path(directory, step), record, ours=True, durable=True)


def otherwise(steps: list[int]) -> str:
    return f"resume training, or choose another one with --checkpoint (available: {listed(steps)})."
