"""The front ends against librosa, ATST's own numbers and the numpy form, and what padding does to them: nothing."""

import pathlib

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from golden import reference_waveform
from numpy_features import spectral_features

from sedjax.audio import frontend, mel

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "atst_frame.npz"


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def batch(clips: list[np.ndarray], samples: int) -> tuple[jax.Array, jax.Array]:
    """ClipTable with large numbers under the padding, and the mask of their samples."""
    x = 1e3 * np.random.default_rng(9).standard_normal((len(clips), samples))
    for row, clip in zip(x, clips):
        row[: len(clip)] = clip
    mask = np.arange(samples)[None] < np.array([len(clip) for clip in clips])[:, None]
    return jnp.asarray(x, jnp.float32), jnp.asarray(mask)


def test_the_input_of_atst_frame():
    with np.load(GOLDEN, allow_pickle=False) as archive:
        golden = archive["mel"]
    found, mask = jax.jit(frontend.atst_log_mel)(*batch([reference_waveform()], 160000))
    assert found.shape == (1, 1001, 64)
    assert mask.all()
    np.testing.assert_allclose(np.asarray(found)[0, ::10].T, golden, atol=1e-4)


@pytest.mark.parametrize("definition", [mel.ATST, mel.Mel(hop_samples=320, window_samples=512, bands=40, reflect=True)])
def test_mirrored_windows_are_those_of_librosa(definition):
    audio = noise(16123)
    expected = librosa.feature.melspectrogram(
        y=audio, sr=16000, n_fft=definition.window_samples, hop_length=definition.hop_samples, center=True,
        pad_mode="reflect", power=2.0, n_mels=definition.bands, fmin=definition.low_hz, fmax=definition.high_hz,
        htk=definition.htk, norm=None if definition.htk else "slaney").T
    found, mask = frontend.mel_power(*batch([audio], 16123), definition)
    assert mask.shape == (1, 1 + 16123 // definition.hop_samples)
    np.testing.assert_allclose(np.asarray(found)[0], expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_silence_around_windows_is_that_of_librosa():
    audio, definition = noise(16000), mel.Mel(hop_samples=256, reflect=False)
    padded = np.pad(audio, (definition.samples_before, 1024))
    expected = librosa.feature.melspectrogram(y=padded, sr=16000, n_fft=1024, hop_length=256, center=False, n_mels=64)
    found, mask = frontend.mel_power(*batch([audio], 16000), definition)
    assert mask.shape == (1, 63)
    np.testing.assert_allclose(np.asarray(found)[0], expected.T[:63], rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.parametrize("samples", [1, 500, 1919, 1920, 1921, 48000])
def test_the_numpy_form_is_the_same(samples):
    audio = noise(samples)
    power, mask = frontend.mel_power(*batch([audio], samples))
    frames = -(-samples // 1920)
    assert mask.shape == (1, frames)
    assert mask.all()
    expected = spectral_features(audio, frames)
    np.testing.assert_allclose(np.asarray(power)[0], expected["melspectrogram"], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(np.asarray(frontend.mfcc(power))[0], expected["mfcc"], atol=0.1, rtol=2e-3)


def test_mel_power_misses_nothing_within_a_frame():
    """A click anywhere in a frame is strongest in that frame's row, and about as strong wherever it is."""
    size = mel.MLPC.frame_samples
    clicks = np.zeros((size // 60, 8 * size - 1000), np.float32)
    clicks[np.arange(len(clicks)), 3 * size + 60 * np.arange(len(clicks))] = 1
    power, _ = frontend.mel_power(*batch(list(clicks), clicks.shape[1]))
    rows = np.asarray(power).sum(axis=2)
    assert (rows[1:].argmax(axis=1) == 3).all()
    assert rows.sum(axis=1).max() < 2 * rows.sum(axis=1).min()


def test_mfcc_is_that_of_librosa():
    power = np.random.default_rng(0).exponential(size=(2, 20, 64)).astype(np.float32)
    expected = librosa.feature.mfcc(S=frontend.power_to_db(power[1]).T, n_mfcc=32).T
    np.testing.assert_allclose(np.asarray(frontend.mfcc(jnp.asarray(power)))[1], expected, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("width", [3, 5, 9])
def test_deltas_are_those_of_librosa(order, width):
    x = np.random.default_rng(0).standard_normal((2, 30, 4)).astype(np.float32)
    mask = np.ones((2, 30), bool)
    mask[1, 25:] = False
    for convert in (np.asarray, jnp.asarray):
        found = frontend.deltas(convert(x), convert(mask), order, width)
        assert found.dtype == np.float32
        for row, length in enumerate((30, 25)):
            expected = librosa.feature.delta(x[row, :length], width=width, order=order, axis=0, mode="nearest")
            np.testing.assert_allclose(np.asarray(found)[row, :length], expected, atol=1e-4)
    assert (np.asarray(found)[1, 25:] == 0).all()


def test_deltas_of_fewer_frames_than_neighbours():
    found = frontend.deltas(np.ones((1, 1, 2), np.float32), np.ones((1, 1), bool))
    np.testing.assert_allclose(found, np.zeros((1, 1, 2)), atol=1e-7)


@pytest.mark.parametrize(("front_end", "definition"), [(frontend.mel_power, mel.MLPC),
                                                       (frontend.atst_log_mel, mel.ATST)])
def test_padding_and_batch_mates_change_nothing(front_end, definition):
    """From 0 samples on; a clip of 1 is mirrored into itself."""
    lengths = [0, 1, 2, 159, 160, 161, 600, 1920, 5000, 6017]
    clips = [noise(length, seed=length) for length in lengths]
    front_end = jax.jit(front_end)
    together, mask = front_end(*batch(clips, 8000))
    assert np.isfinite(together).all()
    for clip, found, real in zip(clips, together, mask):
        frames = int(definition.num_frames(len(clip)))
        np.testing.assert_array_equal(real, np.arange(len(real)) < frames)
        assert len(np.unique(np.asarray(found)[frames:])) <= 1, "padding has one value"
        if frames:
            alone, whole = front_end(*batch([clip], len(clip)))
            assert alone.shape[1] == frames
            assert whole.all()
            np.testing.assert_allclose(found[:frames], alone[0], rtol=1e-5, atol=1e-5 * float(alone.max()))


def test_a_short_clip_is_mirrored_as_numpy_does():
    clip = noise(130)
    found, _ = frontend.mel_power(*batch([clip], 130), mel.ATST)
    windows = np.pad(clip, 512, mode="reflect")
    spectrum = np.fft.rfft(windows[:1024] * mel.ATST.window)
    np.testing.assert_allclose(np.asarray(found)[0, 0], np.abs(spectrum) ** 2 @ mel.ATST.filters, rtol=1e-4, atol=1e-6)


def test_the_floor_is_that_of_each_clip():
    quiet, loud = 1e-3 * noise(16000), noise(16000, seed=1)
    quiet[:8000] = 0
    front_end = jax.jit(frontend.atst_log_mel)
    together, _ = front_end(*batch([quiet, 100 * loud], 16000))
    alone, _ = front_end(*batch([quiet], 16000))
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 16000, 160000])
def test_number_of_frames(samples):
    assert mel.MLPC.num_frames(samples) == -(-samples // 1920)
    assert mel.ATST.num_frames(samples) == 1 + samples // 160
    assert mel.ATST.num_frames(0) == mel.MLPC.num_frames(0) == 0


@pytest.mark.parametrize("front_end", [frontend.mel_power, frontend.atst_log_mel])
def test_gradients_are_finite_even_of_silence_and_padding(front_end):
    audio = jnp.zeros((2, 4000)).at[0, 100:2000].set(noise(1900))
    mask = jnp.arange(4000)[None] < jnp.array([3000, 0])[:, None]
    gradient = jax.jit(jax.grad(lambda x: front_end(x, mask)[0].sum()))(audio)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~np.asarray(mask)] == 0).all()
