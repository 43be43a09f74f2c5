"""The cost of a config on a machine that is not present: XLA compiles for TPUs and GPUs on any computer.

    sedjax bench --config=embedding_transformer --compile_for=v5e:2x4

The compiler reports arithmetic, memory, memory traffic and collectives per chip. With the chip's published speeds, they
give a lower bound on the time of a step, and its bottleneck. Nothing is run.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sedjax.benchmarks import chips, compiled, flops
from sedjax.core import parallel
from sedjax.core.collective import AXIS
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div, readable_bytes
from sedjax.core.task import MLPC_2025, Task
from sedjax.data.records import open_records, require_features
from sedjax.inference.trained import predict_step
from sedjax.models import registry
from sedjax.scoring import decisions, losses
from sedjax.scoring.evaluator import eval_step
from sedjax.training import experiment, train_state, train_step
from sedjax.training import optimizer as optimizer_lib

DIMENSIONS = ("batch_size", "chips")
STEPS = ("training", "evaluation", "prediction")
KINDS = ("arithmetic", "memory", "interconnect")
BATCH_SIZES = 4  # in a sweep: 1, 2, 4 and 8 times the config's


@dataclasses.dataclass(frozen=True)
class Data:
    """Shape of records: task, columns of each feature, number of training recordings, and path ("" for none)."""

    task: Task
    widths: dict[str, int]
    recordings: int
    path: str = ""


# The records of the challenge, assumed if there are none.
MLPC = Data(MLPC_2025, {"embeddings": 768, "melspectrogram": 64, "mfcc": 32, "audio": 1920}, recordings=4938)


def bench(config: Config, name: str, sweep: Sequence[str] = ()) -> dict:
    """The cost of the steps of a config per chip of a machine, in a form that can be written as JSON.

    Args:
      config: experiment; task and widths are those of its records, or of MLPC 2025 if there are none.
      name: name of the machine, see chips.machine.
      sweep: dimensions to vary for the training step: "batch_size", "chips".

    Raises:
      UserError: the machine is unknown, its compiler is missing, or the chips cannot share a batch.
    """
    for dimension in sweep:
        if dimension not in DIMENSIONS:
            raise UserError(f"--sweep with --compile_for takes {' and '.join(DIMENSIONS)}, not {dimension!r}.")
    data = _data_of(config)
    machine = chips.machine(name)
    parallel.require_divisible(config.data.batch_size, machine.mesh, "data.batch_size")
    result = {"machine": name, "chips": machine.mesh.size, "source": machine.chip.source,
              "model": config.model["name"], "precision": config.precision, "batch_size": config.data.batch_size,
              "eval_batch_size": config.data.eval_batch_size, "frames": config.data.max_frames,
              "data": data.path or "MLPC 2025", "memory": machine.chip.memory,
              "steps": {step: cost(config, data, machine, step) for step in STEPS}}
    for dimension in sweep:
        result.setdefault("sweep", {})[dimension] = [
            {"machine": other, "batch_size": case.data.batch_size,
             **cost(case, data, chips.machine(other), "training")}
            for other, case in _cases(config, name, dimension)]
    return result


def cost(config: Config, data: Data, machine: chips.Machine, step: str) -> dict:
    """The cost of a step per chip.

    Returns:
      `flops`; `bytes` to and from main memory; `xla_bytes`, XLA's own count of them (see compiled); `memory` in use, in
      bytes by kind, and whether it `fits`; `collectives`, number and bytes by kind; `seconds`, lower bounds for
      arithmetic, memory and interconnect; which of them `binds`; `frames_per_second`, an upper bound.
    """
    function, arguments = step_of(config, data, machine.mesh, step)
    program = function.lower(*arguments).compile(machine.options)
    analysis, sizes = program.cost_analysis() or {}, program.memory_analysis()
    text = compiled.parse(program.as_text())
    memory = {"arguments": sizes.argument_size_in_bytes,
              "results": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,  # those that reuse no argument
              "temporary": sizes.temp_size_in_bytes, "program": sizes.generated_code_size_in_bytes}
    chip, count = machine.chip, machine.mesh.size
    work = flops.count(function.trace(*arguments).jaxpr.jaxpr) / count
    moved, exchanged = compiled.traffic(text), compiled.collectives(text)
    # In a ring each chip sends all but its own part; an all-reduce does so twice, for the sums and their copies.
    sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in exchanged.items()) * (count - 1) / count
    rate = chip.flops if config.precision == "bfloat16" else chip.float32_flops
    seconds = {"arithmetic": work / rate, "memory": moved / chip.bandwidth, "interconnect": sent / chip.interconnect}
    clips = config.data.batch_size if step == "training" else _whole(config.data.eval_batch_size, machine.mesh)
    return {"flops": work, "bytes": moved, "xla_bytes": float(analysis.get("bytes accessed", 0)), "memory": memory,
            "fits": sum(memory.values()) <= chip.memory, "collectives": exchanged, "seconds": seconds,
            "binds": max(seconds, key=seconds.get),
            "frames_per_second": clips * config.data.max_frames / max(max(seconds.values()), 1e-12)}


def step_of(config: Config, data: Data, mesh: Mesh, step: str) -> tuple[Callable, tuple]:
    """A step of a config ("training", "evaluation" or "prediction") and the shapes of its arguments on a mesh.

    Clips have data.max_frames frames, and features the default precision of `sedjax records`.
    """
    model = registry.build_from(config, data.task)
    columns = {**{key: data.widths[key] for key in model.inputs}, "labels": len(data.task.classes)}
    names = ("mean", "std", "level_mean", "level_std")
    features = {key: {"width": width, **{name: np.zeros(width) for name in names}} for key, width in columns.items()}
    durations = experiment.Durations.from_config(config, ceil_div(data.recordings, config.data.batch_size))
    adamw = optimizer_lib.make_optimizer(config.optimizer, durations.warmup, durations.total, durations.frozen)
    weights = losses.class_weights(data.task, **vars(config.loss))
    state = jax.eval_shape(lambda: train_state.create(model, adamw, features, config.train.ema > 0, 0))

    def placed(tree, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def batch(clips: int) -> dict:
        def array(kind, *shape):
            return jax.ShapeDtypeStruct((clips, *shape), kind)

        frames = config.data.max_frames
        inputs = {key: array(jnp.int16 if key == "audio" else jnp.float16, frames, columns[key])
                  for key in model.inputs}
        return placed({"features": inputs, "votes": array(jnp.float16, frames, columns["labels"]),
                       "frame_mask": array(jnp.bool_, frames), "clip_id": array(jnp.int32)}, AXIS)

    if step == "training":
        train = functools.partial(train_step.train_step, model=model, optimizer=adamw, weights=weights,
                                  accumulate=config.optimizer.accumulate, mixup=config.train.mixup,
                                  ema=config.train.ema)
        return parallel.compile_step(train, mesh, donate_state=True), (
            placed(state), batch(config.data.batch_size), placed(jax.eval_shape(lambda: jax.random.key(0))))
    clips = batch(_whole(config.data.eval_batch_size, mesh))
    if step == "prediction":
        predict = functools.partial(predict_step, model=model, pooling=config.decision.pooling, task=data.task)
        return parallel.compile_step(predict, mesh, by_row=True), (placed(state.eval_variables), clips)
    evaluate = functools.partial(eval_step, model=model, weights=weights, pooling=config.decision.pooling,
                                 task=data.task, frame_counts=False)
    thresholds = jax.ShapeDtypeStruct(decisions.candidates(config.decision, data.task).shape, jnp.float32)
    return parallel.compile_step(evaluate, mesh, by_row=True), (placed(state.eval_variables), clips, placed(thresholds))


def format_result(result: dict) -> str:
    """The result of `bench` as Markdown tables."""
    lines = [f"{result['model']}, {result['precision']}, for {result['chips']} x {result['machine']}: batches of "
             f"{result['batch_size']} clips of {result['frames']} frames, {result['eval_batch_size']} in evaluation, "
             f"features of {result['data']}. Compiled, not run; figures are per chip, with the speeds from "
             f"{result['source']}.", "",
             "| | " + " | ".join(result["steps"]) + " |", "|---" * (len(result["steps"]) + 1) + "|"]

    def row(name: str, shown: Callable[[dict], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(shown(step) for step in result["steps"].values()) + " |")

    for kind in ("arguments", "results", "temporary", "program"):
        row(f"memory: {kind}", lambda step, kind=kind: readable_bytes(step["memory"][kind]))
    row(f"fits into {readable_bytes(result['memory'])}", lambda step: "yes" if step["fits"] else "**no**")
    row("FLOP", lambda step: f"{step['flops']:.3g}")
    row("memory traffic", lambda step: readable_bytes(step["bytes"]))
    row("memory traffic by XLA's own count", lambda step: readable_bytes(step["xla_bytes"]))
    row("collectives", lambda step: ", ".join(f"{count} {kind} of {readable_bytes(moved)}" for kind, (count, moved) in
                                              step["collectives"].items()) or "none")
    for kind in KINDS:
        row(f"at least, for {kind}", lambda step, kind=kind: f"{step['seconds'][kind] * 1e3:.3f} ms")
    row("bottleneck", lambda step: step["binds"])
    row("real frames/s at best", lambda step: f"{step['frames_per_second']:,.0f}")
    for name, rows in result.get("sweep", {}).items():
        titles = ("machine", "batch size", "memory in use", "FLOP", "traffic", "collectives", "arithmetic", "memory",
                  "interconnect", "bottleneck", "frames/s at best")
        lines += ["", f"Training, by {name}:", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for case in rows:
            in_use = readable_bytes(sum(case["memory"].values())) + ("" if case["fits"] else " (**no**)")
            exchanged = readable_bytes(sum(moved for _, moved in case["collectives"].values()))
            times = [f"{case['seconds'][kind] * 1e3:.3f} ms" for kind in KINDS]
            cells = [case["machine"], f"{case['batch_size']}", in_use, f"{case['flops']:.3g}",
                     readable_bytes(case["bytes"]), exchanged, *times, case["binds"],
                     f"{case['frames_per_second']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cases(config: Config, name: str, dimension: str) -> list[tuple[str, Config]]:
    """Machine and config of each row of a sweep."""
    if dimension == "batch_size":
        return [(name, dataclasses.replace(config, data=dataclasses.replace(
            config.data, batch_size=config.data.batch_size << i))) for i in range(BATCH_SIZES)]
    return [(other, config) for other in chips.smaller(name)]


def _data_of(config: Config) -> Data:
    if not os.path.exists(config.data.path):
        return MLPC
    records = open_records(config.data.path, "train")
    widths = {key: entry["width"] for key, entry in records.features.items()}
    require_features(widths, registry.build_from(config, records.task).inputs, None,
                                    where=f"The dataset {config.data.path}")
    return Data(records.task, widths, len(records.lengths), config.data.path)


def _whole(clips: int, mesh: Mesh) -> int:
    """The size to which evaluation pads a batch: a multiple of the number of devices."""
    return ceil_div(clips, mesh.size) * mesh.size
