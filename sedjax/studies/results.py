"""Trained models and their results on a split, cached in their workdirs."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sedjax.audio.clips import Clip, ahead, recut
from sedjax.core import files, parallel
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.data import identity
from sedjax.data.records import Records, open_records, require_features
from sedjax.inference.detector import detections
from sedjax.inference.trained import TrainedModel, load_model
from sedjax.models import registry
from sedjax.models.variables import count_parameters
from sedjax.scoring import field_metrics, metrics
from sedjax.scoring.evaluator import Evaluator
from sedjax.scoring.event_rules import EventRules, Value, changed, default_rules
from sedjax.scoring.events import Event, frame_events
from sedjax.scoring.frame_scores import FrameScores, frame_times
from sedjax.training import workdir
from sedjax.training.metric_writer import read_metrics

log = logging.getLogger("sedjax")


def evaluate_workdir(folder: str | os.PathLike, split: str, data: str | None = None, which: str | int = "best",
                     more: Collection[str] = (), **changes: Value | None) -> dict:
    """Evaluates a trained model on a split.

    Args:
      folder: workdir of the model.
      split: "train", "validation" or "test".
      data: records to evaluate on; those of the training if None.
      which: checkpoint, as for inference.trained.load_model.
      more: metrics besides the cost, as for field_metrics.compute.
      changes: changes of the rules for events, as for event_rules.changed; a threshold applies to the cost too.

    Returns:
      A dict that can be written as JSON: `step` of the checkpoint, segment `counts` (recording, class, outcome), the
      fields of metrics.Score, `frames` (from metrics.detection_figures), `records` with their `path` and
      fingerprints (`identity`), and `metrics` if there are `more`.

    Raises:
      UserError: it is not a workdir, the checkpoint is missing, the records have another task or lack a feature, or a
        probability is not finite.
    """
    trained = load_model(folder, which)
    config, task = trained.config, trained.task
    with parallel.all_or_none():
        source = open_records(data or config.data.path, split)
        task.require_same(source.task, where=f"the records in {source.path}")
        require_features({key: entry["width"] for key, entry in source.features.items()},
                         trained.inputs, trained.widths, where=f"The dataset {source.path}")
        identity.require_same_extractors(trained.features, source.features, source.path, str(folder))
        records = {"path": source.path, "identity": source.identity(trained.inputs)}
    if not data and (differing := identity.difference(trained.features, source.metadata.entries)):
        log.warning("The records in %s differ from those that %s was trained on, in: %s.", source.path, folder,
                    differing)
    mesh, rules = parallel.make_mesh(), changed(default_rules(trained.thresholds), task, **changes)
    evaluate = Evaluator(trained.model, config, task, source, mesh)
    evaluation = evaluate(parallel.replicate(trained.variables, mesh), rules.thresholds[None])
    if len(evaluation.non_finite):
        raise UserError(f"The checkpoint of step {trained.step} in {folder} gives NaN or infinite probabilities for "
                        f"{len(evaluation.non_finite)} of {len(source.lengths)} recordings, the first of them "
                        f"{source.filenames[evaluation.non_finite[0]]}: choose another with --checkpoint, or check the "
                        "features of that recording.")
    score = metrics.score(evaluation.segments[:, 0], task)
    frames = metrics.detection_figures(evaluation.frames[:, 0].sum(0), task)
    result = {"step": trained.step, "counts": evaluation.segments[:, 0].tolist(), **score.to_dict(), "frames": frames,
              "records": records}
    return result | {"metrics": _field_metrics(more, trained, source, rules)} if more else result


def _field_metrics(names: Collection[str], trained: TrainedModel, source: Records,
                   rules: EventRules) -> dict[str, field_metrics.Metric]:
    """Metrics of the events and frame probabilities that `predict` would give for the recordings of a split."""
    task, lengths = source.task, source.lengths.tolist()

    def clips() -> Iterator[Clip]:
        for number, (filename, frames) in enumerate(zip(source.filenames, lengths)):
            features, _ = source.read(number, trained.inputs)
            # A model without inputs takes one empty row per frame.
            yield Clip(number, filename, features or {"": np.zeros((frames, 0), np.float32)},
                       frames * task.frame_seconds)

    truth = {filename: frame_events(source.read(number, ())[1] > 0, task)
             for number, filename in enumerate(source.filenames)}
    predicted, scores = {}, {}
    for detection in detections(trained, ahead(recut(clips(), trained.max_frames)), rules):
        predicted[detection.recording] = [Event(*event[:3]) for event in detection.events]
        scores[detection.recording] = FrameScores(frame_times(len(detection.frames), task.frame_seconds),
                                                  detection.frames)
    return field_metrics.compute(names, truth, task, predicted, scores)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model: its training history, and its result on one split.

    Attributes:
      name: name of its folder.
      model: name of the model.
      task: task of the training.
      parameters: number of trainable parameters.
      seconds: training time; None if metrics.jsonl has no `seconds` (since the previous entry).
      steps, epochs: time of each evaluation on the validation split.
      validation_cost, validation_loss: cost per minute and loss per frame of each evaluation.
      train_loss: mean over the steps since the previous evaluation, NaN if there are none.
      best: index of the evaluation of the best checkpoint.
      counts: segment counts on the split.
      cost, class_costs: cost per minute on the split, and by class.
      recordings: fingerprint of the recordings and labels of the split; "" if unknown.
    """

    name: str
    model: str
    task: Task
    parameters: int
    seconds: float | None
    steps: Int[np.ndarray, "evaluation"]
    epochs: Float[np.ndarray, "evaluation"]
    validation_cost: Float[np.ndarray, "evaluation"]
    validation_loss: Float[np.ndarray, "evaluation"]
    train_loss: Float[np.ndarray, "evaluation"]
    best: int
    counts: Int[np.ndarray, "recording class outcome"]
    cost: float
    class_costs: dict[str, float]
    recordings: str = ""

    @property
    def naive(self) -> bool:
        return self.model == "naive"


def collect(folders: Sequence[str | os.PathLike], split: str) -> list[Run]:
    """The runs in workdirs of one task, lowest cost first; evaluates those without a result on the split.

    Raises UserError if a folder is not a workdir, has no evaluation yet, or has another task, or evaluation fails.
    """
    paths = [pathlib.Path(folder) for folder in folders]
    names = files.distinct_names(paths)
    setups = [workdir.read(path) for path in paths]
    for path, (_, task, _) in zip(paths, setups):
        setups[0][1].require_same(task, where=f"the workdir {path}")
    histories = [read_history(path) for path in paths]  # fails before the first evaluation, which takes minutes
    runs = []
    for path, name, history, (config, task, features) in zip(paths, names, histories, setups):
        result = result_of(path, split, int(history["steps"][np.argmin(history["validation_cost"])]))
        history = read_history(path)  # again: the training may have continued meanwhile
        widths = {key: entry["width"] for key, entry in features.items()}
        runs.append(Run(
            name=name, model=config.model["name"], task=task, **history,
            parameters=count_parameters(registry.build_from(config, task), widths),
            best=int(np.flatnonzero(history["steps"] == result["step"])[-1]), counts=np.array(result["counts"]),
            cost=result["cost"], class_costs={label: figures["cost"] for label, figures in result["classes"].items()},
            recordings=result["records"]["identity"].get(identity.LABELS, "")))
    return sorted(runs, key=lambda run: run.cost)


def result_of(folder: pathlib.Path, split: str, step: int) -> dict:
    """The result of evaluate_workdir for the best checkpoint and the current records.

    It is cached in the workdir if that is writable, and recomputed once anything it depends on has changed.

    Raises UserError as evaluate_workdir does.
    """
    path = folder / "report" / f"evaluation_{split}.json"
    cached: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # missing, or in another format
        cached = files.read_json(path, dict[str, Any])
    # An evaluation, what it depends on, and the checksum of both.
    result, of = cached.get("result"), cached.get("of")
    if cached.get("digest") == _digest(of, result) and of == _dependencies(folder, split, step):
        return result
    log.info("Evaluating %s on the %s split.", folder, split)
    result = evaluate_workdir(folder, split)
    of = {"step": result["step"], "checkpoint": _checkpoint_identity(folder, result["step"]),
          "records": result["records"]["identity"]}
    try:
        files.make_folder(path.parent)
        files.write_json(path, {"of": of, "digest": _digest(of, result), "result": result}, ours=True)
    except UserError as error:
        log.warning("This evaluation cannot be cached: %s", error)
    return result


def _dependencies(folder: pathlib.Path, split: str, step: int) -> dict[str, Any]:
    """The checkpoint and records that the evaluation of a step depends on; None where unknown.

    If the records no longer exist, those of the training are assumed.

    Raises UserError if the records are damaged.
    """
    config, _, features = workdir.read(folder)
    keys = [key for key in features if key != identity.LABELS]
    records = (identity.read_metadata(config.data.path).identity(split, keys)
               if identity.has_records(config.data.path) else identity.of_split(features, split, keys))
    return {"step": step, "checkpoint": _checkpoint_identity(folder, step), "records": records}


def _checkpoint_identity(folder: pathlib.Path, step: int) -> str | None:
    """Hash of the progress at a step, which has the checksums of the weights; None if there is no checkpoint."""
    try:
        with files.open_file(folder / "checkpoints" / str(step) / "progress" / "metadata") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except UserError:
        return None


def _digest(of: Any, result: Any) -> str:
    return hashlib.blake2b(json.dumps([of, result]).encode(), digest_size=16).hexdigest()


def read_history(folder: pathlib.Path) -> dict:
    """The fields of Run from metrics.jsonl: seconds, and the series over the evaluations.

    Raises UserError if there is no evaluation yet.
    """
    entries = read_metrics(folder)
    evaluations = [entry for entry in entries if "validation_cost" in entry]
    if not evaluations:
        raise UserError(f"The training in {folder} has no validation cost yet: let it reach its first evaluation.")
    series = {name: np.array([entry[key] for entry in evaluations], kind) for name, key, kind in (
        ("steps", "step", int), ("epochs", "epoch", float), ("validation_cost", "validation_cost", float),
        ("validation_loss", "validation_loss", float))}
    logged = [entry for entry in entries if "loss" in entry]
    ends, losses = (np.array([entry[key] for entry in logged], float) for key in ("step", "loss"))
    weights = np.diff(ends, prepend=0)  # an entry is the mean over the steps since the previous one
    train_loss = []
    for start, end in itertools.pairwise([0, *series["steps"]]):
        since = (ends > start) & (ends <= end)
        train_loss.append(np.average(losses[since], weights=weights[since]) if since.any() else np.nan)
    seconds = [entry["seconds"] for entry in entries if "seconds" in entry]
    return {**series, "train_loss": np.array(train_loss), "seconds": math.fsum(seconds) if seconds else None}


def same_recordings(runs: Sequence[Run]) -> bool:
    """Whether runs were evaluated on the same recordings and labels, as far as known."""
    known = {run.recordings for run in runs} - {""}
    return len({len(run.counts) for run in runs}) == 1 and len(known) <= 1
