"""Mel power and MFCC with numpy: the reference for audio.frontend, which agrees to within rounding."""

import numpy as np
import scipy.fft

from sedjax.audio.mel import MFCC_COEFFICIENTS, MLPC


def spectral_features(audio: np.ndarray, num_frames: int) -> dict[str, np.ndarray]:
    """Mel power and MFCC of a recording, one row per 120 ms frame.

    The power of a frame is the mean over four Hann windows of 64 ms, centred 15, 45, 75 and 105 ms into the frame, in
    Slaney mel bands from 0 to 8 kHz; every sample contributes. The recording is padded with silence at both ends.

    Args:
      audio: (samples,), 16 kHz mono, in [-1, 1].
      num_frames: T; the audio is padded with silence or truncated to T frames.

    Returns:
      `melspectrogram` (T, 64) float32, linear power; `mfcc` (T, 32) float16, the orthonormal DCT-II of the mel power in
      dB, floored at -100 dB.
    """
    before = MLPC.samples_before
    padded = np.zeros(num_frames * MLPC.frame_samples + 2 * before, np.float32)
    audio = audio[: num_frames * MLPC.frame_samples + before]
    padded[before : before + len(audio)] = audio
    windows = np.lib.stride_tricks.sliding_window_view(padded, MLPC.window_samples)[:: MLPC.hop_samples]
    spectrum = scipy.fft.rfft(windows * MLPC.window, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    power = power.reshape(num_frames, MLPC.windows_per_frame, -1).mean(axis=1)
    mel = power @ MLPC.filters
    decibels = 10 * np.log10(np.maximum(mel, 1e-10))
    mfcc = scipy.fft.dct(decibels, axis=1, norm="ortho")[:, :MFCC_COEFFICIENTS]
    return {"melspectrogram": mel.astype(np.float32), "mfcc": mfcc.astype(np.float16)}
