"""Pages of sedjax.inference.page, and what is in them."""

import base64
import dataclasses
import html.parser
import json
import pathlib
from collections.abc import Iterable

import numpy as np

from sedjax.core.task import FRAME_SAMPLES, SAMPLE_RATE_HZ, Task
from sedjax.inference import page
from sedjax.inference.detection import Detection
from sedjax.scoring.event_rules import EventRules


def detection(frames: np.ndarray, task: Task, samples: int | None = None, seed: int = 0) -> Detection:
    """A detection with these probabilities and a spectrogram of noise; its segments are not used."""
    power = np.random.default_rng(seed).exponential(size=(len(frames), 64)).astype(np.float32)
    return Detection("a.wav", task, EventRules(np.full(len(task.classes), 0.5, np.float32)),
                     (samples or len(frames) * FRAME_SAMPLES) / SAMPLE_RATE_HZ, frames, frames[:0],
                     {"melspectrogram": power})


def write_page(path: pathlib.Path, task: Task, rules: EventRules,
               recordings: Iterable[tuple[str, Detection, pathlib.Path]]) -> pathlib.Path:
    with page.new_page(path, task, rules) as add:
        for recording in recordings:
            add(*recording)
    return path


def many_classes(task: Task, number: int) -> Task:
    return dataclasses.replace(task, classes=tuple(f"Class {i}" for i in range(number)),
                               costs=task.costs[:1] * number)


class Page(html.parser.HTMLParser):
    """The elements of a page, as a browser would find them.

    Attributes:
      tags: name and attributes of each element.
      scripts: attributes and text of each script element.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self._is_script = False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._is_script = tag == "script"
        if self._is_script:
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        if self._is_script:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data

    def handle_endtag(self, tag):
        self._is_script = False

    def texts(self, kind: str) -> list[str]:
        """The scripts of a class."""
        return [text for attributes, text in self.scripts if attributes.get("class") == kind]

    def contents(self, kind: str) -> list[bytes]:
        return [base64.b64decode(text, validate=True) for text in self.texts(kind)]

    @property
    def recordings(self) -> list[dict]:
        return [json.loads(text) for text in self.texts("recording")]

    @property
    def run(self) -> dict:
        return next(json.loads(text) for attributes, text in self.scripts if attributes.get("id") == "run")

    @property
    def code(self) -> str:
        """The text of the only script that runs."""
        (code,) = (text for attributes, text in self.scripts if "type" not in attributes)
        return code
