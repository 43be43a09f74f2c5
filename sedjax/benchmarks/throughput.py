"""Throughput of training and evaluation in real frames per second, and the ceiling of the device."""

import abc
import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sedjax.benchmarks import flops, timing
from sedjax.core import parallel
from sedjax.core.config import Config
from sedjax.data.batches import Batch
from sedjax.data.feed import Feed
from sedjax.data.plan import Source
from sedjax.data.records import open_records
from sedjax.models.registry import DTYPES
from sedjax.scoring import decisions
from sedjax.scoring.evaluator import Evaluator
from sedjax.training import experiment, train_state

LONG_PRODUCT_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Timing of consecutive steps.

    Attributes:
      seconds: wall time.
      real_frames, padded_frames: frame counts without and with the padding of clips and batches.
      waiting: seconds in which the device was idle because the next batch was not ready.
      flops: floating-point operations of matrix products and convolutions, including padding.
    """

    seconds: float
    real_frames: int
    padded_frames: int
    waiting: float = 0.0
    flops: int = 0

    @property
    def frames_per_second(self) -> float:
        return self.real_frames / self.seconds


class Loop(abc.ABC):
    """Steps over the batches of a feed, as in the commands."""

    def __init__(self, config: Config, feed: Feed):
        self.config, self.feed = config, feed
        self._next = 0
        self._flops: dict[int, int] = {}

    @abc.abstractmethod
    def run(self, inputs: tuple) -> jax.Array:
        """Makes a call; returns a small array that is ready when its steps are done."""

    @abc.abstractmethod
    def trace(self, batch: Batch) -> jax.stages.Traced:
        """A single step on a batch of this shape."""

    @property
    def padded_share(self) -> float:
        """Share of padding, of clips and of the last batch, in the frames computed for one pass over all clips."""
        real, padded = self._frames(range(self.feed.plan.batches))
        return 1 - real / padded

    def warm_up(self, count: int) -> None:
        """Compiles the next `count` steps by running one step of each shape."""
        first = self._next
        lengths = {self.feed.frames(number): number for number in range(first, first + count)}
        for number in sorted(lengths.values()):
            self._next = number
            self._run(1)
        self._next = first

    def stretch(self, count: int) -> Stretch:
        """Times the next `count` steps after the last stretch, once the first batch is ready."""
        numbers = range(self._next, self._next + count)
        seconds, waiting = self._run(count)
        return Stretch(seconds, *self._frames(numbers), waiting,
                       sum(self._flops_of(self.feed.frames(number)) for number in numbers))

    def _run(self, count: int) -> tuple[float, float]:
        """Runs the next `count` steps; returns seconds from the first batch on, and seconds waiting for later ones."""
        waiting, running = 0.0, None
        began = before = 0.0
        for _, inputs in self.feed.calls(self._next, self._next + count):
            if running is None:
                began = time.perf_counter()
            elif running.is_ready():
                waiting += time.perf_counter() - before
            previous, running = running, self.run(inputs)
            # As in training, the host runs at most one call ahead of the device.
            jax.block_until_ready(previous)
            before = time.perf_counter()
        jax.block_until_ready(running)
        self._next += count
        return time.perf_counter() - began, waiting

    def _frames(self, numbers: range) -> tuple[int, int]:
        """Frames of these batches, without and with padding."""
        real = padded = 0
        for number in numbers:
            clips, ids = self.feed.plan.batch(number)
            real += int(clips.frames[ids[ids >= 0]].sum())
            padded += len(ids) * self.feed.frames(number)
        return real, padded

    def _flops_of(self, frames: int) -> int:
        """The count for one step of this length; the program that runs also has a branch for each other length."""
        if frames not in self._flops:
            size = len(self.feed.plan.batch(0)[1])
            batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, frames, *x.shape[2:])[: x.ndim], x.dtype),
                                 self.feed.example)
            self._flops[frames] = flops.count(self.trace(batch).jaxpr.jaxpr)
        return self._flops[frames]


class Training(Loop):
    """Training as in the command `train`, from records to parameters, without saving."""

    def __init__(self, config: Config, devices: int | None = None, records: Source | None = None):
        self.experiment = setup = experiment.prepare(config, devices, records)
        self._state = parallel.replicate(setup.initial_state(), setup.mesh)
        self._key = parallel.replicate(train_state.random_keys(config.train.seed)[1], setup.mesh)
        super().__init__(config, setup.open_feed())
        self._step = self.feed.compile(setup.step, donate_state=True)

    @property
    def variables(self) -> dict:
        return self._state.eval_variables

    def run(self, inputs: tuple) -> jax.Array:
        self._state, scalars = self._step(self._state, *inputs, self._key)
        return scalars["loss"]

    def trace(self, batch: Batch) -> jax.stages.Traced:
        return jax.jit(self.experiment.step).trace(self._state, batch, self._key)

    def product_shapes(self) -> list[tuple[int, int, int]]:
        """Sizes (m, k, n) of the largest matrix products of a transformer's step; none for other models."""
        width, feed_forward = (self.config.model.get(key, 0) for key in ("width", "feed_forward"))
        rows = self.config.data.batch_size * self.feed.frames(0)
        return [(rows, width, n) for n in (width, 3 * width, feed_forward) if width and feed_forward]


class Evaluation(Loop):
    """A single evaluation on the validation split, as after a training epoch."""

    def __init__(self, training: Training, source: Source | None = None, config: Config | None = None):
        """`source` and `config` replace the validation records and the config of the training."""
        config, setup = config or training.config, training.experiment
        source = source or open_records(config.data.path, "validation")
        self._evaluator = Evaluator(setup.model, config, setup.task, source, setup.mesh,
                                    on_device=config.data.placement == "device", frame_counts=False)
        self._variables, self._thresholds = training.variables, decisions.candidates(config.decision, setup.task)
        super().__init__(config, self._evaluator.feed)

    def run(self, inputs: tuple) -> jax.Array:
        return self._evaluator.step(self._variables, *inputs, self._thresholds)["loss"]

    def trace(self, batch: Batch) -> jax.stages.Traced:
        return jax.jit(self._evaluator.eval_step).trace(self._variables, batch, self._thresholds)


def matmul_ceiling(mesh: Mesh, precision: str, shapes: Iterable[tuple[int, int, int]] = ()) -> dict:
    """The fastest matrix product on a mesh, with rows split over its devices.

    Args:
      mesh: mesh of devices.
      precision: "float32" or "bfloat16".
      shapes: (m, k, n) to try besides squares, which double until one takes LONG_PRODUCT_SECONDS.

    Returns:
      `flops_per_second`, the best of several runs of several sizes, its `shape`, and the `precision`.
    """
    best = (0.0, "")
    squares = [(n * mesh.size, n, n) for n in (1024 << i for i in range(5))]
    for m, k, n in (*shapes, *squares):
        keys = jax.random.split(jax.random.key(0))
        a = parallel.shard({"a": np.asarray(jax.random.normal(keys[0], (m, k), DTYPES[precision]))}, mesh)["a"]
        b = parallel.replicate(jax.random.normal(keys[1], (k, n), DTYPES[precision]), mesh)
        product = functools.partial(jax.jit(jnp.matmul), a, b)
        jax.block_until_ready(product())
        # Shorter turns are no ceiling.
        speed = max(timing.calls_per_second(product, LONG_PRODUCT_SECONDS / 2) for _ in range(timing.ROUNDS))
        best = max(best, (2 * m * k * n * speed, f"{m} x {k} x {n}"))
        if (m, k, n) in squares and 1 / speed > LONG_PRODUCT_SECONDS:
            break
    return {"flops_per_second": best[0], "shape": best[1], "precision": precision}


def peak_memory() -> dict:
    """Peak memory in `bytes`, `of` the fullest device if devices report it, else of this process."""
    counts = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(counts):
        return {"bytes": max(counts), "of": "the fullest device"}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "this process"}
