"""Self-attention in one kernel on a TPU: the weights of a clip, with softmax and dropout, never leave the chip.

Clips are short, so all frames of one fit on the chip: there is no need to process the keys in blocks, as in
FlashAttention (Dao et al. 2022). As there, the backward pass recomputes the weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, UInt

from sedjax.core.numbers import ceil_div
from sedjax.models.dropout import kept

LANES = 128
VMEM_BYTES = 14 << 20  # out of the 16 MiB that the compiler grants a kernel


def fits(frames: int, columns: int, dtype: np.dtype) -> bool:
    """Whether the backward pass of a clip with this many frames fits on the chip, and the kernel supports its dtype."""
    frames = _padded(frames)
    blocks = frames * (2 * columns + columns // 3) * dtype.itemsize
    return dtype in (jnp.bfloat16, jnp.float32) and 2 * blocks + 8 * frames * frames * 4 <= VMEM_BYTES


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def self_attention(qkv: Float[Array, "clip frame column"], frame_mask: Bool[Array, "clip frame"],
                   seeds: UInt[Array, "clip 2"], heads: int, rate: float,
                   interpret: bool = False) -> Float[Array, "clip frame width"]:
    """Same as attention.self_attention; `interpret` runs the kernel slowly on any platform."""
    width = qkv.shape[2] // 3
    return _call(_forward_kernel, qkv, frame_mask, seeds, (), heads, rate, width, 2, interpret)


def _forward(qkv, frame_mask, seeds, heads, rate, interpret):
    return self_attention(qkv, frame_mask, seeds, heads, rate, interpret), (qkv, frame_mask, seeds)


def _backward(heads, rate, interpret, saved, gradient):
    qkv, frame_mask, seeds = saved
    gradient = _call(_backward_kernel, qkv, frame_mask, seeds, (gradient,), heads, rate, qkv.shape[2], 5, interpret)
    return gradient, np.zeros(frame_mask.shape, jax.dtypes.float0), np.zeros(seeds.shape, jax.dtypes.float0)


self_attention.defvjp(_forward, _backward)


def _call(kernel, qkv, frame_mask, seeds, others, heads, rate, columns, products, interpret):
    """Runs a kernel once for each clip; the result has the frames of `qkv` and `columns` columns."""
    clips, frames, width = len(qkv), qkv.shape[1], qkv.shape[2] // 3
    padded = _padded(frames)
    mask = jnp.pad(frame_mask, ((0, 0), (0, padded - frames))).astype(jnp.int32)[:, None]

    def block(columns: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, padded, columns), lambda clip: (clip, 0, 0))

    bytes_accessed = (qkv.size + sum(x.size for x in others) + clips * frames * columns) * qkv.dtype.itemsize
    cost = pl.CostEstimate(flops=2 * products * clips * frames**2 * width, transcendentals=clips * heads * frames**2,
                           bytes_accessed=bytes_accessed)
    return pl.pallas_call(
        functools.partial(kernel, frames=frames, heads=heads, rate=rate),
        out_shape=jax.ShapeDtypeStruct((clips, frames, columns), qkv.dtype), grid=(clips,),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec((None, 1, padded), lambda clip: (clip, 0, 0)),
                  *(block(x.shape[2]) for x in (qkv, *others))],
        out_specs=block(columns), cost_estimate=cost, interpret=interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)))(seeds, mask, qkv, *others)


def _forward_kernel(seeds, mask, qkv, mixed, *, frames, heads, rate):
    for head in range(heads):
        _, _, value = _of_head(qkv, head, heads, frames)
        weights, factor = _weights(seeds, mask, qkv, head, heads, frames, rate)
        size = value.shape[1]
        mixed[:, head * size : (head + 1) * size] = _product((weights * factor).astype(value.dtype),
                                                             value).astype(mixed.dtype)


def _backward_kernel(seeds, mask, qkv, d_mixed, d_qkv, *, frames, heads, rate):
    for head in range(heads):
        query, key, value = _of_head(qkv, head, heads, frames)
        size = value.shape[1]
        weights, factor = _weights(seeds, mask, qkv, head, heads, frames, rate)
        d_out = _real(d_mixed[:, head * size : (head + 1) * size], frames)
        d_value = _product((weights * factor).astype(value.dtype), d_out, (0, 0))
        d_weights = _product(d_out, value, (1, 1)) * factor
        d_scores = weights * (d_weights - (d_weights * weights).sum(axis=1, keepdims=True))
        # Without any real frame, all weights are equal, whatever the scores: their gradient is 0.
        d_scores = jnp.where(mask[...] > 0, d_scores * size**-0.5, 0).astype(value.dtype)
        for i, gradient in enumerate((_product(d_scores, key), _product(d_scores, query, (0, 0)), d_value)):
            first = (i * heads + head) * size
            d_qkv[:, first : first + size] = gradient.astype(d_qkv.dtype)


def _weights(seeds, mask, qkv, head, heads, frames, rate):
    """The softmax of a head's scores, and the factors of its dropout: 0 or 1 / (1 - rate)."""
    query, key, _ = _of_head(qkv, head, heads, frames)
    scores = _product(query, key, (1, 1)) * query.shape[1] ** -0.5
    scores = jnp.where(mask[...] > 0, scores, jnp.finfo(jnp.float32).min)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, scores.shape, axis) for axis in (0, 1))
    weights = jnp.where(column < frames, jnp.exp(scores - scores.max(axis=1, keepdims=True)), 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    if not rate:
        return weights, 1.0
    clip = pl.program_id(0)
    entry = (np.uint32(head * frames) + row) * np.uint32(frames) + column
    return weights, jnp.where(kept(entry, seeds[clip, 0], seeds[clip, 1], rate), np.float32(1 / (1 - rate)), 0)


def _of_head(qkv, head, heads, frames):
    size = qkv.shape[1] // (3 * heads)
    return [_real(qkv[:, (i * heads + head) * size : (i * heads + head + 1) * size], frames) for i in range(3)]


def _real(x, frames):
    """A block with 0 in the rows after its last frame, whose contents are undefined."""
    if x.shape[0] == frames:
        return x
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) < frames, x, jnp.zeros((), x.dtype))


def _product(x, y, contracted=(1, 0)):
    return jax.lax.dot_general(x, y, (((contracted[0],), (contracted[1],)), ((), ())),
                               preferred_element_type=jnp.float32)


def _padded(frames: int) -> int:
    return ceil_div(frames, LANES) * LANES
