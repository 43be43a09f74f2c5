"""Inputs of the golden numbers."""

import numpy as np


def reference_waveform() -> np.ndarray:
    """That of SPEC section 7."""
    n = np.arange(160000)
    sound = 0.1 * np.random.default_rng(0).standard_normal(160000) * np.linspace(0, 1, 160000)
    return (sound + 0.3 * np.sin(2 * np.pi * 440 * n / 16000)).astype(np.float32)
