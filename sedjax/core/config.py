"""Experiments: the ConfigDict of a config file and the command line -> validated, frozen dataclasses."""

import dataclasses
import json
import logging
import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from sedjax.core import bounds
from sedjax.core.bounds import BatchSize, FilePath, Frames, FramesOrNone, Seed, Share, ShareBelowOne
from sedjax.core.errors import UserError

MAX_STEPS = 2**31 - 1  # a step is counted in 32 bits
MAX_AMOUNT = {"steps": MAX_STEPS, "examples": 1e12, "epochs": 1e9, "percent": 100}
DURATION = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20}) *(step|example|epoch|percent|%)s?")
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
    """The canonical text of a duration, so that equal durations compare equal."""
    amount, unit = _parse_duration(text)
    return f"{int(amount) if amount.is_integer() else amount} {unit}"


def _not_zero(duration: str) -> str:
    if _parse_duration(duration)[0] == 0:
        raise PydanticCustomError(bounds.OUT_OF_BOUNDS, "must be a duration greater than 0")
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
    """Which records to read, and how to batch them.

    Attributes:
      path: directory written by data_prep.records.
      batch_size: clips per step, over all devices.
      eval_batch_size: clips per evaluation step, over all devices.
      max_frames: longest clip, in frames, a whole number of segments; longer recordings are cut into such clips.
      crop_frames: length of the random training crops, in frames, a whole number of segments; they differ in each
        epoch; 0 to train on the clips of max_frames.
      bucket_frames: unit of padded batch lengths, in frames, a whole number of segments.
      pool_batches: number of batches whose clips are sorted by length together, to reduce padding; 1 for no sorting.
      placement: where training keeps its splits: "host" (read from disk, sent to the devices ahead of time) or "device"
        (padded, in device memory, in the precision of the records: float16 features halve it); same order and numbers.
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
      pos_weight: weight of positive frames, "costs" (FN / FP of each class) or "none".
      class_factors: additional factors on the positive weight, by class name.
      absolute_costs: whether to weight classes by the cost of their mistakes.
    """

    pos_weight: Literal["costs", "none"] = "costs"
    class_factors: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = dataclasses.field(default_factory=dict)
    absolute_costs: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and its schedule.

    Attributes:
      learning_rate: peak learning rate.
      beta1, beta2: decay rates of the moments.
      weight_decay: weight decay of matrices and embedding tables; biases and norms have none.
      schedule: learning rate after warmup, "constant" or "cosine" (down to 0 at the end of training).
      warmup: duration of the linear rise from 0.
      clip_norm: largest global norm of the gradient; 0 for no limit.
      layer_decay: learning rate factor from each layer of a pretrained encoder to the layer below, see
        optimizer.layer_rates; 1 for the same rate everywhere.
      frozen: duration at the start of training during which the pretrained encoder is frozen.
      accumulate: number of parts a batch is split into to save memory; the step still uses the gradient of the whole
        batch, so models with batch norm, whose statistics would be per part, are rejected.
    """

    learning_rate: Annotated[float, Field(gt=0, le=1e30)] = 1e-4  # a rate too high for the model ends in NaN
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
    """Length, intervals and seed of training. Durations are "N steps", "N examples", "N epochs" or "N percent".

    "1 epoch" and "1.0 epochs" are the same duration as "1 epochs".

    Attributes:
      duration: maximum length of training.
      evaluate_every: interval between evaluations on the validation split.
      save_every: interval between checkpoints; each evaluation also saves one.
      log_every: interval between log entries of the training loss.
      steps_per_call: steps per call of the device, with data.placement "device"; fewer where an evaluation, a
        checkpoint or a log entry is due.
      patience: evaluations without a lower cost before training stops; 0 to never stop early.
      mixup: alpha of the Beta distribution of the mixing weights, see augment.mixup; 0 for no mixup.
      ema: decay of the averaged parameters that are evaluated and kept; 0 for no averaging.
      seed: seed of the initialisation, the order of clips and all randomness on the device.
      initial_weights: npz of pretrained weights for part of the model, from data_prep.import_weights; "" for none.
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
    """From frame probabilities to active segments, see decisions.

    Attributes:
      pooling: pooling over the frames of a segment, "max" (any frame above the threshold) or "mean".
      thresholds: candidate thresholds, in any order; each class uses the one with the lowest validation cost. A single
        candidate is used as is.
    """

    pooling: Literal["max", "mean"] = "max"
    thresholds: Thresholds = (0.5,)


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment.

    Attributes:
      model: `name` and the fields of that model, see sedjax.models.registry.
      precision: precision of the computation, "float32" or "bfloat16"; parameters, norms and losses stay float32.
      parallel: how a step runs on several devices, "jit" (over a mesh) or "pmap"; both give the same numbers.
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


def steps(duration: str, key: str, batch_size: int, steps_per_epoch: int, total_steps: int) -> int:
    """A duration in steps, rounded up.

    Args:
      duration: "N steps", "N examples", "N epochs" or "N percent" (of total_steps).
      key: the config key, for the error.
      batch_size: examples per step.
      steps_per_epoch: steps per epoch.
      total_steps: steps of the whole run.

    Raises:
      UserError: the text is not a duration, or exceeds the maximum number of steps.
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
