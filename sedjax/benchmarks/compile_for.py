"""What a config asks of a machine that is not there: XLA compiles its steps for TPUs and GPUs on any computer.

    sedjax bench --config=embedding_transformer --compile_for=v5e:2x4

The compiler tells arithmetic, memory, memory traffic and collectives of each chip. With the chip's published speeds
these give the least time that a step can take, and what binds it. Nothing is run.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sedjax.benchmarks import chips, compiled
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
BATCH_SIZES = 4  # of a sweep: the config's, and twice, four and eight times as many clips


@dataclasses.dataclass(frozen=True)
class Data:
    """What records look like: task, columns of each feature, recordings of the training split; "" for no path."""

    task: Task
    widths: dict[str, int]
    recordings: int
    path: str = ""


# What the challenge's records have, where there are none.
MLPC = Data(MLPC_2025, {"embeddings": 768, "melspectrogram": 64, "mfcc": 32, "audio": 1920}, recordings=4938)


def bench(config: Config, name: str, sweep: Sequence[str] = ()) -> dict:
    """What the steps of a config cost each chip of a machine, as JSON can hold it.

    Args:
      config: the experiment; task and widths are those of its records, or of MLPC 2025 where there are none.
      name: of the machine, see chips.machine.
      sweep: of "batch_size" and "chips", what to vary for the training step.

    Raises:
      UserError: the machine is unknown, its compiler is missing, or the chips cannot share a batch.
    """
    for dimension in sweep:
        if dimension not in DIMENSIONS:
            raise UserError(f"--sweep with --compile_for knows {' and '.join(DIMENSIONS)}, not {dimension!r}.")
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
    """What a step costs each chip.

    Returns:
      `flops`; `bytes`, to and from main memory; `xla_bytes`, its own count of them, see compiled; `memory` that is
      held, in bytes by kind, and whether it `fits`; `collectives`, number and bytes by kind; `seconds` that arithmetic,
      memory and interconnect take at least; which of them `binds`; `frames_per_second` at best.
    """
    function, arguments = step_of(config, data, machine.mesh, step)
    program = function.lower(*arguments).compile(machine.options)
    analysis, held = program.cost_analysis() or {}, program.memory_analysis()
    text = compiled.parse(program.as_text())
    memory = {"arguments": held.argument_size_in_bytes,
              "results": held.output_size_in_bytes - held.alias_size_in_bytes,  # that do not replace arguments
              "temporary": held.temp_size_in_bytes, "program": held.generated_code_size_in_bytes}
    chip, count = machine.chip, machine.mesh.size
    flops, moved, exchanged = float(analysis.get("flops", 0)), compiled.traffic(text), compiled.collectives(text)
    if not flops:  # for a GPU nothing is counted: what libraries do is not known to XLA
        function, arguments = step_of(config, data, parallel.make_mesh(1), step)
        flops = float((function.lower(*arguments).cost_analysis() or {}).get("flops", 0)) / count
    # In a ring each chip sends all but its own part; twice to add up, the second time the sums.
    sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in exchanged.items()) * (count - 1) / count
    rate = chip.flops if config.precision == "bfloat16" else chip.float32_flops
    seconds = {"arithmetic": flops / rate, "memory": moved / chip.bandwidth, "interconnect": sent / chip.interconnect}
    clips = config.data.batch_size if step == "training" else _whole(config.data.eval_batch_size, machine.mesh)
    return {"flops": flops, "bytes": moved, "xla_bytes": float(analysis.get("bytes accessed", 0)), "memory": memory,
            "fits": sum(memory.values()) <= chip.memory, "collectives": exchanged, "seconds": seconds,
            "binds": max(seconds, key=seconds.get),
            "frames_per_second": clips * config.data.max_frames / max(max(seconds.values()), 1e-12)}


def step_of(config: Config, data: Data, mesh: Mesh, step: str) -> tuple[Callable, tuple]:
    """A step of a config, "training", "evaluation" or "prediction", and shapes of its arguments on a mesh.

    Clips have data.max_frames frames, and features the precision that build_records gives them by default.
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
    """Tables of what `bench` returns, as Markdown."""
    lines = [f"{result['model']}, {result['precision']}, for {result['chips']} x {result['machine']}: batches of "
             f"{result['batch_size']} clips of {result['frames']} frames, {result['eval_batch_size']} in evaluation, "
             f"features of {result['data']}. Compiled, not run; each figure is that of one chip, with the speeds of "
             f"{result['source']}.", "",
             "| | " + " | ".join(result["steps"]) + " |", "|---" * (len(result["steps"]) + 1) + "|"]

    def row(name: str, shown: Callable[[dict], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(shown(found) for found in result["steps"].values()) + " |")

    for kind in ("arguments", "results", "temporary", "program"):
        row(f"memory: {kind}", lambda found, kind=kind: readable_bytes(found["memory"][kind]))
    row(f"fits into {readable_bytes(result['memory'])}", lambda found: "yes" if found["fits"] else "**no**")
    row("FLOP", lambda found: f"{found['flops']:.3g}")
    row("to and from memory", lambda found: readable_bytes(found["bytes"]))
    row("the same by XLA's own count", lambda found: readable_bytes(found["xla_bytes"]))
    row("collectives", lambda found: ", ".join(f"{count} {kind} of {readable_bytes(moved)}" for kind, (count, moved) in
                                               found["collectives"].items()) or "none")
    for kind in KINDS:
        row(f"at least, for {kind}", lambda found, kind=kind: f"{found['seconds'][kind] * 1e3:.3f} ms")
    row("what binds", lambda found: found["binds"])
    row("real frames a second at best", lambda found: f"{found['frames_per_second']:,.0f}")
    for name, rows in result.get("sweep", {}).items():
        titles = ("machine", "batch size", "memory held", "FLOP", "traffic", "collectives", "arithmetic", "memory",
                  "interconnect", "binds", "frames/s at best")
        lines += ["", f"Training, by {name}:", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for found in rows:
            held = readable_bytes(sum(found["memory"].values())) + ("" if found["fits"] else " (**no**)")
            exchanged = readable_bytes(sum(moved for _, moved in found["collectives"].values()))
            times = [f"{found['seconds'][kind] * 1e3:.3f} ms" for kind in KINDS]
            cells = [found["machine"], f"{found['batch_size']}", held, f"{found['flops']:.3g}",
                     readable_bytes(found["bytes"]), exchanged, *times, found["binds"],
                     f"{found['frames_per_second']:,.0f}"]
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
    require_features(widths, registry.build_from(config, records.task).features, None,
                                    where=f"The dataset {config.data.path}")
    return Data(records.task, widths, len(records.lengths), config.data.path)


def _whole(clips: int, mesh: Mesh) -> int:
    """As evaluation pads a batch: to a multiple of the devices."""
    return ceil_div(clips, mesh.size) * mesh.size
