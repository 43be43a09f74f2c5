"""Dropout whose mask depends on the clip, not on its position in the batch (Srivastava et al. 2014)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, UInt


def clip_seeds(key: Key[Array, ""], clip_id: Int[Array, "clip"]) -> UInt[Array, "clip 2"]:
    """Two 32-bit seeds for each clip."""
    words = jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, clip_id))
    return jnp.stack([words[:, 0], words[:, -1]], axis=1)


def kept(entry: UInt[Array, "..."], first: UInt[Array, "..."], second: UInt[Array, "..."],
         rate: float) -> Bool[Array, "..."]:
    """Whether each entry of a clip is kept.

    A cipher for every entry, as in jax.random.bits, takes up to a tenth of a training step on a CPU; a hash of the
    entry's index, keyed by one cipher per clip, fuses with the multiplication and is random enough for dropout.

    Args:
      entry: index of the entry within the clip.
      first, second: the two seeds of clip_seeds.
      rate: dropout rate.
    """
    return _mix(_mix(entry ^ first) ^ second) >= np.uint32(rate * 2**32)


def _mix(x: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """A 32-bit integer hash (lowbias32, Wellons 2018)."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)
