"""The conv-transformer: systems 2 and 3 of the report (SPEC section 4)."""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sedjax.frontend import level
from sedjax.models.encoder import KERNEL_INIT, Dense, Encoder, Head, standardize


class ConvTransformer(nn.Module):
    """Mel spectrogram -> 2 convolutions that keep time and halve frequency -> transformer encoder -> frame logits.

    Attributes:
      num_classes: C.
      channels: of the two convolutions.
      log_scale: take the level in decibels of the linear power that the records hold.
      standardize: normalise each band by the statistics of the training frames.
      width, heads, layers, feed_forward, dropout, positions, norm: of the encoder.
      head_width: hidden units of the head; 0 for a single linear layer.
      dtype: of the computation.
    """

    features: ClassVar[tuple[str, ...]] = ("melspectrogram",)

    num_classes: int
    channels: tuple[int, int] = (32, 64)
    log_scale: bool = True
    standardize: bool = True
    width: int = 512
    heads: int = 4
    layers: int = 4
    feed_forward: int = 2048
    dropout: float = 0.2
    positions: int = 250
    norm: str = "post"
    head_width: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: dict[str, Float[Array, "clip frame _"]], frame_mask: Bool[Array, "clip frame"], *,
                 train: bool = False, clip_id: Int[Array, "clip"] | None = None) -> Float[Array, "clip frame class"]:
        x = features["melspectrogram"].astype(jnp.float32)
        if self.log_scale:
            x = level(x)
        if self.standardize:
            x = standardize(self, level_key("melspectrogram", self.log_scale), x)
        clip_id = clip_id if train else None
        x = x[..., None].astype(self.dtype)
        for i, channels in enumerate(self.channels, start=1):
            # A convolution reaches over the end of a clip: padding must look like the zeros beyond the batch.
            x = jnp.where(frame_mask[:, :, None, None], x, 0)
            x = nn.relu(nn.Conv(channels, (3, 3), strides=(1, 2), dtype=self.dtype, kernel_init=KERNEL_INIT,
                                name=f"conv{i}")(x))
        x = Dense(self.width, dtype=self.dtype, name="proj")(x.reshape(*x.shape[:2], -1))
        x = Encoder(self.layers, self.heads, self.feed_forward, self.dropout, self.positions, self.norm, self.dtype,
                    name="encoder")(x, frame_mask, clip_id)
        self.sow("intermediates", "embeddings", x)  # kept only when asked for: steps.embed_step
        return Head(self.num_classes, self.head_width, self.dropout, self.dtype, name="head")(x, clip_id)


def level_key(key: str, log_scale: bool) -> str:
    """The name under which the statistics of a power, or of its level, are kept."""
    return f"{key}_level" if log_scale else key
