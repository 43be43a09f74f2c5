"""Variables of models: their shapes, and initial values from the records and from pretrained weights."""

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
    """Features and frame mask of one clip of ten frames, for `init` and for counting parameters."""
    inputs = {key: jnp.zeros((1, 10, widths[key]), jnp.int16 if key == "audio" else jnp.float32)
              for key in model.inputs}
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
    held = npz.read_npz(path)
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
