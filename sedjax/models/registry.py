"""The models by name: default fields, checks of configured fields, and construction from a config."""

import dataclasses
import logging

import jax.numpy as jnp
from flax import linen as nn

from sedjax.core import bounds
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.models.atst_detector import AtstDetector, AtstHybrid
from sedjax.models.atst_frame import HEAD_SIZE
from sedjax.models.conv_transformer import ConvTransformer
from sedjax.models.embedding_transformer import EmbeddingTransformer
from sedjax.models.naive import Naive

MODELS = {"atst_frame": AtstDetector, "atst_hybrid": AtstHybrid, "conv_transformer": ConvTransformer,
          "embedding_transformer": EmbeddingTransformer, "naive": Naive}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NOT_IN_CONFIG = ("num_classes", "dtype", "parent", "name")  # set by the task, the precision and flax
MAX_PARAMETERS = 2_000_000_000  # per encoder: 8 GB, and twice as much for Adam's moments

log = logging.getLogger("sedjax")


def default_fields(name: str) -> dict:
    """The configurable fields of a model, with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(_model(name)) if field.name not in NOT_IN_CONFIG}


def check_fields(fields: dict) -> dict:
    """`name` and all configurable fields of a model; fields that the config does not set get their defaults.

    Raises UserError for a field that the model lacks, or an invalid value.
    """
    name = fields["name"]
    if not isinstance(name, str):
        raise UserError(f"model.name must be one of {', '.join(sorted(MODELS))}, not {bounds.shown(name)}.")
    values = {key: value for key, value in fields.items() if key != "name"}
    return {"name": name, **bounds.check(_model(name), values, "model.", without=NOT_IN_CONFIG)}


def has_pretrained_encoder(name: str) -> bool:
    """Whether a model has a pretrained encoder (`atst`), to which optimizer.layer_decay and optimizer.frozen apply."""
    return hasattr(_model(name), "pretrained")


def build(model: dict, num_classes: int, precision: str = "float32") -> nn.Module:
    """The model with the `name` and the fields in `model`, as in a config. Raises UserError for incompatible sizes."""
    kind, fields = _model(model["name"]), {key: value for key, value in model.items() if key != "name"}
    if fields.get("heads") and fields["width"] % fields["heads"]:
        raise UserError(f"model.width = {fields['width']} must be divisible by model.heads = {fields['heads']}.")
    for prefix in ("", "atst_"):  # of the encoder, and of ATST-Frame if it comes before it
        width, layers, hidden = (fields.get(f"{prefix}{key}", 0) for key in ("width", "layers", "feed_forward"))
        size = layers * width * (4 * width + 2 * hidden) + fields.get("positions", 0) * width
        if size > MAX_PARAMETERS:
            raise UserError(f"model.{prefix}width = {width} with model.{prefix}layers = {layers} and "
                            f"model.{prefix}feed_forward = {hidden} gives about {size:,} parameters; the limit is "
                            f"{MAX_PARAMETERS:,}.")
        dropped = fields.get(f"{prefix}drop_layers")
        if dropped is not None and width % HEAD_SIZE:
            raise UserError(f"model.{prefix}width must be a multiple of {HEAD_SIZE}, the size of an attention head, "
                            f"not {width}.")
        if dropped is not None and dropped >= layers:
            raise UserError(f"model.{prefix}drop_layers = {dropped} must be less than model.{prefix}layers = {layers}.")
    if hasattr(kind, "dtype"):
        fields["dtype"] = DTYPES[precision]
    return kind(num_classes=num_classes, **fields)


def build_from(config, task: Task) -> nn.Module:
    """The model of an experiment (a sedjax.core.config.Config) for a task."""
    return build(config.model, len(task.classes), config.precision)


def _model(name: str) -> type[nn.Module]:
    if name not in MODELS:
        raise UserError(f"There is no model {bounds.shown(name)}; the models are {', '.join(sorted(MODELS))}.")
    return MODELS[name]
