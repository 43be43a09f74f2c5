"""Everything that training changes, as one tree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from sedjax import models


@struct.dataclass
class TrainState:
    """What training changes.

    Attributes:
      step: steps taken, int32.
      params: trainable parameters.
      ema: their running average, or None.
      model_state: the model's other variables: batch statistics, statistics of the features.
      opt_state: the optimizer's.
    """

    step: Any
    params: Any
    ema: Any
    model_state: Any
    opt_state: Any

    @property
    def weights(self) -> dict:
        """The variables to predict with: the averaged parameters where there are any, and the model's state."""
        return {"params": self.params if self.ema is None else self.ema, **self.model_state}


def create(model: nn.Module, optimizer: optax.GradientTransformation, features: dict[str, dict], ema: bool,
           seed: int) -> TrainState:
    """The state at step 0, a function of the seed.

    Args:
      model: the module.
      optimizer: its optimizer.
      features: width and statistics of each feature, from the records' metadata.
      ema: whether to average the parameters.
      seed: of the initial values.
    """
    widths = {key: entry["width"] for key, entry in features.items()}
    variables = jax.jit(model.init)(jax.random.key(seed), *models.example_inputs(model, widths))
    params = variables.pop("params", {})
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=jax.tree.map(jnp.copy, params) if ema else None,
                      model_state=models.fill_statistics(variables, features), opt_state=optimizer.init(params))
