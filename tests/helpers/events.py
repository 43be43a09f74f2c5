"""Recordings of the tests of labels, and the frames that events mark in them."""

import numpy as np

SECONDS = {"a.wav": 2.0, "b.wav": 1.0, "c.flac": 0.5}  # 17, 9 and 5 frames


def frames(seconds: float, *spans: tuple[float, float]) -> np.ndarray:
    """Whether each frame overlaps one of the spans, in whole milliseconds: without core.grid."""
    return np.array([any(round(1000 * onset) < 120 * (frame + 1) and round(1000 * offset) > 120 * frame
                         for onset, offset in spans) for frame in range(-(-round(1000 * seconds) // 120))])
