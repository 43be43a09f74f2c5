"""Detectors from raw audio to frame logits: ATST-Frame with a head, or followed by the embedding-transformer."""

from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Real

from sedjax.audio.frontend import atst_log_mel
from sedjax.audio.reader import FEATURE, FULL_SCALE
from sedjax.core.bounds import Layers, ShareBelowOne, Size, SizeOrNone, one_of
from sedjax.core.numbers import ceil_div
from sedjax.core.task import FRAME_SAMPLES, SAMPLE_RATE_HZ
from sedjax.models.atst_frame import TOKEN_SAMPLES, TOKENS_PER_FRAME, WINDOW_SAMPLES, AtstFrame
from sedjax.models.embedding_transformer import EmbeddingTransformer
from sedjax.models.encoder import Head

WINDOW_TOKENS = WINDOW_SAMPLES // TOKEN_SAMPLES
HopSeconds = Annotated[float, one_of(9.6, 4.8)]


class AtstDetector(nn.Module):
    """Raw audio -> ATST-Frame on windows of 10 s -> frame logits.

    Attributes:
      num_classes: number of classes.
      layers, drop_layers, width, feed_forward: sizes of the encoder, see atst_frame.AtstFrame.
      hop_seconds: hop between windows, 9.6 or 4.8; overlapping tokens are averaged.
      head_width: hidden units of the head; 0 for a single linear layer.
      dropout: dropout rate of the head, if it has hidden units.
      remat: same as in encoder.Encoder.
      dtype: dtype of the computation; the log-mel is float32.
    """

    inputs: ClassVar[tuple[str, ...]] = (FEATURE,)
    pretrained: ClassVar[str] = "atst"

    num_classes: int
    layers: Layers = 12
    drop_layers: Layers = 0
    width: Size = 768
    feed_forward: Size = 3072
    hop_seconds: HopSeconds = 9.6
    head_width: SizeOrNone = 0
    dropout: ShareBelowOne = 0.2
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def unused_weights(self) -> tuple[str, ...]:
        """Name prefixes in a file of initial weights that the model ignores, see variables.fill_weights."""
        return unused_weights(self.layers, self.drop_layers)

    @nn.compact
    def __call__(self, features: dict[str, Real[Array, "clip frame _"]], frame_mask: Bool[Array, "clip frame"], *,
                 train: bool = False, clip_id: Int[Array, "clip"] | None = None) -> Float[Array, "clip frame class"]:
        encoder = AtstFrame(self.layers, self.drop_layers, self.width, self.feed_forward, remat=self.remat,
                            dtype=self.dtype, name="atst")
        x = frame_rows(encoder, features[FEATURE], frame_mask, self.hop_seconds)
        self.sow("intermediates", "embeddings", x)  # stored only on request: trained.embed_step
        return Head(self.num_classes, self.head_width, self.dropout, self.dtype, name="head")(
            x, clip_id if train else None)


class AtstHybrid(EmbeddingTransformer):
    """Raw audio -> ATST-Frame on windows of 10 s -> the embedding-transformer over all frames of a clip.

    The report's proposal: its winning system, but with embeddings computed from the audio.

    Attributes:
      atst_layers, atst_drop_layers, atst_width, atst_feed_forward: sizes of the encoder, see atst_frame.AtstFrame.
      hop_seconds: same as in AtstDetector.
      standardize: False; records lack statistics of these embeddings, which end in a norm anyway.
      num_classes and all others: same as in EmbeddingTransformer.
    """

    inputs: ClassVar[tuple[str, ...]] = (FEATURE,)
    pretrained: ClassVar[str] = "atst"

    atst_layers: Layers = 12
    atst_drop_layers: Layers = 0
    atst_width: Size = 768
    atst_feed_forward: Size = 3072
    hop_seconds: HopSeconds = 9.6
    standardize: Literal[False] = False

    @property
    def unused_weights(self) -> tuple[str, ...]:
        """Same as in AtstDetector."""
        return unused_weights(self.atst_layers, self.atst_drop_layers)

    @nn.compact
    def __call__(self, features: dict[str, Real[Array, "clip frame _"]], frame_mask: Bool[Array, "clip frame"], *,
                 train: bool = False, clip_id: Int[Array, "clip"] | None = None) -> Float[Array, "clip frame class"]:
        encoder = AtstFrame(self.atst_layers, self.atst_drop_layers, self.atst_width, self.atst_feed_forward,
                            remat=self.remat, dtype=self.dtype, name="atst")
        x = frame_rows(encoder, features[FEATURE], frame_mask, self.hop_seconds)
        return super().__call__({"embeddings": x}, frame_mask, train=train, clip_id=clip_id)


def frame_rows(encoder: AtstFrame, audio: Real[Array, "clip frame sample"], frame_mask: Bool[Array, "clip frame"],
               hop_seconds: float) -> Float[Array, "clip frame width"]:
    """The encoder's output for each frame of 120 ms, on the same time grid as extractors.AtstExtractor.

    Window k starts at k x `hop_seconds`. Each clip uses only the windows up to the end of its real frames; those that
    only a longer clip of the batch needs are ignored, so padding changes nothing.

    Args:
      encoder: ATST-Frame for 250 tokens.
      audio: 16-bit samples, or floats of that scale, 1920 per frame.
      frame_mask: real frames, the first ones of each clip; the rest becomes silence.
      hop_seconds: same as in AtstDetector.
    """
    clips, frames = frame_mask.shape
    hop = round(hop_seconds * SAMPLE_RATE_HZ)
    samples = jnp.where(frame_mask[..., None], audio.astype(jnp.float32) / FULL_SCALE, 0).reshape(clips, -1)
    count = 1 + max(ceil_div(samples.shape[1] - WINDOW_SAMPLES, hop), 0)
    # A window is a few consecutive hops, truncated to its length.
    hops_per_window = ceil_div(WINDOW_SAMPLES, hop)
    hops = count + hops_per_window - 1
    by_hop = jnp.pad(samples, ((0, 0), (0, hops * hop - samples.shape[1]))).reshape(clips, hops, hop)
    windows = jnp.concatenate([by_hop[:, i : i + count] for i in range(hops_per_window)], axis=-1)[..., :WINDOW_SAMPLES]
    windows = windows.reshape(clips * count, WINDOW_SAMPLES)
    tokens = encoder(atst_log_mel(windows, jnp.ones(windows.shape, bool))[0])
    tokens = tokens.reshape(clips, count, WINDOW_TOKENS, tokens.shape[-1])

    previous_ends = hop * (jnp.arange(count) - 1) + WINDOW_SAMPLES  # end of the previous window
    used = (previous_ends[None] < FRAME_SAMPLES * frame_mask.sum(1)[:, None]) | (jnp.arange(count) == 0)[None]
    weight = jnp.broadcast_to(used[..., None, None], (clips, count, WINDOW_TOKENS, 1)).astype(jnp.float32)

    def overlap(x: Array) -> Array:
        """Overlap-add of windows (clip, window, token, column) -> (clip, token, column)."""
        hop_tokens = hop // TOKEN_SAMPLES
        x = jnp.pad(x, ((0, 0), (0, 0), (0, hops_per_window * hop_tokens - WINDOW_TOKENS), (0, 0)))
        x = x.reshape(clips, count, hops_per_window, hop_tokens, -1)
        placed = [jnp.pad(x[:, :, i], ((0, 0), (i, hops_per_window - 1 - i), (0, 0), (0, 0)))
                  for i in range(hops_per_window)]
        return sum(placed).reshape(clips, hops * hop_tokens, -1)

    mean = overlap(tokens * weight) / jnp.maximum(overlap(weight), 1)
    return mean.reshape(clips, -1, TOKENS_PER_FRAME, mean.shape[-1])[:, :frames].mean(axis=2)


def unused_weights(layers: int, drop_layers: int) -> tuple[str, ...]:
    """Name prefixes in a file of the full ATST-Frame that a detector ignores: the strong head and dropped layers."""
    return ("params/strong_head/", *(f"params/atst/block_{i}/" for i in range(layers - drop_layers, layers)))
