"""A trained model on the devices: clips of features in, probabilities or embeddings out."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import cast

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from sedjax.audio import spectral
from sedjax.audio.clips import Clip, Unreadable
from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.core import grid, parallel
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div
from sedjax.core.task import Task
from sedjax.data.batches import Batch, pad_clips
from sedjax.data.plan import padded_frames, require_whole_segments
from sedjax.models import registry
from sedjax.models.variables import example_inputs
from sedjax.scoring import decisions
from sedjax.training import checkpoint, workdir

EMBEDDINGS = "embeddings"
Outputs = dict[str, np.ndarray]  # `frames` and `segments` of a clip


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A checkpoint, ready for inference; it needs nothing but its workdir. It is an extractors.Extractor too.

    Attributes:
      workdir: run directory of the training.
      config, task, features: from sedjax.training.workdir.read.
      model, variables: network and its parameters at the checkpoint.
      thresholds: (C,) decision threshold of each class.
      step: training step of the checkpoint.
    """

    workdir: pathlib.Path
    config: Config
    task: Task
    features: dict[str, dict]
    model: nn.Module
    variables: dict
    thresholds: Float[np.ndarray, "class"]
    step: int

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.workdir)!r}, step={self.step}, name={self.config.model['name']!r})"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input features."""
        return self.model.inputs

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each feature by name."""
        return {key: entry["width"] for key, entry in self.features.items()}

    @property
    def max_frames(self) -> int:
        """Length limit of input clips."""
        return self.config.data.max_frames

    @functools.cached_property
    def embedding_version(self) -> str:
        """Identifies the weights, and the version of the spectral features, that determine the embeddings."""
        takes_spectral = any(key in spectral.SPECTRAL for key in self.inputs)
        version = f" of spectral features {SPECTRAL_VERSION}" if takes_spectral else ""
        return f"{self.config.model['name']} {fingerprint(self.variables)}{version}"

    @functools.cached_property
    def embedding_width(self) -> int:
        """Columns of the embeddings. Raises UserError if the model has none."""
        features, frame_mask = example_inputs(self.model, self.widths)
        batch = {"features": features, "frame_mask": frame_mask}
        try:
            return jax.eval_shape(functools.partial(embed_step, model=self.model), self.variables,
                                  batch)["frames"].shape[-1]
        except KeyError as error:
            raise UserError(f"The model {self.config.model['name']!r} in {self.workdir} has no embeddings.") from error

    def predict(self, stream: Generator[Clip | Unreadable]) -> Generator[tuple[Clip, Outputs] | Unreadable]:
        """Probabilities of each clip: `frames` (t, C) and, pooled, `segments` (s, C).

        Clips have at most max_frames, and all but the last of a recording exactly that many. Batches mix recordings;
        results come in input order. The stream is closed on every exit, so that no thread keeps reading.

        Raises UserError if the model outputs NaN.
        """
        return self._run(self._predict, stream)

    def embed(self, stream: Generator[Clip | Unreadable], dtype: type = np.float16) -> Generator[Clip | Unreadable]:
        """The clips, as for `predict`, with their `embeddings` (t, width): the last hidden layer, input of the head."""
        for item in self._run(self._embed, stream):
            yield item if isinstance(item, Unreadable) else with_embeddings(item[0], item[1]["frames"], dtype)

    # Cached between calls: compiling takes longer than most recordings.

    @functools.cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return parallel.make_mesh()

    @functools.cached_property
    def _variables(self) -> dict:
        return parallel.replicate(self.variables, self._mesh)

    @functools.cached_property
    def _predict(self) -> Callable:
        return self._compiled(predict_step, pooling=self.config.decision.pooling, task=self.task)

    @functools.cached_property
    def _embed(self) -> Callable:
        return self._compiled(embed_step)

    def _compiled(self, step: Callable, **options) -> Callable:
        return parallel.compile_step(functools.partial(step, model=self.model, **options), self._mesh,
                                     mode=self.config.parallel, by_row=True)

    def _run(self, step: Callable, stream: Generator[Clip | Unreadable]
             ) -> Generator[tuple[Clip, Outputs] | Unreadable]:
        require_whole_segments(self.config.data, self.task)
        size = ceil_div(self.config.data.eval_batch_size, self._mesh.size) * self._mesh.size
        running: deque[list[Clip | Unreadable]] = deque()

        def batches() -> Iterator[dict]:
            for group in _groups(stream, size):
                running.append(group)
                if clips := [item for item in group if isinstance(item, Clip)]:
                    yield self._batch(clips, size)

        with contextlib.closing(stream):
            for outputs in self._on_devices(step, batches()):
                row = 0
                for item in running.popleft():
                    if isinstance(item, Unreadable):
                        yield item
                    else:
                        yield item, self._unpadded(outputs, row, len(item))
                        row += 1
            for group in running:  # groups without a clip
                yield from (item for item in group if isinstance(item, Unreadable))

    def _batch(self, clips: list[Clip], size: int) -> dict:
        # Few sizes, so that few are compiled.
        per_device = ceil_div(len(clips), self._mesh.size)
        rows = min(self._mesh.size << (per_device - 1).bit_length(), size)
        inputs = [{key: clip.features[key] for key in self.inputs} for clip in clips]
        frames = padded_frames(max(map(len, clips)), self.config.data)
        own = parallel.local_rows(rows)
        features, _ = pad_clips([*inputs, *[None] * (rows - len(inputs))][own], frames, inputs[0])
        lengths = np.array([*map(len, clips), *[0] * (rows - len(clips))])[own]
        return {"features": features, "frame_mask": np.arange(frames) < lengths[:, None]}

    def _on_devices(self, step: Callable, batches: Iterable[dict]) -> Iterator[Outputs]:
        """The outputs of each batch, fetched while the devices work on the next one."""
        mode, waiting = self.config.parallel, None
        for batch in parallel.to_devices(batches, self._mesh, ahead=1, mode=mode):
            running = step(self._variables, batch)
            if waiting is not None:
                yield jax.device_get(waiting)
            waiting = running
        if waiting is not None:
            yield jax.device_get(waiting)

    def _unpadded(self, outputs: Outputs, row: int, frames: int) -> Outputs:
        lengths = {"frames": frames, "segments": grid.num_segments(frames, self.task)}
        outputs = {name: value[row, : lengths[name]] for name, value in outputs.items()}
        if not all(np.isfinite(value).all() for value in outputs.values()):
            raise UserError(f"The model in {self.workdir} outputs NaN or infinity at step {self.step}: choose another "
                            "--checkpoint, or train again with a smaller learning rate.")
        return outputs


def load_model(folder: str | os.PathLike, which: str | int = "best") -> TrainedModel:
    """Loads a trained model from its workdir.

    Args:
      folder: workdir of the training.
      which: "best" (lowest validation cost), "last", or a step.

    Raises:
      UserError: it is not a workdir, or the checkpoint is missing, damaged, from another model, or contains NaN.
    """
    with parallel.all_or_none():
        config, task, features = workdir.read(folder)
        checkpoint.require_some(folder)
        model = registry.build_from(config, task)
        widths = {key: entry["width"] for key, entry in features.items()}
        if missing := [key for key in model.inputs if key not in widths]:
            raise UserError(f"{pathlib.Path(folder) / 'features.json'} does not belong to this training: the "
                            f"model takes {missing[0]!r}, which is missing there.")
        shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, widths))
    variables, progress, step = checkpoint.load_weights(folder, which, shapes)
    if progress.task not in ("", task.digest):
        raise UserError(f"{pathlib.Path(folder) / 'task.json'} is not the task of the checkpoint of step {step}: its "
                        "classes, costs or grid were changed after the training.")
    thresholds = progress.thresholds or decisions.default(config.decision, task)
    return TrainedModel(pathlib.Path(folder), config, task, features, model, variables,
                        np.asarray(thresholds, np.float32), step)


def predict_step(variables: dict, batch: Batch, *, model: nn.Module, pooling: str, task: Task) -> dict[str, Array]:
    """Probabilities: `frames` (clip, frame, class) and `segments` (clip, segment, class)."""
    probabilities = jax.nn.sigmoid(cast(Array, model.apply(variables, batch["features"], batch["frame_mask"])))
    return {"frames": probabilities,
            "segments": decisions.pool_segments(probabilities, batch["frame_mask"], pooling, task)}


def embed_step(variables: dict, batch: Batch, *, model: nn.Module) -> dict[str, Array]:
    """`frames` (clip, frame, width): the input of the model's head."""
    _, collections = model.apply(variables, batch["features"], batch["frame_mask"], mutable=["intermediates"])
    return {"frames": cast(dict, collections)["intermediates"]["embeddings"][0]}


def _groups(stream: Iterable[Clip | Unreadable], size: int) -> Iterator[list[Clip | Unreadable]]:
    """Groups of `size` clips and the unreadable items between them."""
    group, clips = [], 0
    for item in stream:
        group.append(item)
        clips += isinstance(item, Clip)
        if clips == size:
            yield group
            group, clips = [], 0
    if group:
        yield group


def with_embeddings(clip: Clip, embeddings: np.ndarray, dtype: type) -> Clip | Unreadable:
    """The clip with `embeddings`, cast to `dtype`, in its features; it is unreadable if they are not finite then."""
    with np.errstate(over="ignore"):
        embeddings = embeddings.astype(dtype, copy=False)
    if np.isfinite(embeddings).all():
        return dataclasses.replace(clip, features={**clip.features, EMBEDDINGS: embeddings})
    return Unreadable(clip.number, clip.recording, UserError(
        f"The embeddings contain NaN, or values beyond the range of {embeddings.dtype}: use another extractor."))


def fingerprint(variables) -> str:
    """A CRC-32 checksum of variables, in hexadecimal."""
    total = 0
    for leaf in jax.tree.leaves(variables):
        total = zlib.crc32(np.ascontiguousarray(leaf).data, total)
    return f"{total:08x}"
