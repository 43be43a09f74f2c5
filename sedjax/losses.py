"""Losses per frame and class, merged once as (sum, count)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sedjax.config import LossConfig
from sedjax.errors import UserError
from sedjax.task import OUTCOMES, Task


def weighted_bce(logits: Float[Array, "*shape class"], targets: Float[Array, "*shape class"],
                 weights: Float[Array, "2 class"]) -> Float[Array, "*shape class"]:
    """Binary cross-entropy of each element, its positive part times weights[0], its negative part times weights[1]."""
    positive, negative = jnp.broadcast_to(weights[:, None, None, :], (2, *logits.shape))
    return -(positive * targets * jax.nn.log_sigmoid(logits)
             + negative * (1 - targets) * jax.nn.log_sigmoid(-logits))


def masked_sum(elements: Float[Array, "clip frame class"],
               frame_mask: Bool[Array, "clip frame"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over classes and real frames, and the number of real frames."""
    return jnp.where(frame_mask[..., None], elements, 0).sum(), frame_mask.sum(dtype=jnp.float32)


def class_weights(config: LossConfig, task: Task) -> Float[np.ndarray, "2 class"]:
    """Weights of the positive and the negative part of the loss, in the task's class order.

    `pos_weight` "costs" weighs a positive frame by FN / FP, what missing it costs against a false alarm; class_factors
    multiply that; `absolute_costs` multiplies both parts by the class's FP cost over the mean one, so that a class
    whose mistakes cost three times as much counts three times as much (SPEC section 5, defect 3).
    """
    costs = dict(zip(OUTCOMES, task.cost_matrix.T))
    if (costs["FP"] <= 0).any():
        raise UserError(f"The task {task.name!r} has a false alarm that costs nothing: pos_weight is not defined.")
    positive = costs["FN"] / costs["FP"] if config.pos_weight == "costs" else np.ones(len(task.classes))
    unknown = [name for name in config.class_factors if name not in task.classes]
    if unknown:
        raise UserError(f"loss.class_factors names {unknown[0]!r}, which is no class of {list(task.classes)}.")
    positive = positive * [config.class_factors.get(name, 1.0) for name in task.classes]
    scale = costs["FP"] / costs["FP"].mean() if config.absolute_costs else np.ones(len(task.classes))
    return np.stack([positive * scale, scale]).astype(np.float32)
