"""What is made of a recording depends on the recording alone, and a cut is felt only as far as a window reaches."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import embed_alone

from sedjax.audio import spectral
from sedjax.audio.clips import Unreadable, recut
from sedjax.audio.mel import MLPC
from sedjax.audio.spectral import SPECTRAL
from sedjax.core.errors import UserError
from sedjax.inference import extractors
from sedjax.inference.trained import with_embeddings
from sedjax.models import atst_frame

FRAME, SEGMENT = 1920, 19200
# What a frame's windows reach beyond it, in frames, and what the deltas of 9 frames add.
REACH = {"melspectrogram": 1, "mfcc": 1, "mfcc_delta": 5, "mfcc_delta2": 5}
few = settings(max_examples=6, deadline=None, derandomize=True,
               suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def made_of(*sounds, wanted=SPECTRAL, extractor=None) -> list:
    """Features of each, or the error."""
    clips = list(extractors.extract_features(sounds, wanted, extractor, 16000))
    return [clip.error if isinstance(clip, Unreadable) else clip.features for clip in clips]


def assert_same(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    atol = 0 if name == "melspectrogram" else 1e-2  # float16
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=1e-3, atol=atol)


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, SEGMENT - 1))
@few
def test_a_cut_between_segments_is_felt_by_its_neighbours_only(before, after, rest):
    assert MLPC.samples_before < FRAME
    sound = noise((before + after) * SEGMENT + rest)
    whole, first, second = made_of(sound, sound[: before * SEGMENT], sound[before * SEGMENT :])
    cut = before * 10
    for name, expected in whole.items():
        reach = REACH[name]
        assert (len(first[name]), len(second[name])) == (cut, len(expected) - cut)
        assert_same(first[name][: cut - reach], expected[: cut - reach], name)
        assert_same(second[name][reach:], expected[cut + reach :], name)
        assert not np.allclose(first[name][-1], expected[cut - 1], rtol=1e-3), "the cut is felt"


@pytest.fixture(scope="module", params=[9.6, 4.8])
def extractor(request) -> extractors.AtstExtractor:
    model = atst_frame.AtstFrame(layers=2, width=64, feed_forward=32)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1001, 64)))["params"]
    return extractors.AtstExtractor(model, params, round(request.param * 16000))


def embedded(extractor, *sounds) -> list:
    return [found if isinstance(found, UserError) else found["embeddings"]
            for found in made_of(*sounds, wanted=("embeddings",), extractor=extractor)]


@pytest.mark.parametrize("cut", [2, 3])
def test_a_cut_at_the_start_of_a_window_is_felt_by_the_windows_that_see_it_only(extractor, cut):
    hop = extractor.hop_samples
    sound = noise(5 * hop + 30000)
    whole, first, second = (embed_alone(extractor, x, 16000)
                            for x in (sound, sound[: cut * hop], sound[cut * hop :]))
    frames = hop // FRAME
    # Windows begin at multiples of the hop: those before the cut that reach over it, and what they share.
    seeing = [k for k in range(cut) if k * hop + 160000 > cut * hop]
    begin, end = seeing[0] * frames, -(-(seeing[-1] * hop + 160000) // FRAME)
    np.testing.assert_allclose(first[:begin], whole[:begin], atol=1e-5)
    np.testing.assert_allclose(second[end - cut * frames :], whole[end:], atol=1e-5)
    assert np.abs(first[begin:] - whole[begin : cut * frames]).max() > 1e-3, "the cut is felt"
    assert len(first) + len(second) == len(whole)


@given(st.lists(st.sampled_from([1, 8000, 159840, 160000, 160160, 307200, 400001]), min_size=2, max_size=5))
@few
def test_alone_or_with_others_from_a_file_or_an_array(extractor, tmp_path, lengths):
    sounds = [noise(samples, seed) for seed, samples in enumerate(lengths)]
    stream = recut(spectral.clips(sounds, extractor.inputs, (), 16000), extractor.max_frames)
    together = [clip.features["embeddings"] for clip in extractor.embed(stream, np.float32)]
    assert [len(found) for found in together] == [-(-samples // FRAME) for samples in lengths]
    soundfile.write(tmp_path / "a.wav", sounds[0], 16000, subtype="FLOAT")
    np.testing.assert_allclose(embed_alone(extractor, tmp_path / "a.wav"), together[0], atol=1e-5)
    np.testing.assert_allclose(embed_alone(extractor, sounds[-1], 16000), together[-1], atol=1e-5)


def test_what_cannot_be_read_costs_its_neighbours_nothing(extractor):
    sounds = [noise(samples, seed) for seed, samples in enumerate((400001, 700000, 8000, 170000))]
    alone = embedded(extractor, sounds[0]) + embedded(extractor, sounds[3])
    sounds[1][650000], sounds[2][0] = np.nan, np.inf  # found after windows were given, and at once
    found = embedded(extractor, *sounds)
    assert [type(one) for one in found[1:3]] == [UserError] * 2
    assert "from 40.0 s on" in str(found[1])
    for one, expected in zip((found[0], found[3]), alone):
        np.testing.assert_allclose(one, expected, atol=2e-3)  # float16
    without = made_of(*sounds, wanted=("mfcc",))
    assert [isinstance(one, UserError) for one in without] == [False, True, True, False]


def test_features_beside_embeddings_are_those_without(extractor):
    sounds = [noise(samples, seed) for seed, samples in enumerate((1, 400001, 8000))]
    for both, one in zip(made_of(*sounds, wanted=("mfcc", "embeddings"), extractor=extractor),
                         made_of(*sounds, wanted=("mfcc",))):
        assert list(both) == ["mfcc", "embeddings"]
        assert len(both["embeddings"]) == len(both["mfcc"])
        np.testing.assert_array_equal(both["mfcc"], one["mfcc"])


def broken(stream, dtype=np.float16):
    """Embeddings that are not finite, or beyond float16."""
    for clip, value in zip(recut(stream), (1, np.nan, 1e6, np.inf, 2)):
        yield with_embeddings(clip, np.full((len(clip), 4), value, np.float32), dtype)


def test_embeddings_that_are_not_finite_are_those_of_a_recording_that_has_none():
    extractor = mock.Mock(spec=extractors.AtstExtractor, embed=broken, inputs=(spectral.SAMPLES,), max_frames=250)
    found = made_of(*[noise(8000)] * 5, wanted=("embeddings",), extractor=extractor)
    assert [isinstance(one, UserError) for one in found] == [False, True, True, True, False]
    assert all("float16" in str(found[i])
               for i in (1, 2, 3))
