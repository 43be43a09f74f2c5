"""Multi-head self-attention over real frames (Vaswani et al. 2017), by what suits the platform it is compiled for.

The numbers are the same within rounding. What differs is whether the weights, frames x frames of each clip and head,
pass through memory: not on a TPU, where a kernel keeps them on the chip; on a GPU only if some are dropped, as cuDNN's
kernel cannot do that by clip. They are kept for the backward pass: to compute them again moves more bytes on a GPU.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt

from sedjax.core import collective
from sedjax.models import tpu_attention
from sedjax.models.dropout import kept

HALF = (jnp.bfloat16, jnp.float16)


def self_attention(qkv: Float[Array, "clip frame column"], frame_mask: Bool[Array, "clip frame"], heads: int,
                   seeds: UInt[Array, "clip 2"] | None = None,
                   rate: float = 0.0) -> Float[Array, "clip frame width"]:
    """What each frame takes from the real frames of its clip; finite where a clip has none.

    Args:
      qkv: queries, keys and values side by side, each of `heads` x the size of a head.
      frame_mask: real frames.
      heads: how many.
      seeds: of dropout.clip_seeds, for dropping weights; None drops nothing.
      rate: share of the weights that are dropped.
    """
    rate = 0.0 if seeds is None else rate
    seeds = jnp.zeros((len(qkv), 2), jnp.uint32) if seeds is None else seeds
    platforms = {"default": functools.partial(_plain, heads=heads, rate=rate)}
    if not rate:
        platforms["cuda"] = functools.partial(_cudnn, heads=heads)
    if tpu_attention.fits(*qkv.shape[1:], qkv.dtype) and len(qkv) % collective.shares() == 0:
        platforms["tpu"] = collective.on_shares(functools.partial(tpu_attention.self_attention, heads=heads, rate=rate))
    return jax.lax.platform_dependent(qkv, frame_mask, seeds, **platforms)


def by_xla(qkv: Float[Array, "clip frame column"], frame_mask: Bool[Array, "clip frame"],
           heads: int) -> Float[Array, "clip frame width"]:
    """The same without any kernel, for comparison."""
    return _plain(qkv, frame_mask, jnp.zeros((len(qkv), 2), jnp.uint32), heads=heads, rate=0.0)


def _plain(qkv: Array, frame_mask: Array, seeds: Array, *, heads: int, rate: float) -> Array:
    # Heads before frames: XLA on a CPU takes up to twice as long for products whose matrices do not lie in one piece.
    query, key, value = jnp.swapaxes(_split(qkv, heads), 2, 3)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32)
    # A clip that is all padding has no real key: the finite minimum keeps its softmax and gradients finite.
    scores = jnp.where(frame_mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    if rate:
        entry = jax.lax.iota(jnp.uint32, weights[0].size).reshape(1, *weights.shape[1:])
        keep = kept(entry, *(word.reshape(-1, 1, 1, 1) for word in seeds.T), rate)
        weights = jnp.where(keep, weights / (1 - rate), 0)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
    return jnp.swapaxes(mixed, 1, 2).reshape(*qkv.shape[:2], -1)


def _cudnn(qkv: Array, frame_mask: Array, seeds: Array, *, heads: int) -> Array:
    """By cuDNN's fused kernel, where there is one for this precision and size of heads."""
    if qkv.dtype in HALF:
        query, key, value = _split(qkv, heads)
        frames = frame_mask.shape[1]
        whole = jnp.broadcast_to(frame_mask[:, None, None, :], (len(qkv), 1, frames, frames))
        try:
            mixed = jax.nn.dot_product_attention(query, key, value, mask=whole, implementation="cudnn")
            return mixed.reshape(*qkv.shape[:2], -1)
        except (NotImplementedError, RuntimeError, ValueError):  # cuDNN is missing or too old, or the head too wide
            pass
    return _plain(qkv, frame_mask, seeds, heads=heads, rate=0.0)


def _split(qkv: Array, heads: int) -> Array:
    """Queries, keys and values, (3, clip, frame, head, size)."""
    return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 2, 0)
