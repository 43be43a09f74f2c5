"""A trained model, ready for recordings."""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from sedjax import audio, checkpoint, decisions, grid, input_pipeline, models, parallel, steps, workdir
from sedjax.clips import Clip
from sedjax.config import Config
from sedjax.detection import Detection
from sedjax.errors import UserError
from sedjax.steps import Batch
from sedjax.task import Task

EMBEDDINGS = "embeddings"
Found = dict[str, np.ndarray]  # `frames` and `segments` of clips or of one


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """A trained model; it needs nothing but its workdir, and the extractor of the embeddings that it may take.

        for onset, offset, label, score in detector("street.mp3"):

    Attributes:
      workdir: of the training.
      config, task, features: as sedjax.workdir.read gives them.
      model, variables: of the checkpoint.
      thresholds: (C,) above which a probability counts.
      step: of the checkpoint.
      embeddings_from: where the extractor lies now, if not where the workdir says.
      takers: real paths of the workdirs whose models take the embeddings of this one, each those of the next.
    """

    workdir: pathlib.Path
    config: Config
    task: Task
    features: dict[str, dict]
    model: nn.Module
    variables: dict
    thresholds: Float[np.ndarray, "class"]
    step: int
    embeddings_from: str | os.PathLike | None = None
    takers: tuple[str, ...] = ()

    def __call__(self, recording: audio.Recording, sample_rate_hz: audio.SampleRate | None = None) -> Detection:
        """What it hears in a file, or in an array of samples with their rate, as sedjax.audio reads them.

        Raises UserError if the recording cannot be read, or the model takes what cannot be computed.
        """
        (found,) = self.detect([recording], sample_rate_hz)
        return found

    def detect(self, recordings: Iterable[audio.Recording], sample_rate_hz: audio.SampleRate | None = None, *,
               keep: tuple[str, ...] = (), bad: dict[int, str] | None = None) -> Iterator[Detection]:
        """What it hears in each recording, in their order, as they are done.

        Recordings of any length are read in blocks, ahead of the device, and their clips fill batches together.

        Args:
          recordings: files, or arrays of samples.
          sample_rate_hz: of the arrays.
          keep: spectral features to be had in Detection.features.
          bad: gets the number of each recording that cannot be read, and why; without, the first one raises.

        Raises:
          UserError: a recording cannot be read, the model takes what cannot be computed or gives NaN, or `keep` names
            something else.
        """
        from sedjax import extractors  # which knows detectors, as the next
        from sedjax import recordings as recordings_lib

        if isinstance(recordings, str | os.PathLike | np.ndarray):
            raise UserError("Detector.detect takes a list of recordings: call the detector itself with a single one.")
        if unknown := [key for key in keep if key not in extractors.SPECTRAL]:
            raise UserError(f"keep = {unknown[0]!r} is not a spectral feature; they are {list(extractors.SPECTRAL)}.")
        recordings = list(recordings)
        read = functools.partial(recordings_lib.read, recordings, sample_rate_hz, keep, bad)
        clips = recordings_lib.clips(self, read)  # now: a model that cannot do it is an error before anything is read
        return self._detections(recordings, clips)

    def _detections(self, recordings: list[audio.Recording], clips: Iterator[Clip]) -> Iterator[Detection]:
        number, parts = None, []
        for clip, found in self.run(clips, self._predict):
            if clip.recording != number:  # what was there of one that turned out to be damaged is dropped
                number, parts = clip.recording, []
            parts.append(found)
            if clip.is_last:
                recording = recordings[clip.recording]
                name = os.fspath(recording) if isinstance(recording, str | os.PathLike) else ""
                yield Detection(name, self.task, self.thresholds, clip.seconds, **_joined(parts), features=clip.kept)

    def predict(self, source: input_pipeline.Source) -> list[Detection]:
        """What it hears in each recording of a source, in its order, however long it is."""
        return [Detection("", self.task, self.thresholds, len(found["frames"]) * self.task.frame_seconds, **found)
                for found in self._run_source(source, self._predict)]

    def embed(self, source: input_pipeline.Source) -> list[Float[np.ndarray, "frame width"]]:
        """What the head of the model sees of each frame of each recording."""
        return [found["frames"] for found in self._run_source(source, self._embed)]

    def embed_clips(self, clips: Generator[Clip]) -> Iterator[tuple[Clip, Float[np.ndarray, "frame width"]]]:
        """The same of each clip of a stream, in its order."""
        return ((clip, found["frames"]) for clip, found in self.run(clips, self._embed))

    @property
    def widths(self) -> dict[str, int]:
        """Of each feature."""
        return {key: entry["width"] for key, entry in self.features.items()}

    @functools.cached_property
    def embedding_width(self) -> int:
        """Columns of what `embed` gives. Raises UserError if the model has no embeddings."""
        features, frame_mask = models.example_inputs(self.model, self.widths)
        batch = {"features": features, "frame_mask": frame_mask}
        try:
            return jax.eval_shape(functools.partial(steps.embed_step, model=self.model), self.variables,
                                  batch)["frames"].shape[-1]
        except KeyError as error:
            raise UserError(f"The model {self.config.model['name']!r} in {self.workdir} has no embeddings.") from error

    @functools.cached_property
    def extractor(self):
        """The sedjax.extractors.Extractor of the embeddings that the model takes; UserError if it is not there."""
        from sedjax import recordings  # which knows detectors

        return recordings.extractor_of(self)

    # Kept between calls: compiling takes longer than most recordings.

    @functools.cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return parallel.make_mesh()

    @functools.cached_property
    def _variables(self) -> dict:
        return parallel.replicate(self.variables, self._mesh)

    @functools.cached_property
    def _predict(self) -> Callable:
        return self._compiled(steps.predict_step, pooling=self.config.decision.pooling, task=self.task)

    @functools.cached_property
    def _embed(self) -> Callable:
        return self._compiled(steps.embed_step)

    def _compiled(self, step: Callable, **options) -> Callable:
        return parallel.compile_step(functools.partial(step, model=self.model, **options), self._mesh,
                                     mode=self.config.parallel, by_row=True)

    def _run_source(self, source: input_pipeline.Source, step: Callable) -> list[Found]:
        clips, plan = input_pipeline.evaluation_plan(source, self.config.data, self._mesh.size)
        read = functools.partial(input_pipeline.read_evaluation_batch, source, clips, plan, self.model.features,
                                 self.config.data)
        by_clip: dict[int, Found] = {}
        for ids, found in zip(plan, self._on_devices(step, input_pipeline.stream(read, 0, len(plan)))):
            by_clip |= {clip: self._real(found, row, int(clips.frames[clip]))
                        for row, clip in enumerate(ids) if clip >= 0}
        parts: list[list[Found]] = [[] for _ in source.lengths]
        for clip, recording in enumerate(clips.recording):
            parts[recording].append(by_clip[clip])
        return [_joined(each) for each in parts]

    def run(self, clips: Generator[Clip], step: Callable) -> Iterator[tuple[Clip, Found]]:
        """What a compiled step makes of clips of max_frames at most, in their order; they fill batches together.

        `clips` is closed however this ends, so that no thread reads on. Raises UserError if the model gives NaN.
        """
        size = -(-self.config.data.eval_batch_size // self._mesh.size) * self._mesh.size
        running: deque[list[Clip]] = deque()

        def batches() -> Iterator[Batch]:
            for group in _groups(clips, size):
                running.append(group)
                yield self._batch(group, size)

        with contextlib.closing(clips):
            for found in self._on_devices(step, batches()):
                yield from ((clip, self._real(found, row, len(clip))) for row, clip in enumerate(running.popleft()))

    def _batch(self, group: list[Clip], size: int) -> Batch:
        # Few sizes, so that few are compiled.
        each = -(-len(group) // self._mesh.size)
        rows = min(self._mesh.size << (each - 1).bit_length(), size)
        source = input_pipeline.InMemory(self.task, [clip.features for clip in group])
        ids = np.pad(np.arange(len(group)), (0, rows - len(group)), constant_values=-1)
        return input_pipeline.read_batch(source, input_pipeline.cut(source.lengths, self.config.data, self.task), ids,
                                         self.model.features, self.config.data, parallel.local_rows(rows))

    def _on_devices(self, step: Callable, batches: Iterable[Batch]) -> Iterator[Found]:
        """The results of each batch, while the devices work on the next one."""
        mode, waiting = self.config.parallel, None
        for batch in parallel.to_devices(batches, self._mesh, ahead=1, mode=mode):
            running = step(self._variables, batch)
            if waiting is not None:
                yield jax.device_get(waiting)
            waiting = running
        if waiting is not None:
            yield jax.device_get(waiting)

    def _real(self, found: Found, row: int, frames: int) -> Found:
        real = {"frames": frames, "segments": grid.num_segments(frames, self.task)}
        found = {name: value[row, : real[name]] for name, value in found.items()}
        if not all(np.isfinite(value).all() for value in found.values()):
            raise UserError(f"The model in {self.workdir} gives NaN or infinity at step {self.step}: choose another "
                            "--checkpoint, or train again with a smaller learning rate.")
        return found


def load(folder: str | os.PathLike, which: str | int = "best",
         embeddings_from: str | os.PathLike | None = None) -> Detector:
    """The detector that a training left in its workdir.

    Args:
      folder: the workdir.
      which: "best" (lowest validation cost), "last", or a step.
      embeddings_from: the extractor of the embeddings that the model takes, if it no longer lies where the workdir
        says, or the workdir does not say: a workdir, or the npz file of an ATST-Frame.

    Raises:
      UserError: it is not a workdir, has no such checkpoint, or takes no embeddings although an extractor is given; or
        the checkpoint is damaged, of another model, or holds NaN.
    """
    with parallel.together():
        config, task, features = workdir.read(folder)
        checkpoint.require_some(folder)
        model = models.build_from(config, task)
        if embeddings_from and EMBEDDINGS not in model.features:
            raise UserError(f"The model in {folder} takes no embeddings: leave out --embeddings_from="
                            f"{embeddings_from}.")
        widths = {key: entry["width"] for key, entry in features.items()}
        if missing := [key for key in model.features if key not in widths]:
            raise UserError(f"{pathlib.Path(folder) / 'features.json'} is not of this training: the model takes "
                            f"{missing[0]!r}, which is missing there.")
        shapes = jax.eval_shape(model.init, jax.random.key(0), *models.example_inputs(model, widths))
    variables, progress, step = checkpoint.load_weights(folder, which, shapes)
    if progress.task not in ("", task.digest):
        raise UserError(f"{pathlib.Path(folder) / 'task.json'} is not the task of the checkpoint of step {step}: its "
                        "classes, costs or grid were changed after the training.")
    thresholds = progress.thresholds or decisions.default(config.decision, task)
    return Detector(pathlib.Path(folder), config, task, features, model, variables,
                    np.asarray(thresholds, np.float32), step, embeddings_from)


def _groups(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    clips = iter(clips)
    while group := list(itertools.islice(clips, size)):
        yield group


def _joined(parts: list[Found]) -> Found:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
