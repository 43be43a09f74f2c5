"""Recordings of noise in MLPC layout."""

import numpy as np
import soundfile
from tiny import write_layout

FRAMES = {"a.wav": 20, "b.wav": 31, "c.flac": 11, "d.wav": 12, "e.wav": 13, "f.ogg": 14}  # the last two: no training


def write_recording(layout, filename: str, samples: int) -> None:
    """Full-scale noise of this length at 16 kHz."""
    rng = np.random.default_rng(len(filename) + samples)
    soundfile.write(layout.audio_path(filename), rng.uniform(-1, 1, samples), 16000)


def write_recordings(path, frames=FRAMES, **kwargs):
    """A directory with recordings whose last frame is not full."""
    layout = write_layout(path, recordings=frames, **kwargs)
    (path / "audio").mkdir()
    for i, (filename, count) in enumerate(frames.items()):
        write_recording(layout, filename, count * 1920 - 311 * i)
    return layout
