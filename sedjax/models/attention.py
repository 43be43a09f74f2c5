"""Multi-head self-attention over real frames (Vaswani et al. 2017), with an implementation for each platform.

Results agree within rounding. The implementations differ in whether the attention weights, frames x frames for each
clip and head, pass through memory: never on a TPU, where a kernel keeps them on the chip; on a GPU only with dropout,
as cuDNN's kernel cannot drop by clip. They are kept for the backward pass: recomputing them moves more bytes on a GPU.
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
    """Attends from each frame to the real frames of its clip; finite even for a clip without real frames.

    Args:
      qkv: queries, keys and values, concatenated; each has `heads` x head size columns.
      frame_mask: real frames.
      heads: number of heads.
      seeds: seeds from dropout.clip_seeds for dropout on the weights; None for no dropout.
      rate: dropout rate.
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
    """self_attention without any kernel or dropout, for comparison."""
    return _plain(qkv, frame_mask, jnp.zeros((len(qkv), 2), jnp.uint32), heads=heads, rate=0.0)


def _plain(qkv: Array, frame_mask: Array, seeds: Array, *, heads: int, rate: float) -> Array:
    # Heads before frames: XLA on a CPU takes up to twice as long for products of matrices that are not contiguous.
    query, key, value = jnp.swapaxes(_split(qkv, heads), 2, 3)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32)
    # A clip of padding has no real key: the finite minimum keeps its softmax and gradients finite.
    scores = jnp.where(frame_mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    if rate:
        entry = jax.lax.iota(jnp.uint32, weights[0].size).reshape(1, *weights.shape[1:])
        keep = kept(entry, *(word.reshape(-1, 1, 1, 1) for word in seeds.T), rate)
        weights = jnp.where(keep, weights / (1 - rate), 0)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
    return jnp.swapaxes(mixed, 1, 2).reshape(*qkv.shape[:2], -1)


def _cudnn(qkv: Array, frame_mask: Array, seeds: Array, *, heads: int) -> Array:
    """cuDNN's fused kernel, if it supports this precision and head size; otherwise the plain implementation."""
    if qkv.dtype in HALF:
        query, key, value = _split(qkv, heads)
        frames = frame_mask.shape[1]
        mask = jnp.broadcast_to(frame_mask[:, None, None, :], (len(qkv), 1, frames, frames))
        try:
            mixed = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
            return mixed.reshape(*qkv.shape[:2], -1)
        except (NotImplementedError, RuntimeError, ValueError):  # cuDNN is missing or too old, or the head too wide
            pass
    return _plain(qkv, frame_mask, seeds, heads=heads, rate=0.0)


def _split(qkv: Array, heads: int) -> Array:
    """Queries, keys and values, (3, clip, frame, head, size)."""
    return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 2, 0)
