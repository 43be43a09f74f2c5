"""Speed of training, evaluation and scoring of a config on its records."""

import dataclasses
import itertools
import time
from collections.abc import Sequence

import jax

from sedjax.benchmarks import scoring, throughput, timing
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div
from sedjax.data.plan import Source

DIMENSIONS = ("batch_size", "devices")
SWEEP_VALUES = 4
WARM_UP_STEPS = 3  # of a peer


def bench(config: Config, steps: int, against: bool = False, sweep: Sequence[str] = ()) -> dict:
    """All figures of a config on its records, in a form that can be written as JSON.

    Args:
      config: experiment.
      steps: number of steps to time in each measurement.
      against: also time the peer in PyTorch.
      sweep: dimensions to double a few times: "batch_size", "devices".

    Raises:
      UserError: there are no records, the peer is not installed, or a dimension is unknown.
    """
    for name in sweep:
        if name not in DIMENSIONS:
            raise UserError(f"--sweep takes {' and '.join(DIMENSIONS)}, not {name!r}.")
    if against:
        require_peer(config)
    training, figures = measure(config, steps)
    evaluation = measure_evaluation(throughput.Evaluation(training), steps)
    memory = throughput.peak_memory()
    ceiling = throughput.matmul_ceiling(training.experiment.mesh, config.precision, training.product_shapes())
    for measured in (figures, evaluation):
        measured["ceiling_share"] = measured["flops_per_second"] / ceiling["flops_per_second"]
    device = jax.devices()[0]
    result = {
        "device": {"platform": device.platform, "kind": device.device_kind, "devices": training.experiment.mesh.size},
        "model": config.model["name"], "precision": config.precision, "batch_size": config.data.batch_size,
        "placement": config.data.placement, "steps_per_call": config.train.steps_per_call, "parallel": config.parallel,
        "steps": whole_calls(config, steps), "frame_seconds": training.experiment.task.frame_seconds,
        "first_step_seconds": figures.pop("first_step_seconds"), "training": figures, "evaluation": evaluation,
        "ceiling": ceiling, "peak_memory": memory, "scoring": scoring.scoring(config),
    }
    if against:
        result["against"] = compare(training, steps)
    for name in sweep:
        result.setdefault("sweep", {})[name] = [{name: value, **measure(case, steps, devices)[1]}
                                                for value, case, devices in cases(config, name)]
    return result


def measure(config: Config, steps: int, devices: int | None = None,
            records: Source | None = None) -> tuple[throughput.Training, dict[str, float]]:
    """Starts a training, times some steps, and returns it with its figures.

    `first_step_seconds` go to the end of the first step, including data loading and compilation; the others are those
    of `measure_evaluation`.
    """
    steps = whole_calls(config, steps)
    began = time.perf_counter()
    training = throughput.Training(config, devices, records)
    training.warm_up(1)
    first_step = time.perf_counter() - began
    training.warm_up(steps)
    return training, {"first_step_seconds": first_step, **_figures(training, steps)}


def measure_evaluation(evaluation: throughput.Evaluation, steps: int) -> dict[str, float]:
    """Figures of an evaluation: speed in real frames and steps, padding, arithmetic, and waiting for input."""
    steps = min(steps, evaluation.feed.plan.batches)
    evaluation.warm_up(steps)
    return _figures(evaluation, steps)


def _figures(loop: throughput.Loop, steps: int) -> dict[str, float]:
    stretch = loop.stretch(steps)
    return {"frames_per_second": stretch.frames_per_second, "seconds_per_step": stretch.seconds / steps,
            "padded_share": loop.padded_share, "flops_per_second": stretch.flops / stretch.seconds,
            "waiting_share": stretch.waiting / stretch.seconds}


def cases(config: Config, dimension: str) -> list[tuple[int, Config, int | None]]:
    """The values of a dimension, each twice the previous one, with the config and number of devices of each."""
    devices = len(jax.devices())
    if dimension == "devices":
        return [(n, config, n) for n in _doubling(1, devices)]
    largest = config.data.batch_size * 2
    smallest = devices * max(config.optimizer.accumulate, 2 if config.train.mixup else 1)
    return [(n, dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=n)), None)
            for n in _doubling(max(smallest, largest >> (SWEEP_VALUES - 1)), largest)]


def whole_calls(config: Config, steps: int) -> int:
    """`steps` rounded up to a multiple of train.steps_per_call, so that every call is complete."""
    return ceil_div(steps, config.train.steps_per_call) * config.train.steps_per_call


def _doubling(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]


def require_peer(config: Config) -> None:
    """Raises UserError if there is no peer of a config in PyTorch, or no PyTorch."""
    if config.model["name"] != "embedding_transformer" or config.model["stem"] != "linear":
        raise UserError("--against=torch supports only embedding_transformer with stem=\"linear\", not this "
                        f"{config.model['name']}.")
    timing.require_torch()


def compare(training: throughput.Training, steps: int, precisions: Sequence[str] = ("float32", "bfloat16")) -> dict:
    """Speeds of a training and of its peers in PyTorch, see timing.compare; an `error` for one that fails."""
    from sedjax.benchmarks import torch_peer

    steps = whole_calls(training.config, max(1, steps // timing.ROUNDS))
    training.warm_up(timing.ROUNDS * steps)
    loops, failed = {"sedjax": training}, {}
    for compiled, precision in itertools.product((False, True), precisions):
        name = f"{'torch.compile' if compiled else 'PyTorch eager'}, {precision}"
        try:
            loops[name] = torch_peer.Peer(training, compiled, precision)
            loops[name].stretch(WARM_UP_STEPS)  # of different lengths, to compile
        except Exception as error:  # torch.compile needs a C++ compiler, and fails in many ways without one
            loops.pop(name, None)
            failed[name] = {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
    contestants = {name: lambda loop=loop: loop.stretch(steps).frames_per_second for name, loop in loops.items()}
    return {**timing.compare(contestants, "frames_per_second"), **failed}
