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
from sedjax.core.numbers import ceil_div
from sedjax.core.task import MLPC_2025, Task
from sedjax.data.plan import Source
from sedjax.data.records import open_records
from sedjax.inference.trained import predict_step
from sedjax.scoring import decisions, losses
from sedjax.scoring.evaluator import eval_step
from sedjax.training import experiment

DIMENSIONS = ("batch_size", "chips")
STEPS = ("training", "evaluation", "prediction")
KINDS = ("arithmetic", "memory", "interconnect")
BATCH_SIZES = 4  # in a sweep: 1, 2, 4 and 8 times the config's


@dataclasses.dataclass(frozen=True)
class RandomRecords:
    """A plan.Source of random recordings.

    Attributes:
      task: their task.
      widths: columns of each feature.
      lengths: frames of each recording.
    """

    task: Task
    widths: dict[str, int]
    lengths: np.ndarray
    path: str = "MLPC 2025"

    @property
    def features(self) -> dict[str, dict]:
        return {key: self._entry(width) for key, width in self.widths.items()}

    @property
    def labels(self) -> dict:
        return self._entry(len(self.task.classes))

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rng, frames = np.random.default_rng(index % 8), self.lengths[index]
        features = {key: rng.random((frames, self.widths[key]), np.float32).astype(np.float16) for key in keys}
        return features, (rng.random((frames, len(self.task.classes)), np.float32) < 0.1).astype(np.float16)

    @staticmethod
    def _entry(width: int) -> dict:
        return {"width": width, "mean": np.full(width, 0.5), "std": np.ones(width), "level_mean": np.zeros(width),
                "level_std": np.ones(width)}


# Of the size of the challenge's training split.
MLPC = RandomRecords(MLPC_2025, {"embeddings": 768, "melspectrogram": 64, "mfcc": 32, "audio": 1920},
                     np.full(4938, 250, np.int32))


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
    records = open_records(config.data.path, "train") if os.path.exists(config.data.path) else MLPC
    machine = chips.machine(name)
    parallel.require_divisible(config.data.batch_size, machine.mesh, "data.batch_size")
    result = {"machine": name, "chips": machine.mesh.size, "source": machine.chip.source,
              "model": config.model["name"], "precision": config.precision, "batch_size": config.data.batch_size,
              "eval_batch_size": config.data.eval_batch_size, "frames": config.data.max_frames,
              "data": records.path, "memory": machine.chip.memory,
              "steps": {step: cost(config, records, machine, step) for step in STEPS}}
    for dimension in sweep:
        result.setdefault("sweep", {})[dimension] = [
            {"machine": other, "batch_size": case.data.batch_size,
             **cost(case, records, chips.machine(other), "training")}
            for other, case in _cases(config, name, dimension)]
    return result


def cost(config: Config, records: Source, machine: chips.Machine, step: str) -> dict:
    """The cost of a step per chip.

    Returns:
      `flops`; `bytes` to and from main memory; `xla_bytes`, XLA's own count of them (see compiled); `memory` in use, in
      bytes by kind, and whether it `fits`; `collectives`, number and bytes by kind; `seconds`, lower bounds for
      arithmetic, memory and interconnect; which of them `binds`; `frames_per_second`, an upper bound.
    """
    function, arguments = step_of(config, records, machine.mesh, step)
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


def step_of(config: Config, records: Source, mesh: Mesh, step: str) -> tuple[Callable, tuple]:
    """A step of a config ("training", "evaluation" or "prediction") and the shapes of its arguments on a mesh.

    Clips have data.max_frames frames, and features the default precision of `sedjax records`.
    """
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, initial_weights=""))
    setup = experiment.prepare(config, 1, records)
    model, task, state = setup.model, setup.task, jax.eval_shape(setup.initial_state)

    def placed(tree, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def batch(clips: int) -> dict:
        def array(kind, *shape):
            return jax.ShapeDtypeStruct((clips, *shape), kind)

        frames = config.data.max_frames
        inputs = {key: array(jnp.int16 if key == "audio" else jnp.float16, frames, setup.features[key]["width"])
                  for key in model.inputs}
        return placed({"features": inputs, "votes": array(jnp.float16, frames, len(task.classes)),
                       "frame_mask": array(jnp.bool_, frames), "clip_id": array(jnp.int32)}, AXIS)

    if step == "training":
        return parallel.compile_step(setup.step, mesh, donate_state=True), (
            placed(state), batch(config.data.batch_size), placed(jax.eval_shape(lambda: jax.random.key(0))))
    clips = batch(_whole(config.data.eval_batch_size, mesh))
    if step == "prediction":
        predict = functools.partial(predict_step, model=model, pooling=config.decision.pooling, task=task)
        return parallel.compile_step(predict, mesh, by_row=True), (placed(state.eval_variables), clips)
    evaluate = functools.partial(eval_step, model=model, weights=losses.class_weights(task, **vars(config.loss)),
                                 pooling=config.decision.pooling, task=task, frame_counts=False)
    thresholds = jax.ShapeDtypeStruct(decisions.candidates(config.decision, task).shape, jnp.float32)
    return parallel.compile_step(evaluate, mesh, by_row=True), (placed(state.eval_variables), clips, placed(thresholds))


def _cases(config: Config, name: str, dimension: str) -> list[tuple[str, Config]]:
    """Machine and config of each row of a sweep."""
    if dimension == "batch_size":
        return [(name, dataclasses.replace(config, data=dataclasses.replace(
            config.data, batch_size=config.data.batch_size << i))) for i in range(BATCH_SIZES)]
    return [(other, config) for other in chips.smaller(name)]


def _whole(clips: int, mesh: Mesh) -> int:
    """The size to which evaluation pads a batch: a multiple of the number of devices."""
    return ceil_div(clips, mesh.size) * mesh.size
