"""Front ends: from samples to mel power, decibels, MFCCs and their deltas; float32 throughout.

Functions of a batch take a mask of the real samples or frames, which come first, and the result for a recording does
not depend on its padding or on the rest of the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from sedjax.audio import mel
from sedjax.core.numbers import ceil_div

Array = jax.Array | np.ndarray

# ATST-Frame (SPEC section 6): the loudest 80 dB of a recording, and the range that is scaled to [-1, 1].
ATST_RANGE_DB = 80.0
ATST_CLAMP_DB = (-50.0, 80.0)
ATST_SCALE_DB = (-79.6482, 50.6842)
# Frame-MobileNet (SPEC section 8): preemphasis, floor of the power, and the shift and scale of its logarithm.
PREEMPHASIS = 0.97
FRAME_MN_FLOOR = 1e-7
FRAME_MN_SHIFT, FRAME_MN_SCALE = 4.5, 5.0
PART_WINDOWS = 512  # number of windows, over all clips, that a CPU transforms at once


def power_to_db(power: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts power to decibels, with a floor of -100 dB for silence; for numpy and JAX arrays."""
    xp = jnp if isinstance(power, jax.Array) else np
    return 10 * xp.log10(xp.maximum(power, 1e-10))


def mel_power(audio: Float[jax.Array, "clip sample"], sample_mask: Bool[jax.Array, "clip sample"],
              definition: mel.Mel = mel.MLPC) -> tuple[Float[jax.Array, "clip frame band"],
                                                       Bool[jax.Array, "clip frame"]]:
    """Mel power of 16 kHz audio, 0 in frames without real samples, and the mask of real frames.

    A clip of n real samples has definition.num_frames(n) real frames, as it would have on its own.
    """
    clips, samples = audio.shape
    audio = jnp.where(sample_mask, audio, 0).astype(jnp.float32)
    lengths = sample_mask.sum(axis=1)
    frames = definition.num_frames(samples)
    before, hop, size = definition.samples_before, definition.hop_samples, definition.window_samples
    windows = frames * definition.windows_per_frame
    # Enough whole hops to reach the end of the last window.
    hops = windows - 1 + ceil_div(size, hop)
    if definition.reflect:
        padded = jnp.take_along_axis(audio, _mirrored(jnp.arange(hops * hop) - before, lengths), axis=1)
    else:
        padded = jnp.pad(audio, ((0, 0), (before, max(hops * hop - before - samples, 0))))[:, : hops * hop]
    hop_by_hop = padded.reshape(clips, hops, hop)
    pieces = hops - windows + 1  # adjacent hops that contain a window
    per_frame = definition.windows_per_frame

    def of_hops(hop_by_hop: jax.Array) -> jax.Array:
        count = hop_by_hop.shape[1] - pieces + 1
        # Windows are adjacent hops side by side: slicing is faster than gathering the samples of each window.
        samples = jnp.concatenate([hop_by_hop[:, k : k + count] for k in range(pieces)], axis=-1)[..., :size]
        spectrum = jnp.fft.rfft(samples * definition.window[None, None], axis=-1)
        power = spectrum.real**2 + spectrum.imag**2
        power = power.reshape(len(power), count // per_frame, per_frame, -1).mean(axis=2)
        return jnp.einsum("ctf,fm->ctm", power, definition.filters, precision=jax.lax.Precision.HIGHEST)

    def in_parts(hop_by_hop: jax.Array) -> jax.Array:
        part = min(ceil_div(PART_WINDOWS, clips * per_frame), frames) * per_frame
        parts = ceil_div(windows, part)
        hop_by_hop = jnp.pad(hop_by_hop, ((0, 0), (0, parts * part - windows), (0, 0)))

        def of_part(first: jax.Array) -> jax.Array:
            part_hops = jax.lax.dynamic_slice_in_dim(hop_by_hop, first, part + pieces - 1, axis=1)
            # The halves run in parallel; a single transform uses only one core.
            return jnp.concatenate([of_hops(half) for half in jnp.array_split(part_hops, min(clips, 2))])

        powers = jax.lax.map(of_part, jnp.arange(parts) * part)
        return jnp.moveaxis(powers, 0, 1).reshape(clips, -1, definition.bands)[:, :frames]

    # On a CPU, spectra that exceed the cache take three times as long.
    bands = jax.lax.platform_dependent(hop_by_hop, cpu=in_parts, default=of_hops)
    frame_mask = jnp.arange(frames)[None] < definition.num_frames(lengths)[:, None]
    return jnp.where(frame_mask[..., None], bands, 0), frame_mask


def _mirrored(places: jax.Array, lengths: jax.Array) -> jax.Array:
    """Indices of the samples at `places` of recordings that are mirrored at both ends, repeatedly if need be."""
    last = jnp.maximum(lengths - 1, 0)[:, None]
    period = jnp.maximum(2 * last, 1)
    within = jnp.abs(places)[None] % period
    return jnp.minimum(within, jnp.where(last > 0, period - within, 0))


def atst_log_mel(audio: Float[jax.Array, "clip sample"], sample_mask: Bool[jax.Array, "clip sample"]
                 ) -> tuple[Float[jax.Array, "clip frame band"], Bool[jax.Array, "clip frame"]]:
    """The input of ATST-Frame (SPEC section 6), scaled to about -1 to 1; padding is -1. 10 s are 1001 frames.

    The floor is 80 dB below the maximum of each clip; the original uses the maximum of the whole batch.
    """
    power, frame_mask = mel_power(audio, sample_mask, mel.ATST)
    decibels = power_to_db(power)
    loudest = decibels.max(axis=(1, 2), keepdims=True)
    decibels = jnp.clip(jnp.maximum(decibels, loudest - ATST_RANGE_DB), *ATST_CLAMP_DB)
    low, high = ATST_SCALE_DB
    scaled = (decibels - low) / (high - low) * 2 - 1
    return jnp.where(frame_mask[..., None], scaled, -1), frame_mask


def frame_mn_log_mel(audio: Float[jax.Array, "clip sample"]) -> Float[jax.Array, "clip frame band"]:
    """The input of Frame-MobileNet (SPEC section 8), of windows without padding. 10 s are 1000 frames."""
    audio = audio[:, 1:] - PREEMPHASIS * audio[:, :-1]
    power, _ = mel_power(audio, jnp.ones(audio.shape, bool), mel.FRAME_MN)
    return (jnp.log(jnp.maximum(power, FRAME_MN_FLOOR)) + FRAME_MN_SHIFT) / FRAME_MN_SCALE


def mfcc(power: Float[jax.Array, "*batch band"]) -> Float[jax.Array, "*batch coefficient"]:
    """MFCCs: the orthonormal DCT-II of mel power in decibels."""
    return jnp.einsum("...m,mk->...k", power_to_db(power), mel.dct(power.shape[-1], mel.MFCC_COEFFICIENTS),
                      precision=jax.lax.Precision.HIGHEST)


def deltas(x: Float[Array, "clip frame column"], frame_mask: Bool[Array, "clip frame"], order: int = 1,
           width: int = 9) -> Float[Array, "clip frame column"]:
    """First (order 1) or second (order 2) derivatives of columns over `width` frames; for numpy and JAX arrays.

    Like librosa.feature.delta with mode="nearest": the first and last frames are repeated beyond the ends, so that a
    recording may be shorter than `width`.
    """
    xp = jnp if isinstance(x, jax.Array) else np
    last = xp.maximum(frame_mask.sum(axis=1), 1)[:, None] - 1
    total = xp.zeros_like(x)
    for weight, offset in zip(mel.delta_weights(width, order), range(-(width // 2), width // 2 + 1)):
        neighbour = xp.clip(xp.arange(x.shape[1])[None] + offset, 0, last)
        total = total + weight * xp.take_along_axis(x, neighbour[..., None], axis=1)
    return xp.where(frame_mask[..., None], total, 0)
