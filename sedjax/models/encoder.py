"""Layers shared by the models: dropout by clip, attention over real frames, transformer encoder, classifier head."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt

from sedjax.core.collective import global_sum
from sedjax.core.errors import UserError
from sedjax.models.attention import self_attention
from sedjax.models.dropout import clip_seeds, kept

POSITION_STD = 0.02
# PyTorch's initialisation of linear layers and convolutions, as in the report's systems: U(+-1 / sqrt(fan_in)).
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def by_rows(x: Array, kernel: Array, dimension_numbers, **kwargs) -> Array:
    """The product x @ kernel of a linear layer, with clips and frames merged into one axis.

    With separate axes, XLA on a CPU first copies the transposed gradients of each layer: a tenth of a training step.
    """
    product = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **kwargs)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


Dense = functools.partial(nn.Dense, kernel_init=KERNEL_INIT, dot_general=by_rows)


def gelu(x: Array) -> Array:
    """The exact GELU, with erf, as in PyTorch (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


class Dropout(nn.Module):
    """Inverted dropout whose mask is a function of (module, step key, clip), not of a clip's position in the batch.

    So it is the same on one device and on eight, under jit and under pmap.
    """

    rate: float

    def seeds(self, clip_id: Int[Array, "clip"] | None) -> UInt[Array, "clip 2"] | None:
        """Seeds of the mask of each clip; None if nothing is dropped, as in evaluation (no `clip_id`)."""
        return None if clip_id is None or self.rate == 0 else clip_seeds(self.make_rng("dropout"), clip_id)

    def __call__(self, x: Float[Array, "clip ..."], clip_id: Int[Array, "clip"] | None) -> Float[Array, "clip ..."]:
        """Drops entries of `x`; with `clip_id` None (evaluation), nothing is dropped."""
        seeds = self.seeds(clip_id)
        if seeds is None:
            return x
        entry = jax.lax.iota(jnp.uint32, x[0].size).reshape(1, *x.shape[1:])
        first, second = (word.reshape(len(x), *[1] * (x.ndim - 1)) for word in seeds.T)
        return jnp.where(kept(entry, first, second, self.rate), x / (1 - self.rate), 0)


class BatchNorm(nn.Module):
    """Batch normalisation over real frames (Ioffe and Szegedy 2015): padding does not affect the statistics.

    In training the statistics are those of the global batch, so they do not depend on the number of devices, nor on
    jit or pmap. As in PyTorch, the running variance for evaluation is unbiased.

    Attributes:
      momentum: share of the running statistics kept at each step.
      epsilon: constant added to the variance.
      dtype: dtype of the result; statistics are float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame *rest channel"], frame_mask: Bool[Array, "clip frame"],
                 train: bool) -> Float[Array, "clip frame *rest channel"]:
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean, var = running_mean.value, running_var.value
        axes, broadcast = range(x.ndim - 1), (1,) * (x.ndim - 1) + shape
        if train:
            real = frame_mask.reshape(*frame_mask.shape, *[1] * (x.ndim - 2))
            frames = global_sum(frame_mask.sum(dtype=jnp.float32))
            count = jnp.maximum(frames * (x[0, 0].size // x.shape[-1]), 1)
            mean = global_sum(jnp.where(real, x.astype(jnp.float32), 0).sum(axes)) / count
            spread = jnp.where(real, (x.astype(jnp.float32) - mean.reshape(broadcast)) ** 2, 0)
            var = global_sum(spread.sum(axes)) / count
            if not self.is_initializing():
                momentum = jnp.where(frames > 0, self.momentum, 1.0)  # padding alone has no statistics
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value = momentum * running_mean.value + (1 - momentum) * mean
                running_var.value = momentum * running_var.value + (1 - momentum) * unbiased
        factor = scale / jnp.sqrt(var + self.epsilon)
        return (x * factor.reshape(broadcast) + (bias - mean * factor).reshape(broadcast)).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over real frames only (Vaswani et al. 2017).

    Attributes:
      heads: number of heads; must divide the width.
      dropout: dropout rate on the attention weights.
      dtype: dtype of the matrix products; the softmax is float32.
    """

    heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame width"], frame_mask: Bool[Array, "clip frame"],
                 clip_id: Int[Array, "clip"] | None) -> Float[Array, "clip frame width"]:
        width = x.shape[-1]
        qkv = Dense(3 * width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="qkv")(x)
        seeds = Dropout(self.dropout).seeds(clip_id)
        mixed = self_attention(qkv, frame_mask, self.heads, seeds, self.dropout)
        return Dense(width, dtype=self.dtype, name="out")(mixed)


class EncoderLayer(nn.Module):
    """One transformer layer: attention and a ReLU feed-forward block, with the norm after (post) or before (pre)."""

    heads: int
    feed_forward: int
    dropout: float
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame width"], frame_mask: Bool[Array, "clip frame"],
                 clip_id: Int[Array, "clip"] | None) -> Float[Array, "clip frame width"]:
        def block(x: Array, norm: Callable, branch: Callable) -> Array:
            if self.norm == "post":
                return norm(x + Dropout(self.dropout)(branch(x), clip_id)).astype(self.dtype)
            return x + Dropout(self.dropout)(branch(norm(x).astype(self.dtype)), clip_id)

        def feed_forward(x: Array) -> Array:
            hidden = nn.relu(Dense(self.feed_forward, dtype=self.dtype, name="linear1")(x))
            return Dense(width, dtype=self.dtype, name="linear2")(Dropout(self.dropout)(hidden, clip_id))

        width = x.shape[-1]
        attention = Attention(self.heads, self.dropout, self.dtype, name="attention")
        x = block(x, nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm1"),
                  lambda x: attention(x, frame_mask, clip_id))
        return block(x, nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm2"), feed_forward)


class Encoder(nn.Module):
    """Learned positions and a stack of transformer layers over frames.

    Attributes:
      layers, heads, feed_forward: number of layers, heads (must divide the width), and hidden units of a layer.
      dropout: dropout rate.
      positions: rows of the learned position table; 0 for none.
      norm: "post", as in the report, or "pre", with a final norm at the end.
      remat: whether to keep only the inputs of each layer and recompute the rest in the backward pass.
      dtype: dtype of the computation; parameters and norms are float32.
    """

    layers: int
    heads: int
    feed_forward: int
    dropout: float
    positions: int
    norm: str = "post"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame width"], frame_mask: Bool[Array, "clip frame"],
                 clip_id: Int[Array, "clip"] | None) -> Float[Array, "clip frame width"]:
        frames, width = x.shape[1:]
        if self.positions:
            if frames > self.positions:
                raise UserError(f"A batch has {frames} frames but the model has {self.positions} positions: "
                                "lower data.max_frames or raise model.positions.")
            table = self.param("positions", nn.initializers.normal(POSITION_STD), (self.positions, width))
            x = x + table[None, :frames].astype(self.dtype)
        layer = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        for i in range(self.layers):
            x = layer(self.heads, self.feed_forward, self.dropout, self.norm, self.dtype,
                      name=f"layer_{i}")(x, frame_mask, clip_id)
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x) if self.norm == "pre" else x


class Head(nn.Module):
    """Frame logits: Linear, or Linear - GELU - dropout - Linear if `hidden` is not 0. The last layer is float32."""

    num_classes: int
    hidden: int
    dropout: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame width"],
                 clip_id: Int[Array, "clip"] | None) -> Float[Array, "clip frame class"]:
        if self.hidden:
            x = gelu(Dense(self.hidden, dtype=self.dtype, name="linear1")(x))
            x = Dropout(self.dropout)(x, clip_id)
        return Dense(self.num_classes, dtype=jnp.float32, name="linear2")(x.astype(jnp.float32))


def standardize(module: nn.Module, key: str, x: Float[Array, "clip frame band"]) -> Float[Array, "clip frame band"]:
    """Subtracts the training mean of feature `key` and divides by its standard deviation, column by column.

    Both are variables of the collection "statistics", so checkpoints hold them; variables.fill_statistics sets them.
    """
    mean = module.variable("statistics", f"{key}_mean", jnp.zeros, x.shape[-1:])
    std = module.variable("statistics", f"{key}_std", jnp.ones, x.shape[-1:])
    return (x - mean.value[None, None]) / std.value[None, None]
