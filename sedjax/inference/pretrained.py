"""Detectors of the classes of AudioSet Strong, as published by PretrainedSED: any sound, without training."""

import contextlib
import dataclasses
import difflib
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sedjax.audio import reader, spectral
from sedjax.audio.clips import Clip, Unreadable, ahead, recut
from sedjax.core import bounds, parallel
from sedjax.core.config import Config, DataConfig
from sedjax.core.errors import Path, UserError, printable
from sedjax.core.files import read_csv, read_json
from sedjax.core.numbers import ceil_div
from sedjax.core.task import FRAME_SAMPLES, MLPC_2025, SAMPLE_RATE_HZ, Task
from sedjax.core.torch_file import read_state_dict
from sedjax.inference import detector, fetch
from sedjax.inference.detection import Detection
from sedjax.inference.detector import Detector, detections
from sedjax.inference.trained import TrainedModel
from sedjax.models.atst_frame import TOKEN_SAMPLES
from sedjax.models.pretrained import NETWORKS, WINDOW_ROWS, PretrainedNetwork, variables_from
from sedjax.scoring.event_rules import default_rules, smoothed

FILES = {"atst_strong": "ATST-F_strong_1.pt", "frame_mn06_strong": "frame_mn06_strong_1.pt",
         "frame_mn10_strong": "frame_mn10_strong_1.pt"}
FOLDER = pathlib.Path(__file__).parent
CLASS_LIST = FOLDER / "audioset_strong.json"
MAPS = {"mlpc": FOLDER / "mlpc.json"}
THRESHOLD = 0.5
COSTS = (0, 1, 0, 1)  # of any class: nobody has stated others
SEGMENT_ROWS = 30  # 1.2 s, as in MLPC's submissions
BATCH_WINDOWS = 4
ROWS_PER_FRAME = FRAME_SAMPLES // TOKEN_SAMPLES

Groups = dict[str, tuple[str, ...]]  # classes of AudioSet Strong by the name of an output


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PretrainedDetector(Detector):
    """Detects events with a network of PretrainedSED.

    Its frames are rows of 40 ms. Windows of 10 s are cut by absolute time, so the same recording always gives the same
    rows. As in the reference, probabilities go through a median filter of 9 rows by default, before segments too.
    """

    @functools.cached_property
    def task(self) -> Task:
        # The model's task has shorter segments, a whole number of which make a window.
        return dataclasses.replace(self.model.task, frames_per_segment=SEGMENT_ROWS)

    def _detections(self, recordings: list[reader.Recording], sample_rate_hz: reader.SampleRate | None,
                    keep: tuple[str, ...]) -> Iterator[Detection | Unreadable]:
        clips = map(_by_row, spectral.clips(recordings, self.model.inputs, keep, sample_rate_hz))
        with contextlib.closing(detections(self.model, ahead(recut(clips, WINDOW_ROWS)), self.rules)) as results:
            for result in results:
                yield self._by_segment(result) if isinstance(result, Detection) else result

    def _by_segment(self, raw: Detection) -> Detection:
        smooth = smoothed(raw.frames, self.rules.median, self.task)
        segments = np.maximum.reduceat(smooth, np.arange(0, len(smooth), SEGMENT_ROWS))
        features = {key: value.repeat(ROWS_PER_FRAME, axis=0)[: len(smooth)] for key, value in raw.features.items()}
        return dataclasses.replace(raw, task=self.task, segments=segments, features=features)


def load(model: Path, checkpoint: str | int = "best", embeddings_from: Path | None = None, *,
         weights: Path | None = None, classes: Sequence[str] | None = None, groups: Path | None = None) -> Detector:
    """Loads a detector: that of a workdir, or a pretrained one by name (`atst_strong`, `frame_mn06_strong`, ...).

    Args:
      model: run directory of the training, or a key of FILES.
      checkpoint, embeddings_from: as for detector.load, for workdirs only.
      weights, classes, groups: as for load_pretrained, for pretrained detectors only.

    Raises:
      UserError: as detector.load or load_pretrained.
    """
    if os.fspath(model) in FILES:
        if checkpoint != "best" or embeddings_from:
            raise UserError(f"The pretrained detector {model} has neither checkpoints nor another model's embeddings.")
        return load_pretrained(os.fspath(model), weights, classes, groups)
    if weights or classes or groups:
        raise UserError(f"Weights, classes and groups of classes can be chosen for {', '.join(FILES)}, not for a "
                        f"trained model ({printable(model)}).")
    return detector.load(model, checkpoint, embeddings_from)


def load_pretrained(name: str, weights: Path | None = None, classes: Sequence[str] | None = None,
                    groups: Path | None = None) -> PretrainedDetector:
    """Loads a detector of PretrainedSED; its weights are fetched once.

    Args:
      name: key of FILES.
      weights: its file, if it need not be fetched.
      classes: names of the classes of AudioSet Strong to detect; all 447 if None.
      groups: classes to detect instead, each of which is the maximum over some of AudioSet Strong: "mlpc", or a table
        as for `read_groups`.

    Raises:
      UserError: the weights cannot be fetched or read, are those of another network, or a class does not exist.
    """
    if classes is not None and groups is not None:
        raise UserError("Choose either classes or a table of groups of them.")
    with parallel.all_or_none():
        outputs = read_groups(groups) if groups is not None else {label: (label,) for label in classes or all_classes()}
        numbers = _numbers(outputs, "--classes" if groups is None else printable(groups))
        task = _task(name, outputs)
    network = PretrainedNetwork(NETWORKS[name].encoder, None if classes is None and groups is None else numbers)

    def variables(path: Path) -> dict:
        return variables_from(read_state_dict(path), network, NETWORKS[name].rules, path)

    def at_hand() -> pathlib.Path:
        return pathlib.Path(weights) if weights else fetch.fetch(FILES[name], variables)

    parallel.on_process_zero(at_hand)
    with parallel.all_or_none():
        path = at_hand()
        data = DataConfig(max_frames=WINDOW_ROWS, bucket_frames=WINDOW_ROWS, eval_batch_size=BATCH_WINDOWS)
        model = TrainedModel(path, Config({"name": name}, data), task, {spectral.SAMPLES: {"width": TOKEN_SAMPLES}},
                             network, variables(path), np.full(len(task.classes), THRESHOLD, np.float32), step=0)
    return PretrainedDetector(model, default_rules(model.thresholds))


@functools.cache
def all_classes() -> tuple[str, ...]:
    """The classes of AudioSet Strong, in the order of the networks' outputs."""
    return tuple(read_json(CLASS_LIST, list[str]))


def read_groups(path: Path) -> Groups:
    """Groups of classes: the built-in "mlpc", a JSON file {class: [members]}, or a CSV file with a row per member.

    The columns of the CSV file are `class` and `member`. Raises UserError if it is none of these.
    """
    path = MAPS.get(os.fspath(path), pathlib.Path(path))
    if path.suffix == ".json":
        return {label: tuple(members) for label, members in read_json(path, dict[str, list[str]]).items()}
    if path.suffix != ".csv":
        raise UserError(f"A table of groups of classes is one of {', '.join(MAPS)} or a .json or .csv file, not "
                        f"{printable(path)}.")
    groups: Groups = {}
    for row in read_csv(path, ("class", "member")).values():
        groups[row["class"]] = (*groups.get(row["class"], ()), row["member"])
    return groups


def _numbers(groups: Mapping[str, Sequence[str]], where: str) -> tuple[tuple[int, ...], ...]:
    """The members of each group as positions in the list of all classes. Raises UserError if one does not exist."""
    known = {name: i for i, name in enumerate(all_classes())}
    for label, members in groups.items():
        if not members:
            raise UserError(f"{where}: {label!r} has no members.")
        for member in members:
            if member not in known:
                near = {name.lower(): name for name in known}
                close = difflib.get_close_matches(member[:80].lower(), near, n=1)
                hint = f"did you mean {near[close[0]]!r}?" if close else f"{printable(CLASS_LIST)} lists them."
                raise UserError(f"{where}: AudioSet Strong has no class {bounds.shown(member)}; {hint}")
    return tuple(tuple(known[member] for member in members) for members in groups.values())


def _task(name: str, outputs: Groups) -> Task:
    known = MLPC_2025 if tuple(outputs) == MLPC_2025.classes else None
    return Task(known.name if known else f"AudioSet Strong by {name}", tuple(outputs),
                known.costs if known else (COSTS,) * len(outputs), TOKEN_SAMPLES / SAMPLE_RATE_HZ,
                frames_per_segment=10)


def _by_row(clip: Clip | Unreadable) -> Clip | Unreadable:
    """The clip with rows of 40 ms in place of frames; the last one of a recording holds its last sample."""
    if isinstance(clip, Unreadable):
        return clip
    rows = clip.features[spectral.SAMPLES].reshape(-1, TOKEN_SAMPLES)
    if (seconds := clip.seconds) is not None:
        rows = rows[: len(rows) - (-ceil_div(round(seconds * SAMPLE_RATE_HZ), TOKEN_SAMPLES) % ROWS_PER_FRAME)]
    return dataclasses.replace(clip, features={spectral.SAMPLES: rows})
