"""`python -m sedjax predict`: a trained model on the recordings of a directory -> submission CSV."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags
from flax import linen as nn
from jaxtyping import Bool, Float

from sedjax import checkpoint, decisions, grid, input_pipeline, models, parallel, steps, submission, workdir
from sedjax.commands import require_no_arguments
from sedjax.config import Config
from sedjax.layout import SPLITS, read_layout, read_splits
from sedjax.task import Task


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one recording.

    Attributes:
      frames: (T, C) probability of each class in each frame.
      segments: (S, C) pooled probability of each class in each segment.
      active: (S, C) which segments are above their class's threshold.
    """

    frames: Float[np.ndarray, "frame class"]
    segments: Float[np.ndarray, "segment class"]
    active: Bool[np.ndarray, "segment class"]


@dataclasses.dataclass(frozen=True)
class Detector:
    """A trained model, ready for recordings; it needs nothing but the workdir that it came from."""

    config: Config
    task: Task
    widths: dict[str, int]
    model: nn.Module
    variables: dict
    thresholds: np.ndarray
    step: int

    def predict(self, source: input_pipeline.Source) -> list[Prediction]:
        """The prediction for each recording of a source, in its order, however long it is."""
        step = functools.partial(steps.predict_step, pooling=self.config.decision.pooling, task=self.task)
        return [Prediction(found["frames"], found["segments"], found["segments"] > self.thresholds[None])
                for found in self._run(source, step)]

    def embed(self, source: input_pipeline.Source) -> list[Float[np.ndarray, "frame width"]]:
        """What the head of the model sees of each frame of each recording."""
        return [found["frames"] for found in self._run(source, steps.embed_step)]

    def _run(self, source: input_pipeline.Source, step: Callable) -> list[dict[str, np.ndarray]]:
        mesh = parallel.make_mesh()
        clips, plan = input_pipeline.evaluation_plan(source, self.config.data, mesh.size)
        mode = self.config.parallel
        compiled = parallel.compile_step(functools.partial(step, model=self.model), mesh, mode=mode, by_row=True)
        read = functools.partial(input_pipeline.read_evaluation_batch, source, clips, plan, self.model.features,
                                 self.config.data)
        variables = parallel.replicate(self.variables, mesh)
        by_clip: dict[int, dict[str, np.ndarray]] = {}
        batches = parallel.to_devices(input_pipeline.stream(read, 0, len(plan)), mesh, mode=mode)
        for ids, batch in zip(plan, batches):
            found = jax.device_get(compiled(variables, batch))
            for row, clip in enumerate(ids):
                length = int(clips.frames[clip])
                real = {"frames": length, "segments": grid.num_segments(length, self.task)}
                if clip >= 0:
                    by_clip[clip] = {name: value[row, : real[name]] for name, value in found.items()}
        pieces: list[list[dict[str, np.ndarray]]] = [[] for _ in source.lengths]
        for clip, recording in enumerate(clips.recording):
            pieces[recording].append(by_clip[clip])
        return [{name: np.concatenate([piece[name] for piece in parts]) for name in parts[0]} for parts in pieces]


def load(folder: str | os.PathLike, which: str = "best") -> Detector:
    """The detector that a training left in its workdir.

    Args:
      folder: the workdir.
      which: "best" (lowest validation cost), "last", or a step.

    Raises:
      UserError: it is no workdir, or has no such checkpoint.
    """
    config, task, features = workdir.read(folder)
    variables, progress, step = checkpoint.load_weights(folder, which)
    thresholds = progress.thresholds or decisions.candidates(config.decision, task)[0]
    widths = {key: entry["width"] for key, entry in features.items()}
    return Detector(config, task, widths, models.build_from(config, task), variables,
                    np.asarray(thresholds, np.float32), step)


def predict_directory(detector: Detector, path: str | os.PathLike, split: str | None = None) -> dict[str, Prediction]:
    """The predictions for the recordings of a directory in MLPC layout, by filename.

    Args:
      detector: from `load`.
      path: the directory, with or without labels, with the features that the model needs.
      split: only the recordings of this split; all if None.

    Raises:
      UserError: the directory is damaged, or of another task or feature width than the model.
    """
    layout = read_layout(path)
    if (layout.path / "costs.json").exists():
        detector.task.require_same(layout.task, where=str(layout.path / "costs.json"))
    if split:
        layout = dataclasses.replace(layout, filenames=read_splits(layout)[split])
    source = input_pipeline.Features.of(layout, detector.task, detector.model.features, detector.widths)
    return dict(zip(layout.filenames, detector.predict(source)))


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a training.", required=True)
    flags.DEFINE_string("source", None, "Directory in MLPC layout, with or without labels.", required=True)
    flags.DEFINE_string("output", None, "Submission CSV to write.", required=True)
    flags.DEFINE_enum("split", None, SPLITS, "Only the recordings of this split; all if not given.")
    flags.DEFINE_string("checkpoint", "best", "'best' (lowest validation cost), 'last', or a step.")
    parallel.define_flags()
    flags.adopt_module_key_flags(parallel)


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    parallel.start()
    options = flags.FLAGS
    detector = load(options.workdir, options.checkpoint)
    found = predict_directory(detector, options.source, options.split)
    if not parallel.is_first():
        return
    submission.write_submission(options.output, detector.task, {name: one.active for name, one in found.items()})
    print(f"Wrote {len(found):,} recordings, {sum(len(one.active) for one in found.values()):,} segments, to "
          f"{options.output}.")
