"""Metrics of a run by step: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Annotated

import pydantic

from sedjax.core import parallel
from sedjax.core.files import atomic_output, read_json_lines
from sedjax.data import host_tensorflow


class _Entry(pydantic.BaseModel):
    step: Annotated[int, pydantic.Field(ge=0, lt=2**31)]
    seconds: pydantic.FiniteFloat = 0.0


class _Training(_Entry):
    loss: pydantic.FiniteFloat
    gradient_norm: pydantic.FiniteFloat = 0.0


class _Validation(_Entry):
    epoch: pydantic.FiniteFloat
    validation_loss: pydantic.FiniteFloat
    validation_cost: pydantic.FiniteFloat


class MetricWriter:
    """Appends scalars by step to a workdir, with the seconds since the previous entry.

    A run that resumes drops the entries after its last checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int):
        host_tensorflow.load()
        from clu import metric_writers  # imports TensorFlow

        path = workdir / "metrics.jsonl"
        kept = [entry for entry in read_metrics(workdir) if entry["step"] <= first_step]
        # Atomic, so that a kill at this point does not lose the older entries.
        with atomic_output(path, ours=True, durable=True) as new:
            new.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a", buffering=1)
        self._time = time.monotonic()
        self._events = metric_writers.SummaryWriter(str(workdir))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now, before = time.monotonic(), self._time
        self._time = now
        entry = {"step": step, **scalars, "seconds": round(now - before, 3)}
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._events.write_scalars(step, dict(scalars))

    def close(self) -> None:
        self._file.close()
        self._events.close()


class Silent:
    """The writer of every process but process 0: discards everything."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        pass


@contextlib.contextmanager
def open_writer(workdir: pathlib.Path, first_step: int) -> Iterator[MetricWriter | Silent]:
    if not parallel.is_process_zero():
        yield Silent()
        return
    writer = MetricWriter(workdir, first_step)
    try:
        yield writer
    finally:
        writer.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The entries of metrics.jsonl in order, without incomplete or damaged lines."""
    entries = read_json_lines(workdir / "metrics.jsonl", _Training | _Validation)
    return [entry.model_dump(exclude_unset=True) for entry in entries]
