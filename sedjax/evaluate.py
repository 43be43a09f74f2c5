"""`python -m sedjax evaluate`: cost per minute and the figures of each class on one split."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags
from flax import linen as nn
from jax.sharding import Mesh

from sedjax import files, identity, input_pipeline, losses, metrics, parallel, placement, preemption, steps
from sedjax.commands import require_no_arguments
from sedjax.config import Config
from sedjax.detector import load
from sedjax.errors import UserError
from sedjax.score import format_score
from sedjax.task import Task

log = logging.getLogger("sedjax")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Counts of each recording of a split, for each candidate threshold, and the mean loss per frame.

    Attributes:
      segments, frames: (recording, candidate, class, outcome) int64; `frames` is None unless asked for.
      loss: mean per real frame.
      non_finite: recordings of which a probability or the loss is NaN or infinite; their counts mean nothing.
    """

    segments: np.ndarray
    frames: np.ndarray | None
    loss: float
    non_finite: np.ndarray


class Evaluator:
    """The evaluation of a split, in which every recording counts exactly once, whatever the batch size and the devices.

    Attributes:
      clips: of the split.
      plan: (batches, batch_size), the clips of each batch, -1 for padding.
      eval_step: steps.eval_step of this evaluation: a function of (variables, batch, thresholds).
      step: the same as the devices run it: compiled, and a function of (variables, *inputs, thresholds).
    """

    def __init__(self, model: nn.Module, config: Config, task: Task, source: input_pipeline.Source, mesh: Mesh,
                 resident: bool = False, frame_counts: bool = True):
        """Puts the split into device memory if it is to be `resident` between evaluations."""
        self.clips, self.plan = input_pipeline.evaluation_plan(source, config.data, mesh.size)
        self.eval_step = step = functools.partial(
            steps.eval_step, model=model, weights=losses.class_weights(config.loss, task),
            pooling=config.decision.pooling, task=task, frame_counts=frame_counts)
        self._model, self._config, self._source, self._mesh = model, config, source, mesh
        self._split = None
        if resident:
            self._split = placement.put(source, self.clips, model.features, config.data, mesh, config.parallel)
            self._lengths = placement.lengths(self.clips, config.data)
            step = placement.on_clips(step, self._lengths, mesh)
        self.step = parallel.compile_step(step, mesh, mode=config.parallel, by_row=True)

    def read(self, number: int) -> steps.Batch:
        """This process's share of batch `number`."""
        return input_pipeline.read_evaluation_batch(self._source, self.clips, self.plan, self._model.features,
                                                    self._config.data, number)

    def inputs(self, first: int, last: int) -> Iterator[tuple]:
        """What `step` takes between variables and thresholds for the batches `first` to `last` - 1."""
        if self._split is not None:
            return ((self._split, *placement.choose(ids, self.clips, self._config.data, self._lengths))
                    for ids in self.plan[first:last])
        batches = input_pipeline.stream(self.read, first, last)
        return ((batch,) for batch in parallel.to_devices(batches, self._mesh, mode=self._config.parallel))

    def __call__(self, variables: dict, thresholds: np.ndarray, stop: preemption.Stop | None = None) -> Evaluation:
        """Evaluates at thresholds (candidate, class).

        Raises preemption.Stopped between two batches once it is asked to `stop`.
        """
        counts = []
        for inputs in self.inputs(0, len(self.plan)):
            if stop is not None and stop.agreed():
                raise preemption.Stopped
            counts.append(self.step(variables, *inputs, thresholds))
            counts[-2:-1] = jax.device_get(counts[-2:-1])  # one batch late, so that a stop waits for two at most
        found = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(counts))
        ids = self.plan.ravel()
        by_clip = {name: value[ids >= 0] for name, value in found.items()}
        recording = self.clips.recording[ids[ids >= 0]]

        def by_recording(counts: np.ndarray) -> np.ndarray:
            total = np.zeros((len(self._source.lengths), *counts.shape[1:]), np.int64)
            np.add.at(total, recording, counts)
            return total

        return Evaluation(by_recording(by_clip["segments"]),
                          by_recording(by_clip["frames"]) if "frames" in by_clip else None,
                          float(by_clip["loss"].sum(dtype=np.float64) / self.clips.frames.sum()),
                          np.unique(recording[(by_clip["non_finite"] > 0) | ~np.isfinite(by_clip["loss"])]))


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a training.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which recordings.")
    flags.DEFINE_string("data", None, "Records to evaluate on; those of the training if not given.")
    flags.DEFINE_string("checkpoint", "best", "'best' (lowest validation cost), 'last', or a step.")
    flags.DEFINE_string("json", None, "Write the result to this file too.")
    parallel.define_flags()
    flags.adopt_module_key_flags(parallel)


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    parallel.start()
    options = flags.FLAGS
    folder = pathlib.Path(options.workdir)
    if options.json:
        files.require_writable(options.json)
    result = evaluate_workdir(folder, options.split, options.data, options.checkpoint)
    if not parallel.is_first():
        return
    step, recordings = result.pop("step"), len(result.pop("counts"))
    score = metrics.Score(result["cost"], result["interval"], result["classes"])
    print(f"{folder}, checkpoint of step {step}, {options.split} split of {result['records']['path']}, "
          f"{recordings} recordings\n")
    print(format_score(score))
    print("\nFrames:\n" + format_figures(result["frames"]))
    if options.json:
        files.write_json(options.json, result)


def evaluate_workdir(folder: str | os.PathLike, split: str, data: str | None = None,
                     which: str | int = "best") -> dict:
    """The result of a trained model on a split.

    Args:
      folder: the workdir.
      split: "train", "validation" or "test".
      data: records to evaluate on; those of the training if None.
      which: the checkpoint, as for detector.load.

    Returns:
      `step` of the checkpoint, `counts` of segments (recording, class, outcome), the fields of metrics.Score,
      `frames`: the figures of metrics.detection_figures, and `records`: their `path`, and what tells them from others
      (`identity`). It can be written as JSON.

    Raises:
      UserError: it is not a workdir, has no such checkpoint, the records are of another task or lack a feature, or a
        probability is not finite.
    """
    detector = load(folder, which)
    config, task = detector.config, detector.task
    with parallel.together():
        source = input_pipeline.open_records(data or config.data.path, split)
        task.require_same(source.task, where=f"the records in {source.path}")
        input_pipeline.require_features({key: entry["width"] for key, entry in source.features.items()},
                                        detector.model.features, detector.widths, where=f"The dataset {source.path}")
        identity.require_same_extractors(detector.features, source.features, source.path, str(folder))
        records = {"path": source.path, "identity": source.identity(detector.model.features)}
    if not data and (differing := identity.difference(detector.features, source.metadata.entries)):
        log.warning("The records in %s are not those that %s was trained on: the %s differ.", source.path, folder,
                    differing)
    mesh = parallel.make_mesh()
    evaluate = Evaluator(detector.model, config, task, source, mesh)
    evaluation = evaluate(parallel.replicate(detector.variables, mesh), detector.thresholds[None])
    if len(evaluation.non_finite):
        raise UserError(f"The checkpoint of step {detector.step} in {folder} gives NaN or infinite probabilities for "
                        f"{len(evaluation.non_finite)} of {len(source.lengths)} recordings, the first of them "
                        f"{source.filenames[evaluation.non_finite[0]]}: choose another with --checkpoint, or check the "
                        "features of that recording.")
    score = metrics.score(evaluation.segments[:, 0], task)
    frames = metrics.detection_figures(evaluation.frames[:, 0].sum(0), task)
    return {"step": detector.step, "counts": evaluation.segments[:, 0].tolist(), **score.to_dict(), "frames": frames,
            "records": records}


def format_figures(frames: dict[str, dict[str, float | None]]) -> str:
    """The figures of each class as a table, then their mean over the classes that have them."""
    names = list(next(iter(frames.values())))
    means = {name: [row[name] for row in frames.values() if row[name] is not None] for name in names}
    rows = {**frames, "mean": {name: float(np.mean(values)) if values else None for name, values in means.items()}}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name.replace('_', ' '):>19}" for name in names)]
    for label, row in rows.items():
        lines.append(f"{label:{width}}" + "".join("                  -" if row[name] is None else f"{row[name]:19.3f}"
                                                  for name in names))
    return "\n".join(lines)
