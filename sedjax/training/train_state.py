"""The state of training: everything that a step changes, as one tree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from sedjax.models.variables import example_inputs, fill_statistics, fill_weights


@struct.dataclass
class TrainState:
    """The state of training.

    Attributes:
      step: number of steps taken, int32.
      params: trainable parameters.
      ema: running average of the parameters and the batch statistics, as variables, or None.
      model_state: other variables of the model: batch statistics and statistics of the features.
      opt_state: state of the optimizer.
    """

    step: Any
    params: Any
    ema: Any
    model_state: Any
    opt_state: Any

    @property
    def eval_variables(self) -> dict:
        """The variables to predict with: the averaged ones if there is an average, and the rest of the model state."""
        return {"params": self.params, **self.model_state, **(self.ema or {})}


def trained_variables(params, model_state: dict) -> dict:
    """The variables that a step changes: all but the statistics of the features."""
    return {"params": params, **{name: tree for name, tree in model_state.items() if name != "statistics"}}


def random_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Random keys for initialisation (`create`) and for training (train_step.train_step)."""
    initial_key, training_key = jax.random.split(jax.random.key(seed))
    return initial_key, training_key


def create(model: nn.Module, optimizer: optax.GradientTransformation, features: dict[str, dict], ema: bool,
           seed: int, initial_weights: str = "") -> TrainState:
    """The state at step 0, a function of the seed.

    Args:
      model: module to train.
      optimizer: optimizer of its parameters.
      features: width and statistics of each feature, from the records' metadata.
      ema: whether to average the trained variables.
      seed: seed of the initial values.
      initial_weights: npz of pretrained weights for a part of the model, see variables.fill_weights.
    """
    widths = {key: entry["width"] for key, entry in features.items()}
    variables = jax.jit(model.init)(random_keys(seed)[0], *example_inputs(model, widths))
    if initial_weights:
        variables = fill_weights(variables, initial_weights, getattr(model, "unused_weights", ()))
    params = variables.pop("params", {})
    model_state = fill_statistics(variables, features)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, model_state=model_state,
                      ema=jax.tree.map(jnp.copy, trained_variables(params, model_state)) if ema else None,
                      opt_state=optimizer.init(params))
