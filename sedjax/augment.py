"""Augmentation: pure functions of a key and of the clips' ids, not of the place of a clip in the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def spec_augment(key: Key[Array, ""], x: Float[Array, "clip frame band"], frame_mask: Bool[Array, "clip frame"],
                 clip_id: Int[Array, "clip"], *, time_masks: int, time_mask_frames: int, time_mask_share: float,
                 band_masks: int, band_mask_width: int) -> Float[Array, "clip frame band"]:
    """Sets random stretches of frames and of bands to the clip's mean (SpecAugment, Park et al. 2019).

    Only real frames change. The width of a mask is drawn from 0 to the largest, its place from where it fits.

    Args:
      key: of the step.
      x: level of the mel bands.
      frame_mask: real frames, the first of each clip.
      clip_id: the masks of a clip are a function of the key and its id.
      time_masks, time_mask_frames: how many masks over frames, and the longest.
      time_mask_share: a mask is no longer than this share of the clip's real frames.
      band_masks, band_mask_width: how many masks over bands, and the widest.
    """
    frames, bands = x.shape[1:]
    lengths = frame_mask.sum(1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, clip_id)
    longest = jnp.minimum(time_mask_frames, jnp.floor(time_mask_share * lengths).astype(lengths.dtype))
    masked = jax.vmap(lambda key, longest, length: _stretches(key, time_masks, longest, length, frames))(
        keys, longest, lengths)[:, :, None]
    masked |= jax.vmap(lambda key: _stretches(jax.random.fold_in(key, 1), band_masks, min(band_mask_width, bands),
                                              bands, bands))(keys)[:, None, :]
    real = frame_mask[..., None]
    mean = jnp.where(real, x, 0).sum((1, 2)) / jnp.maximum(lengths * bands, 1)
    return jnp.where(masked & real, mean[:, None, None].astype(x.dtype), x)


def _stretches(key: Key[Array, ""], count: int, widest: int | Int[Array, ""], length: int | Int[Array, ""],
               size: int) -> Bool[Array, "{size}"]:
    """True inside any of `count` random stretches of the first `length` of `size` places."""
    def draw(key: Array, most: Array | int) -> Array:
        """Integers from 0 to `most`."""
        return jnp.floor(jax.random.uniform(key, (count, 1)) * (most + 1)).astype(jnp.int32)

    width_key, start_key = jax.random.split(key)
    width = draw(width_key, widest)
    start = draw(start_key, length - width)
    place = jnp.arange(size)[None]
    return ((place >= start) & (place < start + width)).any(0)
