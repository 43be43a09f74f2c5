"""The parts of a training run, from a config and its records: model, batches, durations, optimizer and step.

`train` and `bench` share them, so that `bench` times the computation that `train` runs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from sedjax.core import parallel
from sedjax.core.config import Config
from sedjax.core.config import steps as duration_steps
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.data.feed import DeviceFeed, Feed
from sedjax.data.plan import Plan, Source, training_plan
from sedjax.data.records import open_records, require_features
from sedjax.models import registry
from sedjax.models.variables import example_inputs
from sedjax.scoring import losses
from sedjax.training import optimizer, train_state, train_step


class Due(NamedTuple):
    """What follows a step."""

    log: bool = False
    evaluate: bool = False
    save: bool = False


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

    def due(self, step: int, stopping: bool = False) -> Due:
        """An entry of the training loss, an evaluation, and a checkpoint, which also follows the other two causes."""
        evaluate = step % self.evaluate_every == 0 or step == self.total
        return Due(step % self.log_every == 0, evaluate, evaluate or stopping or step % self.save_every == 0)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run before its first step.

    Attributes:
      config: config of the run.
      mesh: mesh of the devices.
      records: records of the training split.
      model: module to train.
      features: width and statistics of each input feature of the model, and of the labels.
      plan: which clips form which batch; step n trains on batch n - 1.
      durations: durations in steps.
      optimizer: optimizer of the parameters.
    """

    config: Config
    mesh: Mesh
    records: Source
    model: nn.Module
    features: dict[str, dict]
    plan: Plan
    durations: Durations
    optimizer: optax.GradientTransformation

    @property
    def task(self) -> Task:
        return self.records.task

    def initial_state(self) -> train_state.TrainState:
        """The state at step 0, before it is replicated to all devices."""
        train = self.config.train
        return train_state.create(self.model, self.optimizer, self.features, train.ema > 0, train.seed,
                                  train.initial_weights)

    @property
    def step(self) -> Callable:
        """train_step.train_step for this run: a function of (state, batch, key)."""
        weights = losses.class_weights(self.task, **vars(self.config.loss))
        return functools.partial(train_step.train_step, model=self.model, optimizer=self.optimizer,
                                 accumulate=self.config.optimizer.accumulate, weights=weights,
                                 mixup=self.config.train.mixup, ema=self.config.train.ema)

    def open_feed(self) -> Feed:
        """The batches of training, with the data on the host or on the devices as data.placement says."""
        arguments = self.records, self.plan, self.model.inputs, self.config, self.mesh
        if self.config.data.placement == "host":
            return Feed(*arguments)
        return DeviceFeed(*arguments, self.config.train.steps_per_call, lambda step: any(self.durations.due(step)))


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
    plan = training_plan(records, config.data, config.train.seed)
    durations = Durations.from_config(config, plan.batches)
    adamw = optimizer.make_optimizer(config.optimizer, durations.warmup, durations.total, durations.frozen)
    return Experiment(config, mesh, records, model, features, plan, durations, adamw)
