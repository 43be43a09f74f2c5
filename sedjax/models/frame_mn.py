"""Frame-MobileNet (Schmid et al. 2025) as trained by PretrainedSED: audio -> one vector per 40 ms (SPEC section 8)."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sedjax.models.encoder import Dense


class Shape(NamedTuple):
    """An inverted residual block at width 1.

    Attributes:
      kernel: size of the square depthwise kernel.
      expanded: channels of the depthwise convolution.
      channels: output channels.
      excite: whether it has squeeze-and-excitation.
      hard: whether its activation is hard-swish, not ReLU.
      strides: strides over bands and columns.
    """

    kernel: int
    expanded: int
    channels: int
    excite: bool
    hard: bool
    strides: tuple[int, int]


STEM_CHANNELS = 16
BLOCKS = (  # those of MobileNetV3-Large (Howard et al. 2019), but for the strides: after the third, time stays
    Shape(3, 16, 16, False, False, (1, 1)),
    Shape(3, 64, 24, False, False, (2, 2)),
    Shape(3, 72, 24, False, False, (2, 1)),
    Shape(5, 72, 40, True, False, (1, 1)),
    Shape(5, 120, 40, True, False, (1, 1)),
    Shape(5, 120, 40, True, False, (2, 1)),
    Shape(3, 240, 80, False, True, (1, 1)),
    Shape(3, 200, 80, False, True, (2, 1)),
    Shape(3, 184, 80, False, True, (1, 1)),
    Shape(3, 184, 80, False, True, (1, 1)),
    Shape(3, 480, 112, True, True, (2, 1)),
    Shape(3, 672, 112, True, True, (1, 1)),
    Shape(5, 672, 160, True, True, (1, 1)),
    Shape(5, 960, 160, True, True, (1, 1)),
    Shape(5, 960, 160, True, True, (2, 1)),
)
LAST_EXPANSION = 6


class FrameMobileNet(nn.Module):
    """Log-mel of frontend.frame_mn_log_mel -> rows of 40 ms, a quarter of its columns; for evaluation only.

    Squeeze-and-excitation takes the mean over the whole window, so each row depends on all of it: it was trained on
    windows of 10 s, with silence after shorter recordings.

    Attributes:
      multiplier: factor on all numbers of channels, which are rounded by `rounded`.
    """

    multiplier: float = 1.0

    @property
    def width(self) -> int:
        """Columns of a row."""
        return LAST_EXPANSION * rounded(BLOCKS[-1].channels * self.multiplier)

    @nn.compact
    def __call__(self, mel: Float[Array, "clip frame band"]) -> Float[Array, "clip row width"]:
        x = jnp.swapaxes(mel, 1, 2)[..., None]
        x = nn.hard_swish(ConvNorm(rounded(STEM_CHANNELS * self.multiplier), 3, (2, 2), name="features_0")(x))
        for i, shape in enumerate(BLOCKS, start=1):
            scaled = shape._replace(expanded=rounded(shape.expanded * self.multiplier),
                                    channels=rounded(shape.channels * self.multiplier))
            x = InvertedResidual(scaled, name=f"features_{i}")(x)
        x = nn.hard_swish(ConvNorm(self.width, name=f"features_{len(BLOCKS) + 1}")(x))
        return x[:, 0]  # one band is left of 128


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection; the input is added if the shapes agree.

    Submodules have the numbers that checkpoints give them.
    """

    shape: Shape

    @nn.compact
    def __call__(self, x: Float[Array, "clip band frame channel"]
                 ) -> Float[Array, "clip band_out frame_out channel_out"]:
        shape, y = self.shape, x
        activation = nn.hard_swish if shape.hard else nn.relu
        names = (f"block_{i}" for i in range(4))
        if shape.expanded != x.shape[-1]:
            y = activation(ConvNorm(shape.expanded, name=next(names))(y))
        y = activation(ConvNorm(shape.expanded, shape.kernel, shape.strides, True, name=next(names))(y))
        if shape.excite:
            y = SqueezeExcite(name=next(names))(y)
        y = ConvNorm(shape.channels, name=next(names))(y)
        return x + y if x.shape == y.shape else y


class ConvNorm(nn.Module):
    """A convolution padded as in PyTorch, without bias, and its batch norm with the running statistics.

    Attributes:
      channels: output channels.
      size: size of the square kernel, odd.
      strides: strides over bands and columns.
      depthwise: whether each output channel takes only the input channel of the same number.
    """

    channels: int
    size: int = 1
    strides: tuple[int, int] = (1, 1)
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "clip band frame channel"]
                 ) -> Float[Array, "clip band_out frame_out channel_out"]:
        if self.depthwise:
            x = DepthwiseConv(self.size, self.strides, name="conv")(x)
        else:
            x = nn.Conv(self.channels, (self.size, self.size), self.strides, padding=self.size // 2, use_bias=False,
                        name="conv")(x)
        return nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="norm")(x)


class DepthwiseConv(nn.Module):
    """A depthwise convolution, as a sum of shifted inputs: XLA's own takes a hundred times as long on a CPU."""

    size: int
    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "clip band frame channel"]) -> Float[Array, "clip band_out frame_out channel"]:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)[:, :, None, None]
        (bands, frames), (down, along), pad = x.shape[1:3], self.strides, self.size // 2
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        return sum(x[:, i : i + bands : down, j : j + frames : along] * kernel[i, j]
                   for i in range(self.size) for j in range(self.size))


class SqueezeExcite(nn.Module):
    """Scales each channel by a function of the means of all channels (Hu et al. 2018)."""

    @nn.compact
    def __call__(self, x: Float[Array, "clip band frame channel"]) -> Float[Array, "clip band frame channel"]:
        channels = x.shape[-1]
        hidden = nn.relu(Dense(rounded(channels / 4), name="fc1")(x.mean((1, 2))))
        return x * nn.sigmoid(Dense(channels, name="fc2")(hidden))[:, None, None]


def rounded(channels: float) -> int:
    """The multiple of 8 nearest to a number of channels, at least 8; the next one if that is over 10 % less."""
    multiple = max(8, math.floor(channels / 8 + 0.5) * 8)
    return multiple if multiple >= 0.9 * channels else multiple + 8
