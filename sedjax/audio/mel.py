"""What a mel spectrogram is: its parameters and constant arrays, without JAX; `frontend` computes with them."""

import dataclasses
import functools

import numpy as np
import scipy.fft
import scipy.signal
from jaxtyping import Float

from sedjax.core.numbers import ceil_div
from sedjax.core.task import FRAME_SAMPLES, SAMPLE_RATE_HZ

# Of MLPC and the MFCC made of it: raise it whenever the same recording gives other numbers.
SPECTRAL_VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Mel:
    """A mel spectrogram of 16 kHz audio: power in bands, in Hann windows.

    Attributes:
      hop_samples: from one window to the next.
      windows_per_frame: whose mean power is a frame.
      window_samples: length of a window and of its Fourier transform, even.
      bands: number of triangular filters.
      low_hz, high_hz: where the first begins and the last ends.
      htk: HTK's mel scale and filters of height 1 (torchaudio's default); otherwise Slaney's scale and equal areas
        (librosa's default).
      reflect: the first window is centred on the first sample, and beyond its ends the recording is mirrored; then n
        samples are 1 + n // hop_samples frames. Otherwise it is centred on the middle of the first hop, and there is
        silence beyond; then n samples are ceil(n / frame_samples) frames, and every sample is in one of them.
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
        """How far the first window begins before the first sample."""
        return self.window_samples // 2 if self.reflect else (self.window_samples - self.hop_samples) // 2

    def num_frames(self, samples):
        """Frames of a recording of `samples`, an integer or an array of them; none of one without samples."""
        if self.reflect:
            return (samples > 0) * (1 + samples // self.hop_samples)
        return ceil_div(samples, self.frame_samples)

    @functools.cached_property
    def window(self) -> Float[np.ndarray, "sample"]:
        """The periodic Hann window."""
        return scipy.signal.get_window("hann", self.window_samples).astype(np.float32)

    @functools.cached_property
    def filters(self) -> Float[np.ndarray, "frequency band"]:
        import librosa  # slow to import

        return librosa.filters.mel(sr=SAMPLE_RATE_HZ, n_fft=self.window_samples, n_mels=self.bands, fmin=self.low_hz,
                                   fmax=self.high_hz, htk=self.htk, norm=None if self.htk else "slaney").T


# One window of 64 ms in a frame of 120 ms would miss whatever sounds beside it.
MLPC = Mel(hop_samples=FRAME_SAMPLES // 4, windows_per_frame=4)
ATST = Mel(hop_samples=160, low_hz=60.0, high_hz=7800.0, htk=True, reflect=True)
MFCC_COEFFICIENTS = 32


@functools.cache
def dct(bands: int, coefficients: int) -> Float[np.ndarray, "band coefficient"]:
    """The first columns of the orthonormal DCT-II."""
    return scipy.fft.dct(np.eye(bands), norm="ortho")[:, :coefficients].astype(np.float32)


@functools.cache
def delta_weights(width: int, order: int) -> Float[np.ndarray, "neighbour"]:
    """Weights of `width` neighbours whose sum is the derivative of the polynomial of degree `order` through them.

    Savitzky and Golay 1964.
    """
    return scipy.signal.savgol_coeffs(width, order, deriv=order, use="dot").astype(np.float32)
