"""Parameters and constant arrays of mel spectrograms, without JAX; `frontend` computes with them."""

import dataclasses
import functools

import numpy as np
import scipy.fft
import scipy.signal
from jaxtyping import Float

from sedjax.core.numbers import ceil_div
from sedjax.core.task import FRAME_SAMPLES, SAMPLE_RATE_HZ

# Version of MLPC and its MFCCs: increase it whenever the features of the same recording change.
SPECTRAL_VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Mel:
    """A mel spectrogram of 16 kHz audio: power per band in Hann windows.

    Attributes:
      hop_samples: hop from one window to the next.
      windows_per_frame: number of windows whose mean power is a frame.
      window_samples: length of a window and of its Fourier transform, even.
      bands: number of triangular filters.
      low_hz, high_hz: lower edge of the first filter and upper edge of the last.
      htk: True for HTK's mel scale and filters of height 1 (torchaudio's default), False for Slaney's scale and filters
        of equal area (librosa's default).
      reflect: if True, the first window is centred on the first sample and the recording is mirrored at its ends; n
        samples are 1 + n // hop_samples frames. If False, it is centred on the first hop and the recording is padded
        with silence; n samples are ceil(n / frame_samples) frames, and every sample is in one of them.
    """

    hop_samples: int
    windows_per_frame: int = 1
    window_samples: int = 1024
    bands: int = 64
    low_hz: float = 0.0
    high_hz: float = SAMPLE_RATE_HZ / 2
    htk: bool = False
    reflect: bool = False

    @property
    def frame_samples(self) -> int:
        return self.hop_samples * self.windows_per_frame

    @property
    def samples_before(self) -> int:
        """Number of samples by which the first window starts before the first sample."""
        return self.window_samples // 2 if self.reflect else (self.window_samples - self.hop_samples) // 2

    def num_frames(self, samples):
        """Number of frames of `samples` samples, an integer or an integer array; 0 for no samples."""
        if self.reflect:
            return (samples > 0) * (1 + samples // self.hop_samples)
        return ceil_div(samples, self.frame_samples)

    @functools.cached_property
    def window(self) -> Float[np.ndarray, "sample"]:
        """The periodic Hann window."""
        return scipy.signal.get_window("hann", self.window_samples).astype(np.float32)

    @functools.cached_property
    def filters(self) -> Float[np.ndarray, "frequency band"]:
        """Triangles whose corners are evenly spaced in mel; those of librosa.filters.mel, to the last bit."""
        low, high = hz_to_mel(np.array([self.low_hz, self.high_hz]), self.htk)
        corners_hz = mel_to_hz(np.linspace(low, high, self.bands + 2), self.htk)
        frequencies_hz = np.fft.rfftfreq(self.window_samples, 1 / SAMPLE_RATE_HZ)
        distances_hz, widths_hz = np.subtract.outer(corners_hz, frequencies_hz), np.diff(corners_hz)
        rising = -distances_hz[:-2] / widths_hz[:-1, None]
        falling = distances_hz[2:] / widths_hz[1:, None]
        filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
        if not self.htk:
            filters *= (2.0 / (corners_hz[2:] - corners_hz[:-2]))[:, None]
        return filters.T


@dataclasses.dataclass(frozen=True)
class KaldiMel(Mel):
    """As Mel, by Kaldi's rule: short symmetric windows, and triangles in mel rather than in Hz, without the last bin.

    Attributes:
      hann_samples: length of the Hann window, in the middle of the Fourier transform's.
    """

    hann_samples: int = 400

    @functools.cached_property
    def window(self) -> Float[np.ndarray, "sample"]:
        """The symmetric Hann window between zeros."""
        outside = (self.window_samples - self.hann_samples) // 2
        return np.pad(scipy.signal.get_window("hann", self.hann_samples, fftbins=False), outside).astype(np.float32)

    @functools.cached_property
    def filters(self) -> Float[np.ndarray, "frequency band"]:
        """Triangles of height 1."""
        corners = np.linspace(*hz_to_mel(np.array([self.low_hz, self.high_hz]), htk=True), self.bands + 2)
        mels = hz_to_mel(np.fft.rfftfreq(self.window_samples, 1 / SAMPLE_RATE_HZ), htk=True)
        distances, widths = np.subtract.outer(mels, corners), np.diff(corners)
        filters = np.maximum(0, np.minimum(distances[:, :-2] / widths[:-1], -distances[:, 2:] / widths[1:]))
        filters[-1] = 0
        return filters.astype(np.float32)


# A single window of 64 ms per frame of 120 ms would miss the sound outside the window.
MLPC = Mel(hop_samples=FRAME_SAMPLES // 4, windows_per_frame=4)
ATST = Mel(hop_samples=160, low_hz=60.0, high_hz=7800.0, htk=True, reflect=True)
FRAME_MN = KaldiMel(hop_samples=160, window_samples=512, bands=128, high_hz=7000.0, reflect=True)
MFCC_COEFFICIENTS = 32


# Slaney's scale is linear up to 1 kHz, and logarithmic above.
LINEAR_HZ, LINEAR_HZ_PER_MEL, LOG_STEP = 1000.0, 200.0 / 3, np.log(6.4) / 27.0


def hz_to_mel(hz: Float[np.ndarray, "*shape"], htk: bool) -> Float[np.ndarray, "*shape"]:
    """Frequencies in mel, on the scale of HTK or of Slaney's Auditory Toolbox."""
    if htk:
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    above = LINEAR_HZ / LINEAR_HZ_PER_MEL + np.log(np.maximum(hz, LINEAR_HZ) / LINEAR_HZ) / LOG_STEP
    return np.where(hz >= LINEAR_HZ, above, hz / LINEAR_HZ_PER_MEL)


def mel_to_hz(mels: Float[np.ndarray, "*shape"], htk: bool) -> Float[np.ndarray, "*shape"]:
    """The inverse of `hz_to_mel`."""
    if htk:
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    first = LINEAR_HZ / LINEAR_HZ_PER_MEL
    return np.where(mels >= first, LINEAR_HZ * np.exp(LOG_STEP * (mels - first)), LINEAR_HZ_PER_MEL * mels)


@functools.cache
def dct(bands: int, coefficients: int) -> Float[np.ndarray, "band coefficient"]:
    """The first columns of the orthonormal DCT-II."""
    return scipy.fft.dct(np.eye(bands), norm="ortho")[:, :coefficients].astype(np.float32)


@functools.cache
def delta_weights(width: int, order: int) -> Float[np.ndarray, "neighbour"]:
    """Weights of `width` neighbours; the weighted sum is the derivative of their polynomial fit of degree `order`.

    Savitzky and Golay 1964.
    """
    return scipy.signal.savgol_coeffs(width, order, deriv=order, use="dot").astype(np.float32)
