"""Experiments: ConfigDict, as a file and the command line give it -> frozen dataclasses, checked."""

import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from sedjax import bounds, files, models
from sedjax.bounds import BatchSize, FilePath, Frames, FramesOrNone, Seed, Share, ShareBelowOne
from sedjax.errors import UserError

MAX_STEPS = 2**31 - 1  # a step is counted in 32 bits
MAX_AMOUNT = {"steps": MAX_STEPS, "examples": 1e12, "epochs": 1e9, "percent": 100}
DURATION = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20}) *(step|example|epoch|percent|%)s?")
T = TypeVar("T")
log = logging.getLogger("sedjax")


def _parse_duration(text: str) -> tuple[float, str]:
    """Amount and unit of a duration, "steps", "examples", "epochs" or "percent". Raises ValueError."""
    match = DURATION.fullmatch(text)
    if not match:
        raise ValueError("must be a duration such as '100 steps', '5000 examples', '10 epochs' or '5 percent'")
    unit = {"%": "percent", "percent": "percent"}.get(match[2], f"{match[2]}s")
    if float(match[1]) > MAX_AMOUNT[unit]:
        raise PydanticCustomError(bounds.OUT_OF_BOUNDS, f"must be at most {MAX_AMOUNT[unit]:,.0f} {unit}")
    return float(match[1]), unit


def _normal_duration(text: str) -> str:
    """The one text of a duration, so that two that are equal compare as equal."""
    amount, unit = _parse_duration(text)
    return f"{int(amount) if amount.is_integer() else amount} {unit}"


def _not_zero(duration: str) -> str:
    if _parse_duration(duration)[0] == 0:
        raise PydanticCustomError(bounds.OUT_OF_BOUNDS, "must be a duration of more than 0")
    return duration


def _not_a_share(duration: str) -> str:
    if duration.endswith("percent"):
        raise ValueError("must be in steps, examples or epochs")
    return duration


Duration = Annotated[str, AfterValidator(_normal_duration)]
Interval = Annotated[Duration, AfterValidator(_not_zero)]
TotalDuration = Annotated[Duration, AfterValidator(_not_a_share)]
Thresholds = Annotated[tuple[Share, ...], Field(min_length=1, max_length=1_000),
                       AfterValidator(lambda values: tuple(sorted(set(values))))]


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

    path: FilePath = ""
    batch_size: BatchSize = 32
    eval_batch_size: BatchSize = 32
    max_frames: Frames = 250
    crop_frames: FramesOrNone = 0
    bucket_frames: Frames = 50
    pool_batches: Annotated[int, Field(ge=1, le=1_000_000)] = 4
    placement: Literal["host", "device"] = "host"


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the binary cross-entropy, see losses.class_weights.

    Attributes:
      pos_weight: "costs" (FN / FP of each class) or "none".
      class_factors: further factors on the positive weight, by class name.
      absolute_costs: weigh classes by what their mistakes cost.
    """

    pos_weight: Literal["costs", "none"] = "costs"
    class_factors: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = dataclasses.field(default_factory=dict)
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

    learning_rate: Annotated[float, Field(gt=0, le=1e30)] = 1e-4  # what is too high for a model ends in NaN
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.999
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Duration = "0 steps"
    clip_norm: Annotated[float, Field(ge=0, le=1e30)] = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    frozen: Duration = "0 steps"
    accumulate: BatchSize = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how often, which random numbers. Durations are "N steps", "N examples", "N epochs" or "N percent".

    "1 epoch" and "1.0 epochs" are the same duration as "1 epochs".

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

    duration: TotalDuration = "100 epochs"
    evaluate_every: Interval = "1 epochs"
    save_every: Interval = "1 epochs"
    log_every: Interval = "10 steps"
    steps_per_call: Annotated[int, Field(ge=1, le=100_000)] = 1
    patience: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    mixup: Annotated[float, Field(ge=0, le=1_000)] = 0.0
    ema: ShareBelowOne = 0.0
    seed: Seed = 0
    initial_weights: FilePath = ""


@dataclasses.dataclass(frozen=True)
class DecisionConfig:
    """From probabilities of frames to active segments, see decisions.

    Attributes:
      pooling: of the frames of a segment, "max" (any frame above the threshold) or "mean".
      thresholds: candidates, in any order; each class takes the one with the lowest validation cost. One candidate is
        not tuned.
    """

    pooling: Literal["max", "mean"] = "max"
    thresholds: Thresholds = (0.5,)


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
    precision: Literal["float32", "bfloat16"] = "float32"
    parallel: Literal["jit", "pmap"] = "jit"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


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
    flags.FLAGS["config"].parser = ConfigFile()
    if required:
        flags.mark_flag_as_required("config")


class ConfigFile(flags.ArgumentParser):
    """FILE or FILE:ARGUMENT -> the ConfigDict that the file's get_config() or get_config(ARGUMENT) returns."""

    def parse(self, argument: str) -> ConfigDict:
        path, colon, choice = argument.partition(":")
        if not path:
            raise UserError("--config is given without a value: name a file, for example configs/demo.py.")
        installed = pathlib.Path(__file__).parents[1] / path
        if path.startswith("configs/") and not os.path.lexists(path) and installed.exists():  # outside a clone
            path = str(installed)
        text = files.read_text(path, files.MEBIBYTE)
        where = f"The config file {files.printable(path)}"
        module = types.ModuleType("sedjax_config_file")
        module.__file__ = path
        sys.modules[module.__name__] = module  # where dataclasses in it look for it
        try:
            exec(compile(text, path, "exec"), module.__dict__)
            if not callable(getattr(module, "get_config", None)):
                raise UserError("there is no function get_config in it.")
            config = module.get_config(*([choice] if colon else []))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (Exception, SystemExit) as error:  # it is a program: whatever can go wrong in one
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == path else []
            place = f", line {lines[-1]}," if lines else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(".")
            raise UserError(f"{where}{place} cannot be used: {reason}.") from error
        if not isinstance(config, ConfigDict):
            raise UserError(f"{where}: get_config() must return a ConfigDict, as those in configs/ do, not "
                            f"{bounds.shown(config)}.")
        return config.lock()

    def flag_type(self) -> str:
        return "config file"


def freeze(fields: dict) -> Config:
    """The checked, immutable form. Raises UserError that names a key which is unknown or has an unusable value."""
    config = Config(**bounds.check(Config, fields))
    if "name" not in config.model:
        raise UserError("The config has no model.name.")
    model = models.check_fields(config.model)
    config = dataclasses.replace(config, model=model)
    models.build(model["name"], {key: value for key, value in model.items() if key != "name"}, num_classes=1)
    data, train, optimizer = config.data, config.train, config.optimizer
    if data.batch_size % optimizer.accumulate:
        raise UserError(f"data.batch_size = {data.batch_size} cannot be split into optimizer.accumulate = "
                        f"{optimizer.accumulate} equal parts.")
    if train.steps_per_call > 1 and data.placement != "device":
        raise UserError(f"train.steps_per_call = {train.steps_per_call} needs data.placement = 'device'.")
    if data.crop_frames > data.max_frames:
        raise UserError(f"data.crop_frames = {data.crop_frames} must be from 1 to data.max_frames = "
                        f"{data.max_frames}, or 0 for no crops.")
    if data.crop_frames and data.placement == "device":
        raise UserError(f"data.crop_frames = {data.crop_frames} needs data.placement = 'host': on the device, "
                        "clips stay the same.")
    if not models.has_pretrained_encoder(model["name"]):
        for key, default in (("layer_decay", 1.0), ("frozen", "0 steps")):
            if (value := getattr(optimizer, key)) != default:
                raise UserError(f"optimizer.{key} = {value!r} is for models with ATST-Frame, whose layers it is "
                                f"about; {model['name']!r} has none.")
    return config


def from_flag(form: Callable[[dict], T] = freeze) -> T:
    """What --config holds, as `form` makes it of a dict. Raises UserError with the file's name if it cannot be used."""
    try:
        return form(flags.FLAGS.config.to_dict())
    except UserError as error:
        raise UserError(f"{files.printable(flags.FLAGS['config'].config_filename)}: {error}") from error


def from_json(text: str, where: files.Path = "config.json") -> Config:
    """The config that Config.to_json wrote.

    Training values that an earlier version took and this one does not, such as a negative patience, are replaced by
    their defaults with a warning, so that the trained model can still be used. Raises UserError that names `where`.
    """
    fields = files.parse_json(text, dict[str, Any], where)
    for section, kind in (("loss", LossConfig), ("optimizer", OptimizerConfig), ("train", TrainConfig)):
        values = fields.get(section)
        for key in bounds.out_of_bounds(kind, values) if isinstance(values, dict) else ():
            log.warning("%s: %s.%s = %s is not possible any more and counts as the default.", files.printable(where),
                        section, key, bounds.shown(values.pop(key)))
    try:
        return freeze(fields)
    except UserError as error:
        raise UserError(f"{files.printable(where)}: {error}") from error


def steps(duration: str, key: str, batch_size: int, steps_per_epoch: int, total_steps: int) -> int:
    """A duration in steps, rounded up.

    Args:
      duration: "N steps", "N examples", "N epochs" or "N percent" (of total_steps).
      key: the config key, for the error.
      batch_size: examples per step.
      steps_per_epoch: steps per epoch.
      total_steps: steps of the whole training.

    Raises:
      UserError: the text is none of these, or more steps than can be counted.
    """
    try:
        amount, unit = _parse_duration(duration)
    except ValueError as error:
        raise UserError(f"{key} {error}, not {bounds.shown(duration)}.") from error
    in_steps = {"steps": 1.0, "examples": 1 / batch_size, "epochs": steps_per_epoch, "percent": total_steps / 100}
    count = math.ceil(round(amount * in_steps[unit], 6))
    if count > MAX_STEPS:
        raise UserError(f"{key} must be at most {MAX_STEPS:,} steps, not {count:,} ({duration}).")
    return count
