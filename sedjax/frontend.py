"""Front ends: from power to level."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray


def level(power: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Level of a power in decibels, with silence at -100 dB; numpy and JAX arrays both work."""
    xp = jnp if isinstance(power, jax.Array) else np
    return 10 * xp.log10(xp.maximum(power, 1e-10))
