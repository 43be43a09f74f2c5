"""Output files: tables over all recordings, and files for each recording."""

import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from sedjax.core import files, grid
from sedjax.core.errors import UserError
from sedjax.core.files import atomic_output
from sedjax.core.grid import seconds_text
from sedjax.core.task import Task
from sedjax.inference import figures
from sedjax.inference.detection import Detection, Event
from sedjax.inference.trained import TrainedModel
from sedjax.scoring.events import EVENT_COLUMNS
from sedjax.scoring.submission import write_submission

# The page is written by inference.page, the hourly table by inference.summary.
TABLES = {"csv": "predictions.csv", "tsv": "events.tsv", "html": "index.html", "hourly": "hourly.csv"}


def write_labels(path: pathlib.Path, detection: Detection, model: TrainedModel) -> None:
    """Labels for Audacity: onset, offset and class of each event."""
    files.write_csv(path, ((seconds_text(event.onset), seconds_text(event.offset), event.label)
                           for event in detection), "\t")


def write_json(path: pathlib.Path, detection: Detection, model: TrainedModel) -> None:
    """Everything but the frame probabilities, with the model and the task."""
    task = detection.task
    content = {
        "recording": detection.recording,
        "seconds": round(detection.seconds, 7),
        "model": {"workdir": str(model.workdir), "name": model.config.model["name"], "step": model.step},
        "task": json.loads(task.to_json()),
        "thresholds": dict(zip(task.classes, _short(detection.rules.thresholds))),
        "rules": detection.rules.to_dict(task),
        "events": [event._asdict() | {"score": round(event.score, 4)} for event in detection],
        "segments": [{"onset": float(grid.onset_text(i, task)),
                      "active": [name for name, on in zip(task.classes, active) if on],
                      "probabilities": dict(zip(task.classes, _short(row)))}
                     for i, (active, row) in enumerate(zip(detection.active, detection.segments))]}
    files.write_json(path, content)


def write_frames(path: pathlib.Path, detection: Detection, model: TrainedModel) -> None:
    """The probability of each class in each frame."""
    with atomic_output(path) as temporary:
        np.savez(temporary, probabilities=detection.frames, classes=np.array(detection.task.classes),
                 frame_seconds=detection.task.frame_seconds)


def write_picture(path: pathlib.Path, detection: Detection, model: TrainedModel) -> None:
    """The figure of figures.draw_recording; the detection must contain the melspectrogram."""
    from matplotlib import pyplot as plt  # slow to import

    figure = figures.draw_recording(detection.features["melspectrogram"], detection)
    try:
        with atomic_output(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that matplotlib's font lacks
            figure.savefig(temporary, dpi=100)
    finally:
        plt.close(figure)


# Files for each recording: suffix and writer.
FILES = {"audacity": (".txt", write_labels), "json": (".json", write_json), "png": (".png", write_picture),
         "frames": (".npz", write_frames)}


def require_writable(folder: pathlib.Path, stems: Iterable[str], kinds: Collection[str],
                     recordings: Iterable[pathlib.Path]) -> None:
    """Raises UserError if an output would replace a recording, or a file that sedjax did not write.

    Args:
      folder: output folder.
      stems: from `stems`.
      kinds: keys of TABLES and FILES.
      recordings: files to be read.
    """
    names = [name for kind, name in TABLES.items() if kind in kinds]
    names += [f"{stem}{suffix}" for stem in stems for kind, (suffix, _) in FILES.items() if kind in kinds]
    read = {os.path.realpath(path) for path in recordings}
    for path in (folder / name for name in names):
        if os.path.realpath(path) in read:
            raise UserError(f"{path} is a recording to be read, and would be overwritten: choose another --output.")
        files.require_replaceable(path)


def write_files(folder: pathlib.Path, stem: str, detection: Detection, model: TrainedModel,
                kinds: Iterable[str]) -> None:
    """Writes the given kinds of FILES for one recording. Raises UserError if that fails."""
    for kind in kinds:
        suffix, write = FILES[kind]
        write(folder / f"{stem}{suffix}", detection, model)


def write_tables(folder: pathlib.Path, task: Task, active: Mapping[str, np.ndarray],
                 events: Mapping[str, Sequence[Event]], kinds: Iterable[str]) -> None:
    """Writes the given kinds of TABLES; `active` and `events` are by filename. Raises UserError if that fails.

    `csv`: predictions.csv, active segments in submission format. `tsv`: events.tsv in DCASE format.
    """
    if "csv" in kinds:
        write_submission(folder / TABLES["csv"], task, dict(active))
    if "tsv" in kinds:
        rows = ((filename, seconds_text(event.onset), seconds_text(event.offset), event.label, f"{event.score:.4f}")
                for filename, detected in events.items() for event in detected)
        files.write_csv(folder / TABLES["tsv"], [(*EVENT_COLUMNS, "score"), *rows], "\t")


def stems(names: Sequence[str]) -> list[str]:
    """File stem of each recording: its name without suffix, or with it if stems would collide.

    Stems that are too long for a file system end in a checksum. Raises UserError if two still collide.
    """
    flat = [name.replace(os.sep, "_") for name in names]
    result = [pathlib.PurePath(name).stem for name in flat]
    if len(set(result)) < len(result):
        result = flat
    result = [_shortened(stem, name) for stem, name in zip(result, names)]
    first = dict(zip(reversed(result), reversed(names)))
    if twins := [(first[stem], name) for stem, name in zip(result, names) if first[stem] != name]:
        raise UserError(f"The outputs of {twins[0][0]} and {twins[0][1]} would have the same names: rename one.")
    return result


def _shortened(stem: str, name: str) -> str:
    room = files.NAME_BYTES - max(len(suffix) for suffix, _ in FILES.values())
    if len(stem.encode()) <= room:
        return stem
    checksum = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{stem.encode()[: room - len(checksum) - 1].decode(errors='ignore')}~{checksum}"


def _short(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
