"""The embedding-transformer: systems 9 to 13 of the report; 13 won MLPC 2025 (SPEC section 4)."""

from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from pydantic import Field

from sedjax.core.bounds import FramesOrNone, Layers, ShareBelowOne, Size, SizeOrNone
from sedjax.models.encoder import KERNEL_INIT, BatchNorm, Dense, Encoder, Head, gelu, standardize


class DepthwiseConv(nn.Module):
    """A depthwise convolution over `size` frames, without bias."""

    size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame column"]) -> Float[Array, "clip frame column"]:
        frames, columns = x.shape[1:]
        kernel = self.param("kernel", KERNEL_INIT, (self.size, 1, columns)).astype(self.dtype)
        # A sum of shifted products: with XLA's grouped convolution a step takes eight times as long on a CPU.
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), ((self.size - 1) // 2, self.size // 2), (0, 0)))
        return sum(padded[:, i : i + frames] * kernel[None, i] for i in range(self.size))


class DepthwiseStem(nn.Module):
    """Depthwise convolutions over time with batch norm and ReLU, then a linear layer."""

    width: int
    kernels: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame column"], frame_mask: Bool[Array, "clip frame"],
                 train: bool) -> Float[Array, "clip frame width"]:
        for i, size in enumerate(self.kernels, start=1):
            x = jnp.where(frame_mask[..., None], x, 0)  # a convolution reaches past the end of a clip
            x = DepthwiseConv(size, self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, frame_mask, train))
        return Dense(self.width, dtype=self.dtype, name="proj")(x)


class EmbeddingTransformer(nn.Module):
    """Frame embeddings -> two linear layers, or convolutions -> transformer encoder -> frame logits.

    The defaults are the report's final model: 40,821,514 parameters for 768 columns, 10 classes and 5000 positions.

    Attributes:
      num_classes: number of classes.
      stem: "linear" for two linear layers with GELU, "conv" for depthwise convolutions over time.
      kernels: kernel sizes of the depthwise convolutions, in frames.
      width, heads, layers, feed_forward, dropout, positions, norm, remat: arguments of encoder.Encoder.
      head_width: hidden units of the head; 0 for a single linear layer.
      standardize: whether to normalise the embeddings by the statistics of the training frames.
      dtype: dtype of the computation.
    """

    inputs: ClassVar[tuple[str, ...]] = ("embeddings",)

    num_classes: int
    stem: Literal["linear", "conv"] = "linear"
    kernels: Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], Field(max_length=16)] = (7, 5, 3)
    width: Size = 1024
    heads: Size = 4
    layers: Layers = 4
    feed_forward: Size = 2048
    dropout: ShareBelowOne = 0.2
    positions: FramesOrNone = 250
    norm: Literal["post", "pre"] = "post"
    remat: bool = False
    head_width: SizeOrNone = 256
    standardize: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: dict[str, Float[Array, "clip frame _"]], frame_mask: Bool[Array, "clip frame"], *,
                 train: bool = False, clip_id: Int[Array, "clip"] | None = None) -> Float[Array, "clip frame class"]:
        x = features["embeddings"]
        if self.standardize:
            x = standardize(self, "embeddings", x.astype(jnp.float32))
        clip_id = clip_id if train else None
        x = x.astype(self.dtype)
        if self.stem == "conv":
            x = DepthwiseStem(self.width, self.kernels, self.dtype, name="stem")(x, frame_mask, train)
        else:
            x = gelu(Dense(self.width, dtype=self.dtype, name="proj1")(x))
            x = Dense(self.width, dtype=self.dtype, name="proj2")(x)
        x = Encoder(self.layers, self.heads, self.feed_forward, self.dropout, self.positions, self.norm, self.remat,
                    self.dtype, name="encoder")(x, frame_mask, clip_id)
        self.sow("intermediates", "embeddings", x)  # stored only on request: trained.embed_step
        return Head(self.num_classes, self.head_width, self.dropout, self.dtype, name="head")(x, clip_id)
