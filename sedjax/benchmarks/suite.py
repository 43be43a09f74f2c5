"""All figures of a config on an accelerator: batch sizes, placements, PyTorch, a complete training, evaluation.

    sedjax bench --config=embedding_transformer --config.precision=bfloat16 --suite

The records are random and of the size of MLPC 2025, since their values do not affect the time.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sedjax.benchmarks import chips, compile_for, experiment, throughput, timing
from sedjax.core import parallel
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.data.plan import Source
from sedjax.models import attention, registry

BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
PLACEMENTS = (("host", 1), ("device", 1), ("device", 50))  # with steps per call
EPOCHS = 16  # the length of the winning system's training
FRAMES = 250
ATTENTION_CALLS = 20
KINDS = {"A100": "a100", "H100": "h100", "H200": "h200", "v4": "v4", "v5 lite": "v5e", "v5e": "v5e", "v5p": "v5p",
         "v6 lite": "v6e", "v6e": "v6e"}  # parts of JAX's device kinds


def bench(config: Config, steps: int, against: bool = False, recordings: int = len(compile_for.MLPC.lengths)) -> dict:
    """All figures, in a form that can be written as JSON; a failed one, for example for lack of memory, is an `error`.

    Args:
      config: experiment; batch size, placement and steps per call are replaced.
      steps: number of steps to time in each measurement.
      against: also time peers in PyTorch, in the config's precision.
      recordings: size of the training split.
    """
    if against:
        experiment.require_peer(config)
    device, count = jax.devices()[0], len(jax.devices())
    records = dataclasses.replace(compile_for.MLPC, lengths=np.full(recordings, FRAMES, np.int32))
    sizes = [size for size in BATCH_SIZES if size % count == 0 and size <= recordings]
    if not sizes:
        raise UserError(f"--suite: none of the batch sizes {BATCH_SIZES} is divisible by {count} devices.")
    ceiling = throughput.matmul_ceiling(parallel.make_mesh(), config.precision, [(sizes[0] * FRAMES, 1024, 3072)])
    rows = []
    for size, (placement, calls) in itertools.product(sizes, PLACEMENTS):
        case = _case(config, size, placement, calls)
        figures = _or_error(lambda case=case: experiment.measure(case, steps, records=records)[1])
        if "error" not in figures:
            figures["ceiling_share"] = figures["flops_per_second"] / ceiling["flops_per_second"]
        rows.append({"batch_size": size, "placement": placement, "steps_per_call": calls, **figures})
    return {"device": {"platform": device.platform, "kind": device.device_kind, "devices": count},
            "model": config.model["name"], "precision": config.precision, "steps": steps, "ceiling": ceiling,
            "training": rows, "evaluation": _or_error(lambda: _evaluation(config, records, steps)),
            "whole_training": _or_error(lambda: _whole_training(config, records)),
            "against": {size: _or_error(lambda size=size: _against(_case(config, size, "device", 1), records, steps))
                        for size in (32, 512) if against and size <= recordings and size % count == 0},
            "attention": _or_error(_attention), "memory_stats": device.memory_stats() or {},
            "predicted": _or_error(lambda: _predicted(config, device.device_kind))}


def _case(config: Config, batch_size: int, placement: str, calls: int) -> Config:
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, batch_size=batch_size, eval_batch_size=512, placement=placement,
                                         max_frames=FRAMES, bucket_frames=FRAMES, crop_frames=0),
        train=dataclasses.replace(config.train, steps_per_call=calls, log_every=f"{calls} steps", initial_weights="",
                                  duration=f"{EPOCHS} epochs", evaluate_every="1000000 epochs",
                                  save_every="1000000 epochs"))


def _evaluation(config: Config, records: Source, steps: int) -> dict:
    training = throughput.Training(_case(config, 512 if len(records.lengths) >= 512 else len(jax.devices()), "host", 1),
                                   records=records)
    resident = dataclasses.replace(training.config, data=dataclasses.replace(training.config.data, placement="device"))
    return experiment.measure_evaluation(throughput.Evaluation(training, records, resident), steps)


def _whole_training(config: Config, records: Source) -> dict:
    began = time.perf_counter()
    training = throughput.Training(_case(config, 32, "device", 50), records=records)
    training.warm_up(1)
    first_step = time.perf_counter() - began
    steps = EPOCHS * training.feed.plan.batches
    training.stretch(steps)
    return {"epochs": EPOCHS, "steps": steps, "seconds": time.perf_counter() - began, "first_step_seconds": first_step}


def _against(config: Config, records: Source, steps: int) -> dict:
    return experiment.compare(throughput.Training(config, records=records), steps, [config.precision])


def _attention() -> dict:
    """Speed of this platform's attention relative to XLA's, on 32 clips in bfloat16."""
    qkv = jax.random.normal(jax.random.key(0), (32, FRAMES, 3072), registry.DTYPES["bfloat16"])
    mask = jnp.ones((32, FRAMES), bool)
    contestants = {}
    for name, function in (("own", attention.self_attention), ("xla", attention.by_xla)):
        # Within one call, since starting one takes as long as attention: the outputs are the next queries.
        def repeated(qkv: jax.Array, function=function) -> jax.Array:
            return jax.lax.fori_loop(0, ATTENTION_CALLS, lambda _, qkv: jax.lax.dynamic_update_slice(
                qkv, function(qkv, mask, 4), (0, 0, 0)), qkv)

        run = functools.partial(jax.jit(repeated), qkv)
        jax.block_until_ready(run())
        contestants[name] = lambda run=run: ATTENTION_CALLS * timing.calls_per_second(run, 0)
    return timing.compare(contestants, "calls_per_second")["xla"]


def _predicted(config: Config, kind: str) -> dict:
    """The cost from compile_for on the devices present."""
    name = next((chip for part, chip in KINDS.items() if part in kind), None)
    if name is None:
        raise UserError(f"there are no published figures for {kind}")
    machine = chips.Machine(name, (chips.TPUS | chips.GPUS)[name], parallel.make_mesh(), {})
    return compile_for.cost(_case(config, 32, "host", 1), compile_for.MLPC, machine, "training")


def _or_error(measure: Callable[[], dict]) -> dict:
    try:
        return measure()
    except Exception as error:  # out of memory, a compiler that fails: the other rows are worth having
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
