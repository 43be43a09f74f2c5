"""Sound event detection in JAX: which sounds occur in a recording, and when.

    detector = sedjax.load("WORKDIR")  # or a pretrained one: sedjax.load("frame_mn10_strong")
    for onset, offset, label, score in detector("street.mp3"):
        ...
"""

import importlib
from typing import TYPE_CHECKING

from sedjax.core.version import __version__

if TYPE_CHECKING:
    from sedjax.audio.clips import Unreadable
    from sedjax.core.errors import UserError
    from sedjax.core.task import Task
    from sedjax.inference.detection import Detection, Event
    from sedjax.inference.detector import Detector
    from sedjax.inference.pretrained import load

__all__ = ["Detection", "Detector", "Event", "Task", "Unreadable", "UserError", "__version__", "load"]

# Imported when they are asked for: JAX takes seconds, and `score` and the checks of a directory can do without.
_PLACES = {"Detection": "inference.detection", "Detector": "inference.detector", "Event": "inference.detection",
           "Task": "core.task", "Unreadable": "audio.clips", "UserError": "core.errors", "load": "inference.pretrained"}


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"sedjax.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
