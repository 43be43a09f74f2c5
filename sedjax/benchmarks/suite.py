"""All figures of a config on an accelerator: batch sizes, placements, PyTorch, a complete training, evaluation.

    sedjax bench --config=embedding_transformer --config.precision=bfloat16 --suite

The records are random and of the size of MLPC 2025, since their values do not affect the time.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sedjax.benchmarks import chips, compile_for, experiment, throughput, timing
from sedjax.core import parallel
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.models import attention, registry

BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
PLACEMENTS = (("host", 1), ("device", 1), ("device", 50))  # with steps per call
EPOCHS = 16  # the length of the winning system's training
FRAMES = 250
ATTENTION_CALLS = 20
KINDS = {"A100": "a100", "H100": "h100", "H200": "h200", "v4": "v4", "v5 lite": "v5e", "v5e": "v5e", "v5p": "v5p",
         "v6 lite": "v6e", "v6e": "v6e"}  # parts of JAX's device kinds


@dataclasses.dataclass(frozen=True)
class RandomRecords:
    """A plan.Source of random recordings of `FRAMES` frames."""

    task: Task
    widths: dict[str, int]
    lengths: np.ndarray
    path: str = ""

    @property
    def features(self) -> dict[str, dict]:
        return {key: self._entry(width) for key, width in self.widths.items()}

    @property
    def labels(self) -> dict:
        return self._entry(len(self.task.classes))

    def read(self, index: int, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rng = np.random.default_rng(index % 8)
        features = {key: rng.random((FRAMES, self.widths[key]), np.float32).astype(np.float16) for key in keys}
        return features, (rng.random((FRAMES, len(self.task.classes)), np.float32) < 0.1).astype(np.float16)

    @staticmethod
    def _entry(width: int) -> dict:
        return {"width": width, "mean": np.full(width, 0.5), "std": np.ones(width), "level_mean": np.zeros(width),
                "level_std": np.ones(width)}


def bench(config: Config, steps: int, against: dict[str, tuple[bool, str]],
          recordings: int = compile_for.MLPC.recordings) -> dict:
    """All figures, in a form that can be written as JSON; a failed one, for example for lack of memory, is an `error`.

    Args:
      config: experiment; batch size, placement and steps per call are replaced.
      steps: number of steps to time in each measurement.
      against: peers in PyTorch, see torch_peer.VARIANTS; none if empty.
      recordings: size of the training split.
    """
    device, count = jax.devices()[0], len(jax.devices())
    records = RandomRecords(compile_for.MLPC.task, compile_for.MLPC.widths, np.full(recordings, FRAMES, np.int32))
    rows, ceiling = [], None
    for size in BATCH_SIZES:
        if size % count or size > recordings:
            continue
        for placement, calls in PLACEMENTS:
            case = _case(config, size, placement, calls)
            rows.append({"batch_size": size, "placement": placement, "steps_per_call": calls,
                         **_or_error(lambda case=case: _training(case, records, steps))})
            if ceiling is None:
                ceiling = throughput.matmul_ceiling(parallel.make_mesh(), config.precision,
                                                    [(size * FRAMES, 1024, 3072)])
    if not rows:
        raise UserError(f"--suite: none of the batch sizes {BATCH_SIZES} is divisible by {count} devices.")
    return {"device": {"platform": device.platform, "kind": device.device_kind, "devices": count},
            "model": config.model["name"], "precision": config.precision, "steps": steps, "ceiling": ceiling,
            "training": rows, "evaluation": _or_error(lambda: _evaluation(config, records, steps)),
            "whole_training": _or_error(lambda: _whole_training(config, records)),
            "against": {size: _or_error(lambda size=size: _against(_case(config, size, "device", 1), records, steps,
                                                                   against))
                        for size in (32, 512) if against and size <= recordings and size % count == 0},
            "attention": _or_error(_attention), "memory_stats": device.memory_stats() or {},
            "predicted": _or_error(lambda: _predicted(config, device.device_kind))}


def format_result(result: dict) -> str:
    """The result of `bench` as Markdown."""
    device, ceiling = result["device"], result["ceiling"]
    lines = [f"{result['model']}, {result['precision']}, on {device['devices']} x {device['kind']} "
             f"({device['platform']}); the fastest matrix product: {ceiling['flops_per_second'] / 1e12:.3g} TFLOP/s "
             f"({ceiling['shape']}).", "",
             "| batch size | data | steps per call | frames/s | ms/step | of the ceiling | to the first step |",
             "|---" * 7 + "|"]
    for row in result["training"]:
        lines.append(f"| {row['batch_size']} | {row['placement']} | {row['steps_per_call']} | " + (
            f"{row['error']} | | | |" if "error" in row else
            f"{row['frames_per_second']:,.0f} | {row['seconds_per_step'] * 1e3:.2f} | "
            f"{row['flops_per_second'] / ceiling['flops_per_second']:.1%} | {row['first_step_seconds']:.1f} s |"))
    lines.append("")

    def line(name: str, shown: Callable[[dict], str], figures: dict) -> None:
        lines.append(f"- {name}: {figures['error'] if 'error' in figures else shown(figures)}")

    line("evaluation, batches of 512", lambda figures: f"{figures['frames_per_second']:,.0f} frames/s",
         result["evaluation"])
    line(f"{EPOCHS} epochs in batches of 32, from device memory, 50 steps per call",
         lambda figures: f"{figures['seconds']:.1f} s for {figures['steps']:,} steps, including compilation; "
                         f"{figures['first_step_seconds']:.1f} s of it to the first step", result["whole_training"])
    for size, peers in result["against"].items():
        for name, figures in ({"PyTorch": peers} if "error" in peers else peers).items():
            if name != "sedjax":
                line(f"{name}, batches of {size}",
                     lambda figures: f"{figures['frames_per_second']:,.0f} frames/s; sedjax is {figures['ratio']:.2f} "
                                     f"x as fast ({figures['lowest_ratio']:.2f} to {figures['highest_ratio']:.2f} in "
                                     f"{timing.ROUNDS} turns)", figures)
    line("attention without dropout, this platform's kernel against XLA's",
         lambda figures: f"{figures['ratio']:.2f} x ({figures['lowest_ratio']:.2f} to {figures['highest_ratio']:.2f})",
         result["attention"])
    line("lower bounds for a step of batch size 32, from the compiler",
         lambda figures: ", ".join(f"{kind} {figures['seconds'][kind] * 1e3:.2f} ms" for kind in compile_for.KINDS),
         result["predicted"])
    stats = result["memory_stats"]
    lines.append(f"- memory of the first device: peak {stats.get('peak_bytes_in_use', 0) / 1e9:.2f} of "
                 f"{stats.get('bytes_limit', 0) / 1e9:.2f} GB" if stats else "- memory of the device: unknown")
    return "\n".join(lines)


def _case(config: Config, batch_size: int, placement: str, calls: int) -> Config:
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, batch_size=batch_size, eval_batch_size=512, placement=placement,
                                         max_frames=FRAMES, bucket_frames=FRAMES, crop_frames=0),
        train=dataclasses.replace(config.train, steps_per_call=calls, log_every=f"{calls} steps", initial_weights="",
                                  duration=f"{EPOCHS} epochs", evaluate_every="1000000 epochs",
                                  save_every="1000000 epochs"))


def _training(config: Config, records: RandomRecords, steps: int) -> dict:
    steps = experiment.whole_calls(config, steps)
    began = time.perf_counter()
    training = throughput.Training(config, records=records)
    training.warm_up(1)
    first_step = time.perf_counter() - began
    training.warm_up(steps)
    measured = training.stretch(steps)
    return {"frames_per_second": measured.frames_per_second, "seconds_per_step": measured.seconds / steps,
            "flops_per_second": measured.flops / measured.seconds, "waiting": measured.waiting / measured.seconds,
            "first_step_seconds": first_step}


def _evaluation(config: Config, records: RandomRecords, steps: int) -> dict:
    training = throughput.Training(_case(config, 512 if len(records.lengths) >= 512 else len(jax.devices()), "host", 1),
                                   records=records)
    resident = dataclasses.replace(training.config, data=dataclasses.replace(training.config.data, placement="device"))
    evaluation = throughput.Evaluation(training, records, resident)
    steps = min(steps, evaluation.batches)
    evaluation.warm_up(steps)
    return {"frames_per_second": evaluation.stretch(steps).frames_per_second}


def _whole_training(config: Config, records: RandomRecords) -> dict:
    began = time.perf_counter()
    training = throughput.Training(_case(config, 32, "device", 50), records=records)
    training.warm_up(1)
    first_step = time.perf_counter() - began
    steps = EPOCHS * training.batches
    training.stretch(steps)
    return {"seconds": time.perf_counter() - began, "first_step_seconds": first_step, "steps": steps}


def _against(config: Config, records: RandomRecords, steps: int, variants: dict[str, tuple[bool, str]]) -> dict:
    turn_steps = experiment.turn_steps(config, steps)
    training = throughput.Training(config, records=records)
    training.warm_up(turn_steps)
    same = {name: variant for name, variant in variants.items() if variant[1] == config.precision}
    return experiment.against(training, same, turn_steps)


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

        compiled = jax.jit(repeated)
        jax.block_until_ready(compiled(qkv))

        def run(compiled=compiled) -> float:
            began = time.perf_counter()
            jax.block_until_ready(compiled(qkv))
            return ATTENTION_CALLS / (time.perf_counter() - began)

        contestants[name] = run
    return timing.ratios(timing.take_turns(contestants), "own", "calls_per_second")["xla"]


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
