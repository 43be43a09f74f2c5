"""The naive baseline: system 1 of the report (SPEC section 4)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int


class Naive(nn.Module):
    """The share of training frames in which a class is active, as its probability in every frame.

    Attributes:
      num_classes: number of classes.
    """

    inputs: ClassVar[tuple[str, ...]] = ()

    num_classes: int

    @nn.compact
    def __call__(self, features: dict[str, Float[Array, "clip frame _"]], frame_mask: Bool[Array, "clip frame"], *,
                 train: bool = False, clip_id: Int[Array, "clip"] | None = None) -> Float[Array, "clip frame class"]:
        share = self.variable("statistics", "labels_mean", jnp.zeros, (self.num_classes,)).value
        logits = jax.scipy.special.logit(jnp.clip(share, 1e-6, 1 - 1e-6))
        return jnp.broadcast_to(logits[None, None], (*frame_mask.shape, self.num_classes))
