"""The models by name, and what all of them need: construction from a config, statistics, a table of parameters."""

import dataclasses
import logging
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from sedjax import bounds, files
from sedjax.errors import UserError
from sedjax.models.atst_detector import AtstDetector, AtstHybrid
from sedjax.models.conv_transformer import ConvTransformer
from sedjax.models.embedding_transformer import EmbeddingTransformer
from sedjax.models.naive import Naive
from sedjax.task import Task

MODELS = {"atst_frame": AtstDetector, "atst_hybrid": AtstHybrid, "conv_transformer": ConvTransformer,
          "embedding_transformer": EmbeddingTransformer, "naive": Naive}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NOT_IN_CONFIG = ("num_classes", "dtype", "parent", "name")  # the task, the precision and flax give these
MAX_PARAMETERS = 2_000_000_000  # of an encoder: 8 GB, and twice as much for the moments of Adam

log = logging.getLogger("sedjax")


def default_fields(name: str) -> dict:
    """The configurable fields of a model and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(_model(name)) if field.name not in NOT_IN_CONFIG}


def check_fields(fields: dict) -> dict:
    """`name` and all configurable fields of a model, from those that a config gives.

    Raises UserError for a field that the model does not have, or a value that it cannot take.
    """
    name = fields["name"]
    if not isinstance(name, str):
        raise UserError(f"model.name must be one of {', '.join(sorted(MODELS))}, not {bounds.shown(name)}.")
    given = {key: value for key, value in fields.items() if key != "name"}
    return {"name": name, **bounds.check(_model(name), given, "model.", without=NOT_IN_CONFIG)}


def has_pretrained_encoder(name: str) -> bool:
    """Whether optimizer.layer_decay and optimizer.frozen mean something for a model: its parameters `atst`."""
    return hasattr(_model(name), "pretrained")


def build(name: str, fields: dict, num_classes: int, precision: str = "float32") -> nn.Module:
    """The model `name` with the given fields. Raises UserError for sizes that do not fit together."""
    if fields.get("heads") and fields["width"] % fields["heads"]:
        raise UserError(f"model.width = {fields['width']} cannot be divided by model.heads = {fields['heads']}.")
    for prefix in ("", "atst_"):
        width, layers, hidden = (fields.get(f"{prefix}{key}", 0) for key in ("width", "layers", "feed_forward"))
        size = layers * width * (4 * width + 2 * hidden) + fields.get("positions", 0) * width
        if size > MAX_PARAMETERS:
            raise UserError(f"model.{prefix}width = {width} with model.{prefix}layers = {layers} and "
                            f"model.{prefix}feed_forward = {hidden} makes about {size:,} parameters; at most "
                            f"{MAX_PARAMETERS:,} are possible.")
    if "dtype" in {field.name for field in dataclasses.fields(_model(name))}:
        fields = {**fields, "dtype": DTYPES[precision]}
    return _model(name)(num_classes=num_classes, **fields)


def build_from(config, task: Task) -> nn.Module:
    """The model of an experiment (a sedjax.config.Config) for a task."""
    fields = {key: value for key, value in config.model.items() if key != "name"}
    return build(config.model["name"], fields, len(task.classes), config.precision)


def example_inputs(model: nn.Module, widths: dict[str, int]) -> tuple[dict[str, jax.Array], jax.Array]:
    """Features and frame mask of one clip of ten frames, for `init` and for counting parameters."""
    inputs = {key: jnp.zeros((1, 10, widths[key]), jnp.int16 if key == "audio" else jnp.float32)
              for key in model.features}
    return inputs, jnp.ones((1, 10), bool)


def count_parameters(model: nn.Module, widths: dict[str, int]) -> int:
    """Trainable parameters, without allocating any."""
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, widths))
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))


def fill_statistics(variables: dict, features: dict[str, dict]) -> dict:
    """Sets the collection "statistics" of freshly initialised variables from the records' metadata.

    Args:
      variables: what `init` returned.
      features: per feature key, and for "labels", the entries of data_prep.builder.column_statistics.
    """
    def statistic(name: str) -> np.ndarray:
        key, entry = name.rsplit("_", 1)
        if key.endswith("_level"):
            key, entry = key.removesuffix("_level"), f"level_{entry}"
        if entry not in features[key]:
            raise UserError(f"The feature {key!r} holds negative values: it is no power, so it has no level; "
                            "set model.log_scale = False.")
        return np.asarray(features[key][entry], np.float32)

    if "statistics" not in variables:
        return variables
    return {**variables, "statistics": {name: statistic(name) for name in variables["statistics"]}}


def fill_weights(variables: dict, path: str | os.PathLike, unused: Sequence[str] = ()) -> dict:
    """Replaces parts of freshly initialised variables, a pretrained stem for example.

    Args:
      variables: what `init` returned.
      path: npz of arrays by path in `variables`, as `params/stem/conv1/kernel`, from data_prep.import_weights. Of a
        part of the model that it holds, such as `params/stem`, it must hold everything.
      unused: how the names begin of what it may hold although the model has no place for it.

    Raises:
      UserError: it cannot be read, does not fit the model, or is not finite; nothing is replaced then.
    """
    held = files.read_npz(path)
    left_out = {prefix for prefix in unused for name in held if name.startswith(prefix)}
    if left_out:
        log.info("Of the initial weights %s, the model has no place for %s.", path, ", ".join(sorted(left_out)))
    held = {name: value for name, value in held.items() if not name.startswith(tuple(left_out))}
    if not held:
        raise UserError(f"The initial weights {path} hold nothing for the model.")
    flat = traverse_util.flatten_dict(variables, sep="/")
    parts = {tuple(name.split("/")[:2]) for name in held}
    wanted = {name: value.shape for name, value in flat.items() if tuple(name.split("/")[:2]) in parts}
    found = {name: value.shape for name, value in held.items()}
    if wanted != found:
        odd = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UserError(f"The initial weights {path} do not fit the model: {odd} is {found.get(odd, 'missing')} there "
                        f"and {wanted.get(odd, 'missing')} in the model.")
    replaced = {}
    for name, value in held.items():
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                replaced[name] = jnp.asarray(value.astype(flat[name].dtype))
        if name not in replaced or not jnp.isfinite(replaced[name]).all():
            raise UserError(f"The initial weights {path} cannot be used: {name} is not an array of finite fractions.")
    return traverse_util.unflatten_dict({**flat, **replaced}, sep="/")


def _model(name: str) -> type[nn.Module]:
    if name not in MODELS:
        raise UserError(f"There is no model {bounds.shown(name)}; the models are {', '.join(sorted(MODELS))}.")
    return MODELS[name]
