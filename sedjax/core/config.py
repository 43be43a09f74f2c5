"""Experiments: ConfigDict, as a file and the command line give it -> frozen dataclasses, checked."""

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
      path: directory that data_prep.records wrote.
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
      model: `name` and the fields of that model, see sedjax.models.registry.
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
