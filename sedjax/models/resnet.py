"""ResNet-34 (He et al. 2016) over frames and frequency bands: the stem of system 4 (SPEC section 4)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from sedjax.models.encoder import BatchNorm

# Torchvision's initialisation: He normal with fan-out (He et al. 2015).
KERNEL_INIT = nn.initializers.variance_scaling(2, "fan_out", "normal")


class ResNet34(nn.Module):
    """Torchvision's ResNet-34 up to its last stage; padding does not affect real frames.

    Attributes:
      width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
      time_strides: whether to stride on both axes, as for images, or on frequency only, which keeps every frame.
      blocks: number of blocks of each stage; if empty, the network ends after its max pool.
      dtype: dtype of the computation; parameters and batch statistics are float32.
    """

    width: int = 64
    time_strides: bool = False
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame band channel"], frame_mask: Bool[Array, "clip frame"],
                 train: bool) -> Float[Array, "clip frame_out band_out channel_out"]:
        halve = (2, 2) if self.time_strides else (1, 2)
        x, frame_mask = conv_norm(x, frame_mask, train, self.width, 7, halve, self.dtype, "conv1", "bn1")
        # Nothing is below 0 after the ReLU, so zeros never win the max: they work as well as the pool's own -inf.
        x = jnp.where(frame_mask[:, :, None, None], nn.relu(x), 0)
        x = nn.max_pool(x, (3, 3), halve, [(1, 1), (1, 1)])
        frame_mask = frame_mask[:, :: halve[0]]
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                strides = halve if stage and not block else (1, 1)
                x, frame_mask = Block(self.width * 2**stage, strides, self.dtype, name=f"layer{stage + 1}_{block}")(
                    x, frame_mask, train)
        return x


class Block(nn.Module):
    """A residual block of two convolutions; a third one projects the shortcut where they change the shape.

    Attributes:
      channels: output channels.
      strides: strides over frames and bands.
      dtype: dtype of the computation.
    """

    channels: int
    strides: tuple[int, int]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame band channel"], frame_mask: Bool[Array, "clip frame"],
                 train: bool) -> tuple[Float[Array, "clip frame_out band_out channel_out"],
                                       Bool[Array, "clip frame_out"]]:
        y, mask_out = conv_norm(x, frame_mask, train, self.channels, 3, self.strides, self.dtype, "conv1", "bn1")
        y, _ = conv_norm(nn.relu(y), mask_out, train, self.channels, 3, (1, 1), self.dtype, "conv2", "bn2")
        if x.shape != y.shape:
            x, _ = conv_norm(x, frame_mask, train, self.channels, 1, self.strides, self.dtype,
                             "downsample_conv", "downsample_bn")
        return nn.relu(x + y), mask_out


def conv_norm(x: Float[Array, "clip frame band channel"], frame_mask: Bool[Array, "clip frame"], train: bool,
              channels: int, size: int, strides: tuple[int, int], dtype: DTypeLike, conv: str,
              norm: str) -> tuple[Float[Array, "clip frame_out band_out channel_out"], Bool[Array, "clip frame_out"]]:
    """A convolution padded as in PyTorch and its batch norm; returns the result and its frame mask.

    Must be called within a module, which owns the two layers.

    Args:
      x, frame_mask, train: same as for BatchNorm.
      channels: output channels.
      size: size of the square kernel, odd.
      strides: strides over frames and bands.
      dtype: dtype of the computation.
      conv, norm: names of the two layers.
    """
    # A convolution reaches past the end of a clip: padding must look like the zeros beyond the batch.
    x = jnp.where(frame_mask[:, :, None, None], x, 0)
    x = nn.Conv(channels, (size, size), strides, padding=size // 2, use_bias=False, dtype=dtype,
                kernel_init=KERNEL_INIT, name=conv)(x)
    frame_mask = frame_mask[:, :: strides[0]]
    return BatchNorm(dtype=dtype, name=norm)(x, frame_mask, train), frame_mask
