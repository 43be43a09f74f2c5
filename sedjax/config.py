"""Experiments: ConfigDict, as a file and the command line give it -> frozen dataclasses, checked."""

import dataclasses
import difflib
import functools
import json
import math
import re
import typing

from absl import flags
from ml_collections import ConfigDict, config_flags

from sedjax import models
from sedjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records, and how they become batches.

    Attributes:
      path: directory that data_prep.build_records wrote.
      batch_size: clips per step, over all devices.
      eval_batch_size: clips per evaluation step, over all devices.
      max_frames: longer recordings are cut into clips of this many frames, a multiple of a segment.
      crop_frames: training clips are random crops of this many frames, others in each epoch, a multiple of a segment; 0
        for the clips of max_frames.
      bucket_frames: batches are padded to a multiple of this many frames, a multiple of a segment.
      pool_batches: clips of this many batches are sorted by length together, so that little is padded; 1 for none.
      placement: where a training keeps the splits it reads, "host" (read from disk, sent to the devices ahead of time)
        or "device" (padded, in device memory, as precise as the records: build them with float16 features to halve
        it); order and numbers are the same.
    """

    path: str = ""
    batch_size: int = 32
    eval_batch_size: int = 32
    max_frames: int = 250
    crop_frames: int = 0
    bucket_frames: int = 50
    pool_batches: int = 4
    placement: str = "host"


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the binary cross-entropy, see losses.class_weights.

    Attributes:
      pos_weight: "costs" (FN / FP of each class) or "none".
      class_factors: further factors on the positive weight, by class name.
      absolute_costs: weigh classes by what their mistakes cost.
    """

    pos_weight: str = "costs"
    class_factors: dict[str, float] = dataclasses.field(default_factory=dict)
    absolute_costs: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and its schedule.

    Attributes:
      learning_rate: the highest.
      beta1, beta2: decay of the moments.
      weight_decay: on matrices and tables, not on biases and norms.
      schedule: "constant" or "cosine" (to 0 at the end of training).
      warmup: duration of the linear rise from 0.
      clip_norm: largest global norm of the gradient; 0 for no limit.
      layer_decay: factor on the learning rate from each layer of a pretrained encoder to the one below, see
        optimizer.layer_rates; 1 for the same rate everywhere.
      frozen: duration at the beginning in which the pretrained encoder does not change.
      accumulate: parts into which a batch is split to save memory; the step is that of the whole batch, so models with
        batch norm, whose statistics each part would have for itself, are refused.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4
    schedule: str = "constant"
    warmup: str = "0 steps"
    clip_norm: float = 0.0
    layer_decay: float = 1.0
    frozen: str = "0 steps"
    accumulate: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how often, which random numbers. Durations are "N steps", "N examples", "N epochs" or "N percent".

    Attributes:
      duration: of the training, at most.
      evaluate_every: between evaluations on the validation split.
      save_every: between checkpoints; one is saved after each evaluation too.
      log_every: between entries of the training loss.
      steps_per_call: steps that the device takes without the host, with data.placement "device"; fewer where an
        evaluation, a checkpoint or an entry is due.
      patience: evaluations without a lower cost before training stops; 0 for never.
      mixup: alpha of the Beta distribution from which shares of mixed clips are drawn, see augment.mixup; 0 for none.
      ema: decay of the averaged parameters that are evaluated and kept; 0 for none.
      seed: of initialisation, order, and everything random on the device.
      initial_weights: npz of pretrained weights of a part of the model, from data_prep.import_weights; "" for none.
    """

    duration: str = "100 epochs"
    evaluate_every: str = "1 epochs"
    save_every: str = "1 epochs"
    log_every: str = "10 steps"
    steps_per_call: int = 1
    patience: int = 10
    mixup: float = 0.0
    ema: float = 0.0
    seed: int = 0
    initial_weights: str = ""


@dataclasses.dataclass(frozen=True)
class DecisionConfig:
    """From probabilities of frames to active segments, see decisions.

    Attributes:
      pooling: of the frames of a segment, "max" (any frame above the threshold) or "mean".
      thresholds: candidates; each class takes the one with the lowest validation cost. One candidate is not tuned.
    """

    pooling: str = "max"
    thresholds: tuple[float, ...] = (0.5,)


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment.

    Attributes:
      model: `name` and the fields of that model, see sedjax.models.
      precision: of the computation, "float32" or "bfloat16"; parameters, norms and losses stay float32.
      parallel: how a step runs on several devices, "jit" (over a mesh) or "pmap"; the numbers are the same.
    """

    model: dict
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    decision: DecisionConfig = DecisionConfig()
    precision: str = "float32"
    parallel: str = "jit"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


CHOICES = {
    "data.placement": ("host", "device"),
    "loss.pos_weight": ("costs", "none"),
    "optimizer.schedule": ("constant", "cosine"),
    "decision.pooling": ("max", "mean"),
    "precision": tuple(models.DTYPES),
    "parallel": ("jit", "pmap"),
}
POSITIVE = ("data.batch_size", "data.eval_batch_size", "data.max_frames", "data.bucket_frames", "data.pool_batches",
            "optimizer.learning_rate", "optimizer.accumulate", "train.steps_per_call")


def base_config(model: str) -> ConfigDict:
    """The ConfigDict of a model with every default; a config file changes what its experiment is about."""
    fields = dataclasses.asdict(Config(model={"name": model, **models.default_fields(model)}))
    config = ConfigDict(fields)
    config.loss.class_factors = ConfigDict(fields["loss"]["class_factors"])
    return config.lock()


def changed(config: ConfigDict, **changes) -> ConfigDict:
    """A copy of a config in which some keys, written with `__` for the dot, have other values."""
    config = config.copy_and_resolve_references()
    for key, value in changes.items():
        *path, name = key.split("__")
        functools.reduce(getattr, path, config)[name] = value
    return config


def define_flag(required: bool = True) -> None:
    """Defines --config: a config file, any of whose keys the command line can change."""
    config_flags.DEFINE_config_file("config", None, "Experiment, for example configs/demo.py; any of its keys can be "
                                    "changed: --config.optimizer.learning_rate=1e-4.")
    if required:
        flags.mark_flag_as_required("config")


def from_flag() -> Config:
    """The checked config of --config. Raises UserError if it cannot be read or used."""
    return freeze(fields_from_flag())


def fields_from_flag() -> dict:
    """What --config holds, unchecked. Raises UserError if the file cannot be read."""
    try:
        return flags.FLAGS.config.to_dict()
    except OSError as error:  # raised at the first access to what could not be loaded
        raise UserError(f"The config file cannot be read: {' '.join(str(error).split(': ', 1)[-1].split())}") from error


def freeze(fields: dict) -> Config:
    """The checked, immutable form. Raises UserError that names a key which is unknown or has an unusable value."""
    fields = dict(fields)
    model = dict(fields.pop("model", {}))
    if not isinstance(model.get("name"), str):
        raise UserError("The config has no model.name.")
    name = model.pop("name")
    defaults = models.default_fields(name)
    _require_known(model, defaults, "model.")
    model = {key: _convert(model.get(key, default), type(default), f"model.{key}") for key, default in defaults.items()}
    models.build(name, model, num_classes=1)
    frozen = _dataclass(Config, {**fields, "model": {"name": name, **model}}, "")
    for key, allowed in CHOICES.items():
        if (value := _value(frozen, key)) not in allowed:
            raise UserError(f"{key} must be one of {list(allowed)}, not {value!r}.")
    for key in POSITIVE:
        if (value := _value(frozen, key)) <= 0:
            raise UserError(f"{key} must be positive, not {value}.")
    if frozen.data.batch_size % frozen.optimizer.accumulate:
        raise UserError(f"data.batch_size = {frozen.data.batch_size} cannot be split into optimizer.accumulate = "
                        f"{frozen.optimizer.accumulate} equal parts.")
    if frozen.train.steps_per_call > 1 and frozen.data.placement != "device":
        raise UserError(f"train.steps_per_call = {frozen.train.steps_per_call} needs data.placement = 'device'.")
    if not 0 <= frozen.data.crop_frames <= frozen.data.max_frames:
        raise UserError(f"data.crop_frames = {frozen.data.crop_frames} must be from 1 to data.max_frames = "
                        f"{frozen.data.max_frames}, or 0 for no crops.")
    if frozen.data.crop_frames and frozen.data.placement == "device":
        raise UserError(f"data.crop_frames = {frozen.data.crop_frames} needs data.placement = 'host': on the device, "
                        "clips stay the same.")
    if not 0 <= frozen.train.mixup < math.inf:
        raise UserError(f"train.mixup must be at least 0 and finite, not {frozen.train.mixup}.")
    if not frozen.decision.thresholds or not all(0 <= t <= 1 for t in frozen.decision.thresholds):
        raise UserError(f"decision.thresholds must be numbers from 0 to 1, not {frozen.decision.thresholds}.")
    if not 0 <= frozen.train.ema < 1:
        raise UserError(f"train.ema must be at least 0 and below 1, not {frozen.train.ema}.")
    for key in ("train.duration", "train.evaluate_every", "train.save_every", "train.log_every", "optimizer.warmup",
                "optimizer.frozen"):
        steps(_value(frozen, key), key, 1, 1, 1)
    if not 0 < frozen.optimizer.layer_decay <= 1:
        raise UserError(f"optimizer.layer_decay must be above 0 and at most 1, not {frozen.optimizer.layer_decay}.")
    if not models.has_pretrained_encoder(name):
        for key, default in (("optimizer.layer_decay", 1.0), ("optimizer.frozen", "0 steps")):
            if (value := _value(frozen, key)) != default:
                raise UserError(f"{key} = {value!r} is for models with ATST-Frame, whose layers it is about; "
                                f"{name!r} has none.")
    return frozen


def from_json(text: str) -> Config:
    """The config that Config.to_json wrote."""
    return freeze(json.loads(text))


def steps(duration: str, key: str, batch_size: int, steps_per_epoch: int, total_steps: int) -> int:
    """A duration in steps, rounded up.

    Args:
      duration: "N steps", "N examples", "N epochs" or "N percent" (of total_steps).
      key: the config key, for the error.
      batch_size: examples per step.
      steps_per_epoch: steps per epoch.
      total_steps: steps of the whole training; 0 where that is what is asked for.

    Raises:
      UserError: the text is none of these.
    """
    match = re.fullmatch(r"([0-9.]+) *(steps?|examples?|epochs?|percent|%)", str(duration))
    units = {"step": 1.0, "example": 1 / batch_size, "epoch": steps_per_epoch, "percent": total_steps / 100}
    try:
        unit = {"%": "percent"}.get(match[2], match[2].rstrip("s"))
        if unit == "percent" and not total_steps:
            raise ValueError
        return math.ceil(round(float(match[1]) * units[unit], 6))
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} must be a duration such as '100 steps', '5000 examples', '10 epochs' or '5 percent', "
                        f"not {duration!r}.") from error


def _dataclass(kind: type, fields: dict, prefix: str):
    known = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    _require_known(fields, known, prefix)
    values = {}
    for name, value in fields.items():
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _dataclass(hints[name], dict(value), f"{prefix}{name}.")
        else:
            values[name] = _convert(value, typing.get_origin(hints[name]) or hints[name], f"{prefix}{name}")
    return kind(**values)


def _convert(value, kind: type, key: str):
    if kind is tuple and isinstance(value, tuple | list):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{key} must be of type {kind.__name__}, not {value!r}.")
    return value


def _require_known(fields, known, prefix: str) -> None:
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; the keys are {sorted(known)}."
            raise UserError(f"There is no config key {prefix}{name}{hint}")


def _value(config: Config, key: str):
    for part in key.split("."):
        config = getattr(config, part)
    return config
