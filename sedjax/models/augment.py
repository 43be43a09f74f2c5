"""Augmentation: pure functions of a key and the clip ids, independent of a clip's position in the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Real


def spec_augment(key: Key[Array, ""], x: Float[Array, "clip frame band"], frame_mask: Bool[Array, "clip frame"],
                 clip_id: Int[Array, "clip"], *, time_masks: int, time_mask_frames: int, time_mask_share: float,
                 band_masks: int, band_mask_width: int) -> Float[Array, "clip frame band"]:
    """Sets random ranges of frames and of bands to the clip's mean (SpecAugment, Park et al. 2019).

    Only real frames change. The width of a mask is uniform from 0 to the largest, its start uniform where it fits.

    Args:
      key: random key of the step.
      x: level of the mel bands.
      frame_mask: real frames, the first ones of each clip.
      clip_id: id of each clip; its masks are a function of the key and the id.
      time_masks, time_mask_frames: number of masks over frames, and the longest.
      time_mask_share: longest mask as a share of the clip's real frames.
      band_masks, band_mask_width: number of masks over bands, and the widest.
    """
    frames, bands = x.shape[1:]
    lengths = frame_mask.sum(1)
    keys = jax.vmap(lambda clip: jax.random.split(jax.random.fold_in(key, clip)))(clip_id)
    time_keys, band_keys = keys[:, 0], keys[:, 1]
    longest = jnp.minimum(time_mask_frames, jnp.floor(time_mask_share * lengths).astype(lengths.dtype))
    masked = jax.vmap(lambda key, longest, length: _random_ranges(key, time_masks, longest, length, frames))(
        time_keys, longest, lengths)[:, :, None]
    masked |= jax.vmap(lambda key: _random_ranges(key, band_masks, min(band_mask_width, bands), bands, bands))(
        band_keys)[:, None, :]
    real = frame_mask[..., None]
    mean = jnp.where(real, x, 0).sum((1, 2)) / jnp.maximum(lengths * bands, 1)
    return jnp.where(masked & real, mean[:, None, None].astype(x.dtype), x)


def mixup(key: Key[Array, ""], features: dict[str, Real[Array, "clip frame _"]],
          targets: Float[Array, "clip frame class"], frame_mask: Bool[Array, "clip frame"],
          clip_id: Int[Array, "clip"], *,
          alpha: float) -> tuple[dict[str, Float[Array, "clip frame _"]], Float[Array, "clip frame class"]]:
    """Mixes the clips of each pair of rows, 2i and 2i + 1 (mixup, Zhang et al. 2018).

    Each clip becomes w own + (1 - w) other, features and targets alike. Frames that are padding in either clip stay
    unchanged. A device must hold both clips of a pair.

    Args:
      key: random key of the step.
      features: features of any real dtype; the result is float32 of the same scale.
      targets, frame_mask: targets and real frames of the clips.
      clip_id: id of each clip; w of a pair is a function of the key and the id of its first clip.
      alpha: parameter of the mixing weight w = max(v, 1 - v) with v from Beta(alpha, alpha).
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, clip_id[::2])
    drawn = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    weight = jnp.maximum(drawn, 1 - drawn).repeat(2)[:, None, None]

    def other(x: Array) -> Array:
        return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)

    real = (frame_mask & other(frame_mask))[..., None]

    def mix(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return jnp.where(real, weight * x + (1 - weight) * other(x), x)

    return jax.tree.map(mix, (features, targets))


def _random_ranges(key: Key[Array, ""], count: int, widest: int | Int[Array, ""], length: int | Int[Array, ""],
               size: int) -> Bool[Array, "{size}"]:
    """A mask of `size` positions, True inside any of `count` random ranges within the first `length` positions."""
    def draw(key: Array, largest: Array | int) -> Array:
        """Integers from 0 to `largest`."""
        return jnp.floor(jax.random.uniform(key, (count, 1)) * (largest + 1)).astype(jnp.int32)

    width_key, start_key = jax.random.split(key)
    width = draw(width_key, widest)
    start = draw(start_key, length - width)
    position = jnp.arange(size)[None]
    return ((position >= start) & (position < start + width)).any(0)
