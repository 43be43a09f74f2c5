"""Losses per frame and class, reduced to (sum, count)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sedjax.core.errors import UserError
from sedjax.core.task import OUTCOMES, Task


def weighted_bce(logits: Float[Array, "*shape class"], targets: Float[Array, "*shape class"],
                 weights: Float[Array, "2 class"]) -> Float[Array, "*shape class"]:
    """Binary cross-entropy of each element; the positive part is scaled by weights[0], the negative by weights[1]."""
    positive, negative = (jnp.broadcast_to(weight, logits.shape) for weight in weights)
    return -(positive * targets * jax.nn.log_sigmoid(logits)
             + negative * (1 - targets) * jax.nn.log_sigmoid(-logits))


def masked_sum(elements: Float[Array, "clip frame class"],
               frame_mask: Bool[Array, "clip frame"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum over classes and real frames, and the number of real frames."""
    return jnp.where(frame_mask[..., None], elements, 0).sum(), frame_mask.sum(dtype=jnp.float32)


def class_weights(task: Task, pos_weight: str = "costs", class_factors: Mapping[str, float] | None = None,
                  absolute_costs: bool = False) -> Float[np.ndarray, "2 class"]:
    """Weights of the positive and the negative part of the loss, in the task's class order; see config.LossConfig.

    `pos_weight` "costs" weights a positive frame by FN / FP, the cost of a miss relative to a false alarm; the
    class_factors multiply that; `absolute_costs` multiplies both parts by the class's FP cost over the mean FP cost, so
    that a class whose errors cost three times as much has three times the weight (SPEC section 5, defect 3).
    """
    costs = dict(zip(OUTCOMES, task.cost_matrix.T))
    settings = [key for key, used in (("pos_weight = 'costs'", pos_weight == "costs"),
                                      ("absolute_costs = True", absolute_costs)) if used]
    if settings and (costs["FP"] <= 0).any():
        name = task.classes[int(np.argmax(costs["FP"] <= 0))]
        raise UserError(f"loss.{settings[0]} is not defined for the task {task.name!r}, in which a false alarm for "
                        f"{name!r} costs nothing.")
    positive = costs["FN"] / costs["FP"] if pos_weight == "costs" else np.ones(len(task.classes))
    class_factors = class_factors or {}
    unknown = [name for name in class_factors if name not in task.classes]
    if unknown:
        raise UserError(f"loss.class_factors names a class that the task {task.name!r} lacks: {unknown[0]!r}.")
    positive = positive * [class_factors.get(name, 1.0) for name in task.classes]
    scale = costs["FP"] / costs["FP"].mean() if absolute_costs else np.ones(len(task.classes))
    return np.stack([positive * scale, scale]).astype(np.float32)
