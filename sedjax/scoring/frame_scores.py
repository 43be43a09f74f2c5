"""Frame scores of recordings from files: npz as `predict --frames` writes them, or tsv as sed_scores_eval does."""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from sedjax.core.errors import UserError, printable
from sedjax.core.files import TABLE_BYTES, csv_rows
from sedjax.core.npz import read_npz
from sedjax.core.task import Task
from sedjax.scoring.events import MOST_SECONDS, RESOLUTION_SECONDS

KEYS = ("probabilities", "classes", "frame_seconds")  # of the npz files


class FrameScores(NamedTuple):
    """Scores of a recording.

    Attributes:
      times: onset of each frame, then the offset of the last, in seconds.
      scores: score of each class in each frame, from 0 to 1, in the task's class order.
    """

    times: Float[np.ndarray, "frame_edge"]
    scores: Float32[np.ndarray, "frame class"]


def frame_times(frames: int, frame_seconds: float) -> Float[np.ndarray, "frame_edge"]:
    """FrameScores.times of frames of equal length; rounded, so that 3 x 0.12 is 0.36."""
    return np.round(np.arange(frames + 1) * frame_seconds, 7)


def read_frame_scores(folder: str | os.PathLike, stems: Mapping[str, str], task: Task) -> dict[str, FrameScores]:
    """The frame scores of each recording, from the npz files in a folder, or the tsv files if it has no npz.

    Args:
      folder: a folder with exactly one such file for each recording.
      stems: stem of each recording's file, by filename.
      task: task whose classes the files have, in any order.

    Raises:
      UserError: a file is missing, damaged or of no recording, or has other classes; the message names it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {printable(folder)}.")
    suffix = ".npz" if any(folder.glob("*.npz")) else ".tsv"
    paths = {filename: folder / f"{stem}{suffix}" for filename, stem in stems.items()}
    if surplus := sorted(set(folder.glob(f"*{suffix}")) - set(paths.values())):
        raise UserError(f"{printable(surplus[0])} is of no recording in the ground truth: remove it, or list its "
                        "recording there, if it has no events by a row with only its filename.")
    return {filename: _read(path, suffix, task) for filename, path in paths.items()}


def _read(path: pathlib.Path, suffix: str, task: Task) -> FrameScores:
    classes, times, scores = (_read_npz if suffix == ".npz" else _read_table)(path)
    if sorted(classes) != sorted(task.classes):
        differing = sorted(set(classes) ^ set(task.classes)) or sorted(classes)
        raise UserError(f"{printable(path)}: its classes are not those of the task {task.name!r}: {differing[0]!r} is "
                        "in one of them only, or twice.")
    if scores.shape != (len(times) - 1, len(classes)) or not len(scores):
        raise UserError(f"{printable(path)} has no frames, or scores of the shape {scores.shape} for {len(classes)} "
                        "classes.")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise UserError(f"{printable(path)}: a score is NaN or outside 0 to 1.")
    if times[0] != 0 or not (np.diff(times) >= RESOLUTION_SECONDS).all() or not times[-1] <= MOST_SECONDS:
        raise UserError(f"{printable(path)}: its frames do not follow one another from 0 s on.")
    return FrameScores(times, scores[:, [classes.index(label) for label in task.classes]].astype(np.float32))


def _read_npz(path: pathlib.Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    arrays = read_npz(path, KEYS)
    scores, classes, frame_seconds = (arrays[key] for key in KEYS)
    if (scores.ndim != 2 or scores.dtype.kind != "f" or classes.dtype.kind != "U" or frame_seconds.dtype.kind != "f"
            or frame_seconds.size != 1 or not np.isfinite(frame_seconds)):
        raise UserError(f"{printable(path)} does not hold what predict --frames writes: probabilities of shape "
                        "(frames, classes), the classes, and frame_seconds.")
    return classes.ravel().tolist(), frame_times(len(scores), float(frame_seconds.item())), scores


def _read_table(path: pathlib.Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    rows = csv_rows(path, TABLE_BYTES, delimiter="\t")
    line, header = next(rows, (1, []))
    if header[:2] != ["onset", "offset"]:
        raise UserError(f"{printable(path)}, line {line}: the first columns of a table of scores are onset and offset.")
    values = []
    for line, row in rows:
        try:
            values.append(np.array(row, np.float64))
            if len(row) != len(header):
                raise ValueError
        except ValueError:
            raise UserError(f"{printable(path)}, line {line}: expected {len(header)} numbers.") from None
    table = np.array(values).reshape(-1, len(header))
    if not np.array_equal(table[1:, 0], table[:-1, 1]):
        raise UserError(f"{printable(path)}: a frame does not begin where the previous one ends.")
    return header[2:], np.append(table[:1, 0], table[:, 1]), table[:, 2:]
