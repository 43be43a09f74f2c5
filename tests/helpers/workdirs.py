"""Workdirs of models that were not trained, and what commands wrote."""

import csv
import pathlib

import jax
import numpy as np
from tiny import TINY_TASK, tiny_config

from sedjax.models import registry
from sedjax.models.variables import example_inputs
from sedjax.training import checkpoint, workdir
from sedjax.training.progress import Progress
from sedjax.training.train_state import TrainState


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def untrained(path: pathlib.Path, name: str, widths: dict[str, int]) -> pathlib.Path:
    """The workdir of a model."""
    config = tiny_config(name)
    model = registry.build_from(config, TINY_TASK)
    variables = jax.jit(model.init)(jax.random.key(0), *example_inputs(model, widths))
    workdir.prepare(path / "w", config, TINY_TASK, {key: {"width": width} for key, width in widths.items()})
    params = variables.pop("params", {})
    state = TrainState(step=np.zeros((), np.int32), params=params, ema=None, model_state=variables, opt_state={})
    with checkpoint.open_manager(path / "w") as manager:
        checkpoint.save(manager, state, Progress(finished=True, cost=1.0))
    return path / "w"
