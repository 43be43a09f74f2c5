"""Variables of models: shapes, statistics from the records, and pretrained weights."""

import logging
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from sedjax.core import npz
from sedjax.core.errors import UserError

log = logging.getLogger("sedjax")


def example_inputs(model: nn.Module, widths: dict[str, int]) -> tuple[dict[str, jax.Array], jax.Array]:
    """Features and frame mask of a clip of ten frames, for `init` and for counting parameters."""
    inputs = {key: jnp.zeros((1, 10, widths[key]), jnp.int16 if key == "audio" else jnp.float32)
              for key in model.inputs}
    return inputs, jnp.ones((1, 10), bool)


def count_parameters(model: nn.Module, widths: dict[str, int]) -> int:
    """The number of trainable parameters, counted without allocating them."""
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, widths))
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))


def fill_statistics(variables: dict, features: dict[str, dict]) -> dict:
    """Sets the collection "statistics" of freshly initialised variables from the records' metadata.

    Args:
      variables: result of `init`.
      features: entries of data_prep.statistics.column_statistics for each feature key and for "labels".
    """
    def statistic(name: str) -> np.ndarray:
        key, entry = name.rsplit("_", 1)
        if key.endswith("_level"):
            key, entry = key.removesuffix("_level"), f"level_{entry}"
        if entry not in features[key]:
            raise UserError(f"The feature {key!r} has negative values, which cannot be converted to decibels; "
                            "set model.log_scale = False.")
        return np.asarray(features[key][entry], np.float32)

    if "statistics" not in variables:
        return variables
    return {**variables, "statistics": {name: statistic(name) for name in variables["statistics"]}}


def fill_weights(variables: dict, path: str | os.PathLike, unused: Sequence[str] = ()) -> dict:
    """Replaces parts of freshly initialised variables, for example a pretrained stem.

    Args:
      variables: result of `init`.
      path: npz file of data_prep.import_weights, with arrays named by their path in `variables`, such as
        `params/stem/conv1/kernel`. A part of the model that it holds, such as `params/stem`, must be complete.
      unused: name prefixes of arrays in the file that the model ignores.

    Raises:
      UserError: the file is unreadable, does not fit the model, or is not finite; then nothing is replaced.
    """
    arrays = npz.read_npz(path)
    ignored = {prefix for prefix in unused for name in arrays if name.startswith(prefix)}
    if ignored:
        log.info("Ignoring unused initial weights in %s: %s.", path, ", ".join(sorted(ignored)))
    arrays = {name: value for name, value in arrays.items() if not name.startswith(tuple(ignored))}
    if not arrays:
        raise UserError(f"The initial weights {path} contain nothing that the model uses.")
    flat = traverse_util.flatten_dict(variables, sep="/")
    parts = {tuple(name.split("/")[:2]) for name in arrays}
    expected = {name: value.shape for name, value in flat.items() if tuple(name.split("/")[:2]) in parts}
    shapes = {name: value.shape for name, value in arrays.items()}
    if expected != shapes:
        first = min(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
        raise UserError(f"The initial weights {path} do not fit the model: {first} is {shapes.get(first, 'missing')} "
                        f"there and {expected.get(first, 'missing')} in the model.")
    replaced = {}
    for name, value in arrays.items():
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                replaced[name] = jnp.asarray(value.astype(flat[name].dtype))
        if name not in replaced or not jnp.isfinite(replaced[name]).all():
            raise UserError(f"The initial weights {path} cannot be used: {name} is not an array of finite floats.")
    return traverse_util.unflatten_dict({**flat, **replaced}, sep="/")
