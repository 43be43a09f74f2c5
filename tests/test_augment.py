"""SpecAugment: masks of real frames and bands, by key and clip."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sedjax.augment import spec_augment

FRAMES, BANDS = 30, 12
LENGTHS = np.array([30, 11, 0, 4, 1])


def augment(key: int, lengths=LENGTHS, clip_id=None, **changes) -> tuple[np.ndarray, np.ndarray]:
    """Which entries changed, and the result; the input is 1, 2, 3 ... in each clip, under the padding too."""
    options = {"time_masks": 2, "time_mask_frames": 6, "time_mask_share": 0.3, "band_masks": 2, "band_mask_width": 3}
    x = jnp.broadcast_to(jnp.arange(1.0, FRAMES * BANDS + 1).reshape(1, FRAMES, BANDS), (len(lengths), FRAMES, BANDS))
    mask = jnp.asarray(np.arange(FRAMES)[None] < np.asarray(lengths)[:, None])
    clip_id = jnp.arange(len(lengths)) if clip_id is None else jnp.asarray(clip_id)
    found = np.asarray(jitted(jax.random.key(key), x, mask, clip_id, **{**options, **changes}))
    return found != np.asarray(x), found


jitted = jax.jit(spec_augment, static_argnames=["time_masks", "time_mask_frames", "time_mask_share", "band_masks",
                                                "band_mask_width"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_only_whole_stretches_of_real_frames_and_bands_change_to_the_mean(key):
    changed, found = augment(key)
    for clip, length in enumerate(LENGTHS):
        assert not changed[clip, length:].any()
        if not length:
            continue
        values = found[clip][changed[clip]]
        np.testing.assert_allclose(values, np.arange(1, length * BANDS + 1).mean(), rtol=1e-5)
        # The mean itself can stand in a masked place: there is at most one such entry.
        frames, bands = changed[clip, :length].sum(1) >= BANDS - 1, changed[clip, :length].sum(0) >= length - 1
        assert frames.sum() <= 2 * min(6, int(0.3 * length)) or length <= 2
        if length > 10:
            assert bands.sum() <= 2 * 3
            assert (changed[clip, :length] & ~(frames[:, None] | bands[None])).sum() == 0


def test_masks_follow_key_and_clip_not_the_place_in_the_batch():
    lengths = [30, 30, 30]
    changed, _ = augment(0, lengths, [5, 6, 7])
    np.testing.assert_array_equal(changed[[2, 0, 1]], augment(0, lengths, [7, 5, 6])[0])
    assert (changed[0] != changed[1]).any()
    assert (changed != augment(1, lengths, [5, 6, 7])[0]).any()


def test_widths_and_places_are_spread_over_all_that_fit():
    clips = 4000
    changed, _ = augment(0, [30] * clips, time_masks=1, band_masks=0, time_mask_share=1.0)
    masked = changed.sum(2) >= BANDS - 1
    widths = np.bincount(masked.sum(1), minlength=7)
    assert len(widths) == 7
    np.testing.assert_allclose(widths / clips, 1 / 7, atol=0.03)
    assert masked[:, 0].any()
    assert masked[:, -1].any()
    bands, _ = augment(0, [30] * clips, time_masks=0)
    assert set(np.unique((bands.sum(1) >= FRAMES - 1).sum(1))) == set(range(7))


def test_no_masks_change_nothing():
    assert not augment(0, time_masks=0, band_masks=0)[0].any()
    assert not augment(0, time_mask_share=0.0, band_mask_width=0)[0].any()
