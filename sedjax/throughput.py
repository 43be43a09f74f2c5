"""How many real frames a second training and evaluation take, and what the device could do at best."""

import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sedjax import decisions, input_pipeline, losses, models, optimizer, parallel, steps, train_state
from sedjax.config import Config
from sedjax.models import DTYPES
from sedjax.task import Task

LONG_PRODUCT_SECONDS = 0.1
PRODUCT_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Some steps in a row.

    Attributes:
      seconds: wall time.
      real_frames, padded_frames: without and with the padding, of clips and to full batches.
      waiting: seconds in which the device had nothing to do because the next batch was not there.
      flops: floating-point operations by XLA's cost analysis, padding included; 0 where it is not known.
    """

    seconds: float
    real_frames: int
    padded_frames: int
    waiting: float = 0.0
    flops: float = 0.0

    @property
    def frames_per_second(self) -> float:
        return self.real_frames / self.seconds


class Loop:
    """Steps over the batches of a split, over and over, read as the commands read them.

    A subclass sets `config`, `mesh`, `clips` and `batches`, the number of batches before all clips have been seen, and
    says which clips a batch holds, how it is read, and what a step is.
    """

    config: Config
    mesh: Mesh
    clips: input_pipeline.Clips
    batches: int

    def __init__(self):
        self._next = 0
        self._programs: dict[int, tuple[Callable, float]] = {}

    def ids(self, number: int) -> np.ndarray:
        """The clips of batch `number`, -1 for padding."""
        raise NotImplementedError

    def read(self, number: int) -> steps.Batch:
        raise NotImplementedError

    def compile(self, batch: steps.Batch) -> tuple[Callable, float]:
        """(program, its FLOPs) for batches of this shape."""
        raise NotImplementedError

    def run(self, program: Callable, batch: steps.Batch) -> jax.Array:
        """Takes a step; returns something small that is ready when the step is done."""
        raise NotImplementedError

    @property
    def padded_share(self) -> float:
        """Of the frames that are computed while every clip is seen once: padding of clips, and of the last batch."""
        computed = sum(len(self.ids(number)) * self._frames(number) for number in range(self.batches))
        return 1 - int(self.clips.frames.sum()) / computed

    def warm_up(self, count: int) -> None:
        """Compiles what the next `count` steps need, and takes a step of each shape."""
        first, seen = self._next, set()
        for number in range(first, first + count):
            if (frames := self._frames(number)) not in seen:
                seen.add(frames)
                self._next = number
                self.stretch(1)
        self._next = first

    def stretch(self, count: int) -> Stretch:
        """Times the next `count` steps, from where the last stretch ended, once the first batch is there."""
        numbers = range(self._next, self._next + count)
        self._next += count
        real = sum(int(self.clips.frames[ids[ids >= 0]].sum()) for ids in map(self.ids, numbers))
        padded = sum(len(self.ids(number)) * self._frames(number) for number in numbers)
        waiting = flops = 0.0
        running = None
        began = before = 0.0
        for batch in parallel.to_devices(input_pipeline.stream(self.read, numbers.start, numbers.stop), self.mesh):
            if running is None:
                began = time.perf_counter()
            elif running.is_ready():
                waiting += time.perf_counter() - before
            frames = batch["frame_mask"].shape[1]
            if frames not in self._programs:
                self._programs[frames] = self.compile(batch)
            program, cost = self._programs[frames]
            previous, running = running, self.run(program, batch)
            flops += cost
            # As in training, the host is one step ahead of the device, and no more.
            jax.block_until_ready(previous)
            before = time.perf_counter()
        jax.block_until_ready(running)
        return Stretch(time.perf_counter() - began, real, padded, waiting, flops)

    def _frames(self, number: int) -> int:
        ids = self.ids(number)
        return input_pipeline.padded_frames(int(self.clips.frames[ids].max(where=ids >= 0, initial=1)),
                                            self.config.data)


class Training(Loop):
    """Training as the command `train` does it, from records to parameters, without saving anything."""

    def __init__(self, config: Config, devices: int | None = None):
        super().__init__()
        self.config, self.mesh = config, parallel.make_mesh(devices)
        batch_size = config.data.batch_size
        parallel.require_divisible(batch_size, self.mesh, "data.batch_size", 2 if config.train.mixup else 1)
        self._records = records = input_pipeline.open_records(config.data.path, "train")
        self._model = model = models.build_from(config, records.task)
        widths = {key: entry["width"] for key, entry in records.features.items()}
        input_pipeline.require_features(widths, model.features, None, where=f"The dataset {config.data.path}")
        # Of the first epoch: with data.crop_frames, those of others are as long.
        self.clips = input_pipeline.training_clips(records.lengths, config.data, records.task, config.train.seed, 0)
        self.batches = input_pipeline.steps_per_epoch(self.clips, batch_size)
        self._plan = functools.lru_cache(2)(lambda epoch: input_pipeline.order(
            self.clips, batch_size, config.data.pool_batches, config.train.seed, epoch))
        features = {**{key: records.features[key] for key in model.features}, "labels": records.labels}
        adamw = optimizer.make_optimizer(config.optimizer, 0, self.batches)
        state = train_state.create(model, adamw, features, config.train.ema > 0, config.train.seed)
        self._state = parallel.replicate(state, self.mesh)
        self._key = parallel.replicate(jax.random.key(config.train.seed), self.mesh)
        self._step = functools.partial(steps.train_step, model=model, optimizer=adamw, ema=config.train.ema,
                                       mixup=config.train.mixup,
                                       weights=losses.class_weights(config.loss, records.task))

    @property
    def task(self) -> Task:
        return self._records.task

    @property
    def variables(self) -> dict:
        return self._state.weights

    def ids(self, number: int) -> np.ndarray:
        epoch, batch = divmod(number, self.batches)
        return self._plan(epoch)[batch]

    def read(self, number: int) -> steps.Batch:
        return input_pipeline.read_batch(self._records, self.clips, self.ids(number), self._model.features,
                                         self.config.data, parallel.local_rows(self.config.data.batch_size))

    def compile(self, batch: steps.Batch) -> tuple[Callable, float]:
        arguments = (self._state, batch, self._key)
        step = functools.partial(self._step, accumulate=self.config.optimizer.accumulate)
        program = parallel.compile_step(step, self.mesh, donate_state=True).lower(*arguments).compile()
        # Of the batch as a whole: XLA counts the body of a loop over its parts once.
        return program, _flops(parallel.compile_step(self._step, self.mesh).lower(*arguments))

    def run(self, program: Callable, batch: steps.Batch) -> jax.Array:
        self._state, scalars = program(self._state, batch, self._key)
        return scalars["loss"]

    def product_shapes(self) -> list[tuple[int, int, int]]:
        """The largest matrix products (m, k, n) of a transformer's step; none for other models."""
        width, feed_forward = (self.config.model.get(key, 0) for key in ("width", "feed_forward"))
        rows = self.config.data.batch_size * self._frames(0)
        return [(rows, width, n) for n in (width, 3 * width, feed_forward) if width and feed_forward]


class Evaluation(Loop):
    """Evaluation on the validation split, as after an epoch."""

    def __init__(self, config: Config, variables: dict, mesh: Mesh):
        super().__init__()
        self.config, self.mesh, self._variables = config, mesh, variables
        self._records = input_pipeline.open_records(config.data.path, "validation")
        task = self._records.task
        self._model = models.build_from(config, task)
        self.clips, self._plan = input_pipeline.evaluation_plan(self._records, config.data, mesh.size)
        self.batches = len(self._plan)
        self._thresholds = decisions.candidates(config.decision, task)
        self._step = functools.partial(steps.eval_step, model=self._model, pooling=config.decision.pooling, task=task,
                                       weights=losses.class_weights(config.loss, task))

    def ids(self, number: int) -> np.ndarray:
        return self._plan[number % self.batches]

    def read(self, number: int) -> steps.Batch:
        return input_pipeline.read_evaluation_batch(self._records, self.clips, self._plan, self._model.features,
                                                    self.config.data, number % self.batches)

    def compile(self, batch: steps.Batch) -> tuple[Callable, float]:
        lowered = parallel.compile_step(self._step, self.mesh).lower(self._variables, batch, self._thresholds)
        return lowered.compile(), _flops(lowered)

    def run(self, program: Callable, batch: steps.Batch) -> jax.Array:
        return program(self._variables, batch, self._thresholds)["loss"]


def matmul_ceiling(mesh: Mesh, precision: str, shapes: Iterable[tuple[int, int, int]] = ()) -> dict:
    """The fastest matrix product on the devices of a mesh, their rows shared by the devices.

    Args:
      mesh: the devices.
      precision: "float32" or "bfloat16".
      shapes: (m, k, n) to try besides squares, which double until one takes long.

    Returns:
      `flops_per_second`, best of several runs of several sizes, and the `shape` that reached it.
    """
    best = (0.0, "")
    squares = [(n * mesh.size, n, n) for n in (1024 << i for i in range(5))]
    for m, k, n in (*shapes, *squares):
        keys = jax.random.split(jax.random.key(0))
        a = jax.random.normal(keys[0], (m, k), DTYPES[precision])
        b = parallel.replicate(jax.random.normal(keys[1], (k, n), DTYPES[precision]), mesh)
        product = jax.jit(jnp.matmul)
        a = parallel.shard({"a": np.asarray(a)}, mesh)["a"]
        jax.block_until_ready(product(a, b))
        seconds, times = [], 1
        for _ in range(PRODUCT_REPEATS):
            began = time.perf_counter()
            for _ in range(times):
                found = product(a, b)
            jax.block_until_ready(found)
            seconds.append((time.perf_counter() - began) / times)
            times = max(1, int(LONG_PRODUCT_SECONDS / 2 / min(seconds)))  # no burst of a millisecond is a ceiling
        best = max(best, (2 * m * k * n / min(seconds[1:]), f"{m} x {k} x {n}"))
        if m == k * mesh.size == n * mesh.size and min(seconds) > LONG_PRODUCT_SECONDS:
            break
    return {"flops_per_second": best[0], "shape": best[1], "precision": precision}


def peak_memory() -> dict:
    """`bytes`, the most that was in use so far, and `of` what: a device where it tells, else this process."""
    counts = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(counts):
        return {"bytes": max(counts), "of": "the fullest device"}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "this process"}


def _flops(lowered: jax.stages.Lowered) -> float:
    """What XLA counts of a program before it is split over devices and its products become library calls."""
    return max(float((lowered.cost_analysis() or {}).get("flops", 0)), 0.0)
