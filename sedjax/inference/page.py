"""A page on which a person sees, hears and corrects the detections of a run: one HTML file that needs nothing else.

It holds the recordings as MP3, their mel spectrograms, and the frame probabilities in full, from which its script
finds the events by the rules of scoring.event_rules. Names come from users: they reach the page only as JSON, and the
script makes text of them, never HTML. The page may load nothing, by its own content security policy.
"""

import base64
import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from typing import IO

import numpy as np
import soundfile

from sedjax.audio import reader
from sedjax.audio.mel import MLPC
from sedjax.core.errors import Path, UserError
from sedjax.core.files import atomic_output
from sedjax.core.task import SAMPLE_RATE_HZ, Task
from sedjax.inference import figures
from sedjax.inference.detection import Detection
from sedjax.scoring.event_rules import EventRules, frame_counts

PARTS = ("page.html", "style.css", "rules.js", "timeline.js", "page.js")
# Where the sliders begin: a class that never exceeds it, nor its own threshold, has no events at any position of its
# slider, so the page need not know its probabilities.
LOWEST_THRESHOLD = 0.02
MOST_ROWS = 12  # with more classes, those without events are hidden at first
# 40 kbit/s: below, the encoder writes no header that says which samples it added, and the sound comes 70 ms late.
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.8}
CHUNK_BYTES = 3 << 20  # a multiple of 3, so that the base64 of the chunks is that of the whole

Add = Callable[[str, Detection, reader.Recording], None]


@contextlib.contextmanager
def new_page(path: Path, task: Task, rules: EventRules) -> Iterator[Add]:
    """Yields a function that adds a recording to a page; the page is complete when the block ends.

    The function takes a name, a detection that contains the melspectrogram, and the recording itself, which is read
    again. Memory holds one recording at a time.

    Args:
      path: HTML file, written as by files.atomic_output.
      task: task of the detections.
      rules: how events are found; the page lets a person change the thresholds.

    Raises:
      UserError: the file cannot be written; from the function, that the recording can no longer be read.
    """
    head, tail = _template(task, rules)
    digest = hashlib.blake2b(digest_size=16)
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(head)

        def add(name: str, detection: Detection, recording: reader.Recording) -> None:
            lowest = np.minimum(LOWEST_THRESHOLD, rules.thresholds)
            likely = np.flatnonzero(detection.frames.max(axis=0, initial=0) > lowest)
            about = _json({"name": name, "seconds": detection.seconds, "frames": len(detection.frames),
                           "likely": likely.tolist()})
            probabilities = detection.frames[:, likely].T.astype("<f4").tobytes()
            file.write(f'<script type="application/json" class="recording">{about}</script>\n')
            _write_bytes(file, "probabilities", probabilities)
            _write_bytes(file, "spectrogram", _levels(detection.features["melspectrogram"]))
            _write_bytes(file, "audio", _mp3(recording, name))
            digest.update(about.encode() + probabilities)

        yield add
        file.write(tail.replace("{digest}", digest.hexdigest()))


def _template(task: Task, rules: EventRules) -> tuple[str, str]:
    """The page before and after its recordings."""
    from matplotlib import colormaps  # slow to import

    folder = resources.files("sedjax.inference") / "page_template"
    html, style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in PARTS)
    script = "\n".join(scripts)
    palette = np.rint(colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    counts = frame_counts(rules, task)
    run = {"classes": task.classes, "frameSeconds": task.frame_seconds, "lowestThreshold": LOWEST_THRESHOLD,
           "mostRows": MOST_ROWS, "bands": MLPC.bands, "frequencies": figures.frequency_ticks(),
           "palette": _base64(palette.tobytes()),
           "rules": {"thresholds": rules.thresholds.tolist(),
                     "lowThresholds": (np.ones(len(task.classes)) if rules.low_thresholds is None
                                       else rules.low_thresholds).tolist(),
                     "medianFrames": counts.median, "gapFrames": counts.merge_gap,
                     "shortestFrames": counts.min_duration}}
    parts = {"style": style, "script": script, "run": _json(run), "range_db": str(figures.RANGE_DB),
             "script_hash": f"'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'"}
    filled = re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], match[0]), html)
    head, tail = filled.split("<!-- recordings -->\n")
    return head, tail


def _levels(melspectrogram: np.ndarray) -> bytes:
    """The spectrogram in steps of RANGE_DB / 255, the bands of a frame together."""
    decibels, low, high = figures.decibels(melspectrogram)
    return np.rint(np.clip((decibels - low) / (high - low), 0, 1) * 255).astype(np.uint8).tobytes()


def _mp3(recording: reader.Recording, name: str) -> memoryview:
    """The recording as the model hears it, 16 kHz mono. Raises UserError."""
    result = io.BytesIO()
    try:
        with soundfile.SoundFile(result, "w", SAMPLE_RATE_HZ, 1, **MP3) as file:
            for block in reader.blocks(recording):
                file.write(np.clip(block, -1, 1))
    except (soundfile.LibsndfileError, ValueError) as error:
        raise UserError(f"Cannot compress the sound of {name} for the page: {error} Leave out the format html, or "
                        "install a libsndfile that writes MP3, version 1.1 or newer.") from error
    return result.getbuffer()


def _write_bytes(file: IO[str], kind: str, content: bytes | memoryview) -> None:
    file.write(f'<script type="text/plain" class="{kind}">')
    for start in range(0, len(content), CHUNK_BYTES):
        file.write(_base64(content[start : start + CHUNK_BYTES]))
    file.write("</script>\n")


def _base64(content: bytes | memoryview) -> str:
    return base64.b64encode(content).decode("ascii")


def _json(value: dict) -> str:
    """JSON that cannot end the script element it is in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
