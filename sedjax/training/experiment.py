"""The parts of a training run, from a config and its records: model, clips, durations, optimizer and compiled step.

`train` and `bench` share them, so that `bench` times the computation that `train` runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from sedjax.core import parallel
from sedjax.core.config import Config
from sedjax.core.config import steps as duration_steps
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.data import resident
from sedjax.data.batches import Batch, read_batch, stream
from sedjax.data.plan import ClipTable, Source, steps_per_epoch, training_plan
from sedjax.data.records import open_records, require_features
from sedjax.models import registry
from sedjax.models.variables import example_inputs
from sedjax.scoring import losses
from sedjax.training import optimizer, train_state, train_step

Calls = Callable[[int, int], Iterator[tuple[int, tuple]]]


@dataclasses.dataclass(frozen=True)
class Durations:
    """The durations of a config in steps.

    Attributes:
      per_epoch, total: steps per epoch, and in the whole run unless it stops early.
      evaluate_every, save_every, log_every: steps between evaluations, checkpoints, and entries of the training loss.
      warmup: steps of learning-rate warm-up.
      frozen: steps in which the pretrained encoder stays fixed.
    """

    per_epoch: int
    total: int
    evaluate_every: int
    save_every: int
    log_every: int
    warmup: int
    frozen: int

    @classmethod
    def from_config(cls, config: Config, per_epoch: int) -> "Durations":
        to_steps = functools.partial(duration_steps, batch_size=config.data.batch_size, steps_per_epoch=per_epoch)
        total = to_steps(config.train.duration, "train.duration", total_steps=0)
        intervals = {key: max(to_steps(getattr(config.train, key), f"train.{key}", total_steps=total), 1)
                     for key in ("evaluate_every", "save_every", "log_every")}
        phases = {key: to_steps(getattr(config.optimizer, key), f"optimizer.{key}", total_steps=total)
                  for key in ("warmup", "frozen")}
        return cls(per_epoch, total, **intervals, **phases)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows a step."""
        return step % self.evaluate_every == 0 or step == self.total

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows a step."""
        return self.evaluates(step) or step % self.save_every == 0

    def due(self, step: int) -> bool:
        """Whether an evaluation, a checkpoint or an entry follows a step."""
        return self.saves(step) or step % self.log_every == 0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run before its first step.

    Attributes:
      config: config of the run.
      mesh: mesh of the devices.
      records: records of the training split.
      model: module to train.
      features: width and statistics of each input feature of the model, and of the labels.
      clips: clips of the training split. With data.crop_frames, those of the first epoch; later epochs have as many,
        and a crop at the end of a recording may be shorter.
      durations: durations in steps.
      optimizer: optimizer of the parameters.
    """

    config: Config
    mesh: Mesh
    records: Source
    model: nn.Module
    features: dict[str, dict]
    clips: ClipTable
    durations: Durations
    optimizer: optax.GradientTransformation

    @property
    def task(self) -> Task:
        return self.records.task

    def ids(self, number: int) -> np.ndarray:
        """Clip ids of batch `number`, which step `number` + 1 trains on; -1 for padding."""
        epoch, batch = divmod(number, self.durations.per_epoch)
        return self._plan(epoch)[1][batch]

    def read(self, number: int) -> Batch:
        """This process's share of batch `number`."""
        clips, _ = self._plan(number // self.durations.per_epoch)
        return read_batch(self.records, clips, self.ids(number), self.model.inputs,
                          self.config.data, parallel.local_rows(self.config.data.batch_size))

    def initial_state(self) -> train_state.TrainState:
        """The state at step 0, before it is replicated to all devices."""
        train = self.config.train
        return train_state.create(self.model, self.optimizer, self.features, train.ema > 0, train.seed,
                                  train.initial_weights)

    def step(self, accumulate: int) -> Callable:
        """train_step.train_step for this run: a function of (state, batch, key)."""
        weights = losses.class_weights(self.task, **vars(self.config.loss))
        return functools.partial(train_step.train_step, model=self.model, optimizer=self.optimizer,
                                 accumulate=accumulate, weights=weights, mixup=self.config.train.mixup,
                                 ema=self.config.train.ema)

    @functools.cached_property
    def _plan(self) -> Callable[[int], tuple[ClipTable, np.ndarray]]:
        """A function of the epoch: its clips, and the clip ids of each batch."""
        return functools.lru_cache(maxsize=2)(functools.partial(
            training_plan, self.records, self.config.data, self.config.train.seed))


def prepare(config: Config, devices: int | None = None, records: Source | None = None) -> Experiment:
    """The training run of a config, on all or some devices; `records` replaces those in data.path.

    Raises UserError if there are no records, they lack a feature, a batch cannot be split evenly over the devices, or
    the model does not support accumulation.
    """
    records = records or open_records(config.data.path, "train")
    model = registry.build_from(config, records.task)
    widths = {key: entry["width"] for key, entry in records.features.items()}
    require_features(widths, model.inputs, None, where=f"The dataset {config.data.path}")
    features = {**{key: records.features[key] for key in model.inputs}, "labels": records.labels}
    if config.optimizer.accumulate > 1:
        variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, widths))
        if "batch_stats" in variables:
            raise UserError(f"optimizer.accumulate = {config.optimizer.accumulate} cannot be used with batch norm, "
                            "which needs the whole batch at once: set optimizer.accumulate = 1, or choose a model "
                            "without batch norm.")
    mesh = parallel.make_mesh(devices)
    # Under pmap each device splits its own share; under jit the compiler moves clips between devices as needed.
    parallel.require_divisible(config.data.batch_size, mesh, "data.batch_size",
                               config.optimizer.accumulate if config.parallel == "pmap" else 1)
    if config.train.mixup:
        parallel.require_divisible(config.data.batch_size, mesh, "data.batch_size (in pairs, for train.mixup)", 2)
    clips, _ = training_plan(records, config.data, config.train.seed, epoch=0)
    durations = Durations.from_config(config, steps_per_epoch(clips, config.data.batch_size))
    adamw = optimizer.make_optimizer(config.optimizer, durations.warmup, durations.total, durations.frozen)
    return Experiment(config, mesh, records, model, features, clips, durations, adamw)


def compile_training(experiment: Experiment) -> tuple[Callable, Calls]:
    """Compiles the train step, with the data on the host or on the devices as data.placement says.

    Returns:
      call(state, *inputs, key) -> (state, scalars): one step, or several, with stacked scalars.
      calls(first, last): the calls from step `first` to step `last`: the last step and the inputs of each.
    """
    config, mesh, clips = experiment.config, experiment.mesh, experiment.clips
    step = experiment.step(config.optimizer.accumulate)
    if config.data.placement == "host":
        def calls(first: int, last: int) -> Iterator[tuple[int, tuple]]:
            batches = stream(experiment.read, first, last)
            return ((number, (batch,)) for number, batch in
                    enumerate(parallel.to_devices(batches, mesh, mode=config.parallel), start=first + 1))
    else:
        split = resident.load(experiment.records, clips, experiment.model.inputs, config.data, mesh, config.parallel)
        lengths = resident.bucket_lengths(clips, config.data)
        step = resident.many_steps(step, lengths, mesh)

        def calls(first: int, last: int) -> Iterator[tuple[int, tuple]]:
            return resident.schedule(split, experiment.ids, clips, config, lengths, first, last,
                                     experiment.durations.due)
    return parallel.compile_step(step, mesh, donate_state=True, mode=config.parallel), calls
