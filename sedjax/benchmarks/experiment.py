"""Speed of training, evaluation and scoring of a config on its records."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax

from sedjax.benchmarks import scoring, throughput
from sedjax.benchmarks.timing import ROUNDS, ratios, take_turns
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div

DIMENSIONS = ("batch_size", "devices")
SWEEP_VALUES = 4


def bench(config: Config, steps: int, against: str | None = None, sweep: Sequence[str] = ()) -> dict:
    """All figures of a config on its records, in a form that can be written as JSON.

    Args:
      config: experiment.
      steps: number of steps to time in each measurement.
      against: "torch" for the peer in PyTorch.
      sweep: dimensions to double a few times: "batch_size", "devices".

    Raises:
      UserError: there are no records, the peer is not installed, or a dimension is unknown.
    """
    for name in sweep:
        if name not in DIMENSIONS:
            raise UserError(f"--sweep takes {' and '.join(DIMENSIONS)}, not {name!r}.")
    peers = torch_peers(config) if against else {}
    steps = whole_calls(config, steps)
    began = time.perf_counter()
    training = throughput.Training(config)
    training.warm_up(1)
    first_step = time.perf_counter() - began
    training.warm_up(steps + (ROUNDS * turn_steps(config, steps) if peers else 0))
    ours = training.stretch(steps)
    evaluation = throughput.Evaluation(training)
    evaluated = min(steps, evaluation.batches)
    evaluation.warm_up(evaluated)
    validation = evaluation.stretch(evaluated)
    memory = throughput.peak_memory()
    ceiling = throughput.matmul_ceiling(training.mesh, config.precision, training.product_shapes())
    device = jax.devices()[0]
    result = {
        "device": {"platform": device.platform, "kind": device.device_kind, "devices": training.mesh.size},
        "model": config.model["name"], "precision": config.precision, "batch_size": config.data.batch_size,
        "placement": config.data.placement, "steps_per_call": config.train.steps_per_call, "parallel": config.parallel,
        "steps": steps, "frame_seconds": training.task.frame_seconds,
        "first_step_seconds": first_step,
        "training": _figures(training, ours, ceiling["flops_per_second"]),
        "evaluation": _figures(evaluation, validation, ceiling["flops_per_second"]),
        "ceiling": ceiling,
        "peak_memory": memory,
        "scoring": scoring.scoring(config),
    }
    if peers:
        result["against"] = against(training, peers, turn_steps(config, steps))
    for name in sweep:
        result.setdefault("sweep", {})[name] = sweep_over(config, name, steps)
    return result


def sweep_over(config: Config, name: str, steps: int) -> list[dict[str, float]]:
    """The figures of training for a few values of a dimension, each twice the previous one."""
    devices = len(jax.devices())
    if name == "devices":
        cases = [(n, config, n) for n in _doubling(1, devices)]
    else:
        largest = config.data.batch_size * 2
        smallest = devices * max(config.optimizer.accumulate, 2 if config.train.mixup else 1)
        cases = [(n, dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=n)), None)
                 for n in _doubling(max(smallest, largest >> (SWEEP_VALUES - 1)), largest)]
    rows = []
    steps = whole_calls(config, steps)
    for value, case, count in cases:
        training = throughput.Training(case, count)
        training.warm_up(steps)
        stretch = training.stretch(steps)
        rows.append({name: value, "frames_per_second": stretch.frames_per_second,
                     "seconds_per_step": stretch.seconds / steps, "padded_share": training.padded_share})
    return rows


def format_result(result: dict) -> str:
    """A short table: each figure with an explanation."""
    training, evaluation, ceiling, scoring = (result[key] for key in ("training", "evaluation", "ceiling", "scoring"))
    memory, device = result["peak_memory"], result["device"]
    lines = [f"{result['model']}, {result['precision']}, batches of {result['batch_size']}, on {device['devices']} x "
             f"{device['kind']} ({device['platform']})",
             f"data in {result['placement']} memory, at most {result['steps_per_call']} steps per call, "
             f"{result['parallel']}", ""]

    def row(value: str, text: str) -> None:
        lines.append(f"{value:>20}  {text}")

    row(f"{training['frames_per_second']:,.0f} frames/s", "training: real frames per second "
        f"({training['frames_per_second'] * result['frame_seconds']:,.0f} s of audio)")
    row(f"{evaluation['frames_per_second']:,.0f} frames/s", "evaluation: the same, forward pass and counts")
    row(f"{training['padded_share']:.1%}", "of the frames that training computes are padding")
    row(f"{result['first_step_seconds']:.1f} s", "to the end of the first step, including data loading and compilation")
    row(f"{training['flops_per_second'] / 1e9:,.0f} GFLOP/s",
        "training: matrix products and convolutions, padding included")
    row(f"{ceiling['flops_per_second'] / 1e9:,.0f} GFLOP/s", f"ceiling: the fastest matrix product measured "
        f"({ceiling['shape']})")
    row(f"{training['ceiling_share']:.1%}", "of the ceiling is reached in training")
    row(f"{training['waiting_share']:.1%}", "of the training time is spent waiting for input")
    row(f"{memory['bytes'] / 1e9:.2f} GB", f"peak memory ({memory['of']})")
    row(f"{scoring['seconds'] * 1e3:.1f} ms", f"scoring: frame probabilities of {scoring['recordings']} recordings to "
        "cost per class")
    if scoring["ratio"] is None:
        row("-", "against data frames: pandas is not installed (pip install 'sedjax[bench]')")
    else:
        row(f"{scoring['ratio']:.1f} x", f"as fast as with data frames, which take {scoring['peer_seconds']:.2f} s")
    for name, figures in result.get("against", {}).items():
        if "error" in figures:
            row("-", f"{name}: {figures['error']}")
        elif name != "sedjax":
            row(f"{figures['ratio']:.2f} x", f"training against {name}, {figures['frames_per_second']:,.0f} frames/s "
                f"({figures['lowest_ratio']:.2f} to {figures['highest_ratio']:.2f} in {ROUNDS} turns)")
    for name, rows in result.get("sweep", {}).items():
        lines.append(f"\n{name:>20}{'frames/s':>12}{'s/step':>12}{'padding':>10}")
        lines += [f"{case[name]:20}{case['frames_per_second']:12,.0f}{case['seconds_per_step']:12.3f}"
                  f"{case['padded_share']:10.1%}" for case in rows]
    return "\n".join(lines)


def _figures(loop: throughput.Loop, stretch: throughput.Stretch, ceiling: float) -> dict[str, float]:
    return {"frames_per_second": stretch.frames_per_second, "padded_share": loop.padded_share,
            "flops_per_second": stretch.flops / stretch.seconds,
            "ceiling_share": stretch.flops / stretch.seconds / ceiling,
            "waiting_share": stretch.waiting / stretch.seconds}


def whole_calls(config: Config, steps: int) -> int:
    """`steps` rounded up to a multiple of train.steps_per_call, so that every call is complete."""
    return ceil_div(steps, config.train.steps_per_call) * config.train.steps_per_call


def turn_steps(config: Config, steps: int) -> int:
    """The steps of each of ROUNDS turns."""
    return whole_calls(config, max(1, steps // ROUNDS))


def _doubling(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]


def torch_peers(config: Config) -> dict[str, tuple[bool, str]]:
    """The peer's variants: (compiled, precision) by name. Raises UserError if it cannot be timed."""
    if config.model["name"] != "embedding_transformer" or config.model["stem"] != "linear":
        raise UserError("--against=torch supports only embedding_transformer with stem=\"linear\", not this "
                        f"{config.model['name']}.")
    try:
        from sedjax.benchmarks import torch_peer
    except ImportError as error:
        raise UserError("--against=torch needs PyTorch: pip install 'sedjax[bench]'.") from error
    return torch_peer.VARIANTS


def against(training: throughput.Training, variants: dict[str, tuple[bool, str]], turn_steps: int) -> dict[str, dict]:
    """Speeds of a training and of peers, see timing.ratios, in turns of `turn_steps`; an `error` for one that fails."""
    from sedjax.benchmarks import torch_peer

    contestants: dict[str, Callable[[], float]] = {"sedjax": lambda: training.stretch(turn_steps).frames_per_second}
    failed = {}
    for name, (compiled, precision) in variants.items():
        try:
            peer = torch_peer.Peer(training.config, training.experiment.records, compiled, precision)
            peer.warm_up()
            contestants[name] = lambda peer=peer: peer.stretch(turn_steps).frames_per_second
        except Exception as error:  # torch.compile needs a C++ compiler, and fails in many ways without one
            failed[name] = {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
    return {**ratios(take_turns(contestants), "sedjax", "frames_per_second"), **failed}
