"""`python -m data_prep.extract`: adds features to a directory in MLPC layout (SPEC section 3).

`--embeddings_from` names a trained sedjax model, whose last layer before the head becomes the feature `embeddings`.
"""

import functools
from collections.abc import Sequence

import numpy as np
import scipy.fft
from absl import flags
from tqdm import tqdm

from sedjax import commands
from sedjax.layout import Layout, read_layout

SAMPLE_RATE_HZ = 16000
FRAME_SAMPLES = 1920  # 120 ms
WINDOWS_PER_FRAME = 4  # a single window of 64 ms per frame would miss whatever sounds beside it
WINDOW_SAMPLES = 1024
MEL_BANDS = 64
MFCC_COEFFICIENTS = 32


def spectral_features(audio: np.ndarray, num_frames: int) -> dict[str, np.ndarray]:
    """Mel power and MFCC of a recording, one row per 120 ms frame.

    The power of a frame is the mean over four Hann windows of 64 ms, centred 15, 45, 75 and 105 ms into the frame, in
    Slaney mel bands from 0 to 8 kHz; every sample weighs in. What lies outside the recording is silence.

    Args:
      audio: (samples,), 16 kHz mono, in [-1, 1].
      num_frames: T; the audio is padded with silence, or cut, to T frames.

    Returns:
      `melspectrogram` (T, 64) float32, linear power; `mfcc` (T, 32) float16, the orthonormal DCT-II of the mel power in
      dB, floored at -100 dB.
    """
    hop = FRAME_SAMPLES // WINDOWS_PER_FRAME
    before = (WINDOW_SAMPLES - hop) // 2  # centres the first window on the middle of the first hop
    padded = np.zeros(num_frames * FRAME_SAMPLES + 2 * before, np.float32)
    audio = audio[: num_frames * FRAME_SAMPLES + before]
    padded[before : before + len(audio)] = audio
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::hop]
    spectrum = scipy.fft.rfft(windows * _hann(), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    power = power.reshape(num_frames, WINDOWS_PER_FRAME, -1).mean(axis=1)
    # Not `@`: for products this small the threads of BLAS cost more than they give, above all in several processes.
    mel = np.einsum("tf,fm->tm", power, _mel_filters())
    decibels = 10 * np.log10(np.maximum(mel, 1e-10))
    mfcc = scipy.fft.dct(decibels, axis=1, norm="ortho")[:, :MFCC_COEFFICIENTS]
    return {"melspectrogram": mel.astype(np.float32), "mfcc": mfcc.astype(np.float16)}


@functools.cache
def _hann() -> np.ndarray:
    """(window samples,) float32, the periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)).astype(np.float32)


@functools.cache
def _mel_filters() -> np.ndarray:
    """(FFT bins, mel bands) float32."""
    import librosa  # slow to import

    return librosa.filters.mel(sr=SAMPLE_RATE_HZ, n_fft=WINDOW_SAMPLES, n_mels=MEL_BANDS).T


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Directory in MLPC layout, with the features that the extractor needs.",
                        required=True)
    flags.DEFINE_string("embeddings_from", None, "Workdir of the trained model that is the extractor.", required=True)


def main(argv: Sequence[str]) -> None:
    commands.require_no_arguments(argv)
    from sedjax.input_pipeline import Features  # imports JAX, which the functions above do not need
    from sedjax.predict import load

    options = flags.FLAGS
    layout, detector = read_layout(options.source), load(options.embeddings_from)
    frames = detector.embed(Features.of(layout, detector.task, detector.model.features, detector.widths))
    for filename, value in zip(tqdm(layout.filenames, "writing", disable=None), frames):
        add_features(layout, filename, {"embeddings": value.astype(np.float16)})
    print(f"Wrote embeddings of {len(frames):,} recordings, {frames[0].shape[1]} wide, to {layout.path}.")


def add_features(layout: Layout, filename: str, features: dict[str, np.ndarray]) -> None:
    """Adds features to the file of a recording, in place of those with the same names, all of them or none."""
    path = layout.features_path(filename)
    with np.load(path, allow_pickle=False) as archive:
        everything = {**archive, **features}
    with commands.atomic_output(path) as temporary:
        np.savez(temporary, **everything)


if __name__ == "__main__":
    define_flags()
    commands.run(main)
