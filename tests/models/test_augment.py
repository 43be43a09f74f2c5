"""SpecAugment: masks of real frames and bands, by key and clip. Mixup: pairs of clips, by key and clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sedjax.models.augment import mixup, spec_augment

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


LENGTHS_OF_PAIRS = np.array([30, 21, 12, 0, 0, 9, 30, 30])
mix = jax.jit(mixup, static_argnames="alpha")


def clips_to_mix():
    rng = np.random.default_rng(0)
    features = {"audio": rng.integers(-32767, 32768, (8, FRAMES, 5)).astype(np.int16),
                "embeddings": rng.normal(size=(8, FRAMES, 4)).astype(np.float16)}
    targets = (rng.random((8, FRAMES, 3)) < 0.3).astype(np.float32)
    return features, targets, np.arange(FRAMES)[None] < LENGTHS_OF_PAIRS[:, None], np.array([4, 9, 2, -1, -1, 0, 7, 1])


def test_mixup_is_what_loops_give():
    features, targets, mask, ids = clips_to_mix()
    key = jax.random.key(5)
    found, mixed = mix(key, features, targets, mask, ids, alpha=0.4)
    weights = []
    for first in range(0, 8, 2):
        drawn = float(jax.random.beta(jax.random.fold_in(key, ids[first]), 0.4, 0.4))
        weights.append(max(drawn, 1 - drawn))
        for name, value in (*features.items(), ("targets", targets)):
            result = np.asarray(mixed if name == "targets" else found[name])
            assert result.dtype == np.float32
            value = value.astype(np.float64)
            expected = value.copy()
            for row, other in ((first, first + 1), (first + 1, first)):
                for frame in range(FRAMES):
                    if mask[row, frame] and mask[other, frame]:
                        expected[row, frame] = weights[-1] * value[row, frame] + (1 - weights[-1]) * value[other, frame]
            np.testing.assert_allclose(result[first : first + 2], expected[first : first + 2],
                                       atol=1e-2 if name == "audio" else 1e-5)
    assert len(set(weights)) == 4
    assert np.abs(found["audio"]).max() <= 32767  # the scale stays
    alone = np.asarray(found["embeddings"])[2:6]  # with a clip that is all padding: nothing changes
    np.testing.assert_array_equal(alone, features["embeddings"][2:6].astype(np.float32))


def test_mixup_follows_key_and_clip_not_the_place_in_the_batch():
    *arrays, ids = clips_to_mix()
    order = np.array([6, 7, 0, 1, 4, 5, 2, 3])
    found, _ = mix(jax.random.key(5), *arrays, ids, alpha=0.4)
    moved, _ = mix(jax.random.key(5), *jax.tree.map(lambda x: x[order], arrays), ids[order], alpha=0.4)
    np.testing.assert_array_equal(moved["audio"], found["audio"][order])
    for key, clips in ((6, ids), (5, ids + 1)):
        assert (mix(jax.random.key(key), *arrays, clips, alpha=0.4)[0]["audio"] != found["audio"]).any()


@pytest.mark.parametrize("alpha", [0.1, 0.4, 2.0])
def test_weights_of_mixup_are_those_of_the_beta_distribution(alpha):
    clips = 8000
    own = np.broadcast_to(np.array([1.0, 0.0] * (clips // 2), np.float32)[:, None, None], (clips, 1, 1))
    _, mixed = mix(jax.random.key(0), {}, own, np.ones((clips, 1), bool), np.arange(clips), alpha=alpha)
    weights = np.asarray(mixed)[::2, 0, 0]
    np.testing.assert_allclose(np.asarray(mixed)[1::2, 0, 0], 1 - weights, atol=1e-6)
    drawn = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    expected = np.maximum(drawn, 1 - drawn)
    assert weights.min() >= 0.5
    assert weights.max() <= 1
    np.testing.assert_allclose(np.quantile(weights, [0.1, 0.3, 0.5, 0.8]), np.quantile(expected, [0.1, 0.3, 0.5, 0.8]),
                               atol=0.02)
