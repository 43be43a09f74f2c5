"""The conv-transformer on mel spectrograms: systems 2 to 8 of the report (SPEC section 4)."""

from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from pydantic import Field

from sedjax.audio.frontend import power_to_db
from sedjax.core.bounds import FramesOrNone, Layers, Masks, Share, ShareBelowOne, Size, SizeOrNone
from sedjax.core.errors import UserError
from sedjax.models.augment import spec_augment
from sedjax.models.encoder import KERNEL_INIT, Dense, Encoder, Head, standardize
from sedjax.models.resnet import ResNet34

Channels = Annotated[int, Field(ge=1, le=4_096)]


class ConvStem(nn.Module):
    """Convolutions with ReLU that keep all frames and halve the frequency axis."""

    channels: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip frame band channel"], frame_mask: Bool[Array, "clip frame"],
                 train: bool) -> Float[Array, "clip frame _ _"]:
        for i, channels in enumerate(self.channels, start=1):
            # A convolution reaches past the end of a clip: padding must look like the zeros beyond the batch.
            x = jnp.where(frame_mask[:, :, None, None], x, 0)
            x = nn.relu(nn.Conv(channels, (3, 3), strides=(1, 2), dtype=self.dtype, kernel_init=KERNEL_INIT,
                                name=f"conv{i}")(x))
        return x


class ConvTransformer(nn.Module):
    """Mel spectrogram -> stem that keeps all frames and reduces frequency -> transformer encoder -> frame logits.

    Attributes:
      num_classes: number of classes.
      stem: "conv" for two convolutions, "resnet34" for a ResNet-34 without its classifier.
      channels: output channels of the two convolutions.
      resnet_width: channels of the ResNet's first stage; 64 as published.
      log_scale: whether to convert the power in the records to decibels.
      mfcc: indices of the MFCC used as additional input; none if empty.
      mfcc_as: "bands" appends them on the frequency axis, "channels" repeats each over all bands of its own channel.
      standardize: whether to normalise each band by the statistics of the training frames.
      time_masks, time_mask_frames, time_mask_share, band_masks, band_mask_width: training arguments of spec_augment.
      width, heads, layers, feed_forward, dropout, positions, norm, remat: arguments of encoder.Encoder.
      head_width: hidden units of the head; 0 for a single linear layer.
      dtype: dtype of the computation.
    """

    num_classes: int
    stem: Literal["conv", "resnet34"] = "conv"
    channels: tuple[Channels, Channels] = (32, 64)
    resnet_width: Annotated[int, Field(ge=1, le=512)] = 64
    log_scale: bool = True
    mfcc: Annotated[tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(max_length=1_000)] = ()
    mfcc_as: Literal["bands", "channels"] = "bands"
    standardize: bool = True
    time_masks: Masks = 0
    time_mask_frames: FramesOrNone = 25
    time_mask_share: Share = 0.2
    band_masks: Masks = 0
    band_mask_width: FramesOrNone = 16
    width: Size = 512
    heads: Size = 4
    layers: Layers = 4
    feed_forward: Size = 2048
    dropout: ShareBelowOne = 0.2
    positions: FramesOrNone = 250
    norm: Literal["post", "pre"] = "post"
    remat: bool = False
    head_width: SizeOrNone = 0
    dtype: DTypeLike = jnp.float32

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("melspectrogram", "mfcc") if self.mfcc else ("melspectrogram",)

    @nn.compact
    def __call__(self, features: dict[str, Float[Array, "clip frame _"]], frame_mask: Bool[Array, "clip frame"], *,
                 train: bool = False, clip_id: Int[Array, "clip"] | None = None) -> Float[Array, "clip frame class"]:
        clip_id = clip_id if train else None
        x = self._image(features, frame_mask, clip_id).astype(self.dtype)
        stem = (ResNet34(self.resnet_width, dtype=self.dtype, name="stem") if self.stem == "resnet34"
                else ConvStem(self.channels, self.dtype, name="stem"))
        x = stem(x, frame_mask, train)
        x = Dense(self.width, dtype=self.dtype, name="proj")(x.reshape(*x.shape[:2], -1))
        x = Encoder(self.layers, self.heads, self.feed_forward, self.dropout, self.positions, self.norm, self.remat,
                    self.dtype, name="encoder")(x, frame_mask, clip_id)
        self.sow("intermediates", "embeddings", x)  # stored only on request: trained.embed_step
        return Head(self.num_classes, self.head_width, self.dropout, self.dtype, name="head")(x, clip_id)

    def _image(self, features: dict[str, Float[Array, "clip frame _"]], frame_mask: Bool[Array, "clip frame"],
               clip_id: Int[Array, "clip"] | None) -> Float[Array, "clip frame band channel"]:
        """The mel spectrogram, augmented in training, combined with the MFCC."""
        x = features["melspectrogram"].astype(jnp.float32)
        if self.log_scale:
            x = power_to_db(x)
        if self.standardize:
            x = standardize(self, "melspectrogram_level" if self.log_scale else "melspectrogram", x)
        if clip_id is not None and (self.time_masks or self.band_masks):
            x = spec_augment(self.make_rng("augment"), x, frame_mask, clip_id, time_masks=self.time_masks,
                             time_mask_frames=self.time_mask_frames, time_mask_share=self.time_mask_share,
                             band_masks=self.band_masks, band_mask_width=self.band_mask_width)
        if not self.mfcc:
            return x[..., None]
        mfcc = features["mfcc"].astype(jnp.float32)
        if not all(0 <= number < mfcc.shape[-1] for number in self.mfcc):
            raise UserError(f"model.mfcc = {self.mfcc}: the records have only MFCC 0 to {mfcc.shape[-1] - 1}.")
        if self.standardize:
            mfcc = standardize(self, "mfcc", mfcc)
        mfcc = mfcc[..., np.array(self.mfcc)]
        if self.mfcc_as == "bands":
            return jnp.concatenate([x, mfcc], axis=-1)[..., None]
        planes = jnp.broadcast_to(mfcc[:, :, None, :], (*x.shape, len(self.mfcc)))
        return jnp.concatenate([x[..., None], planes], axis=-1)
