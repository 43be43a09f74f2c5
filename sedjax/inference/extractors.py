"""Extractors: frozen models that embed recordings, one row per frame of 120 ms."""

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import pathlib
from collections.abc import Generator, Iterable, Iterator, Sequence

import jax
import numpy as np

from sedjax.audio import reader, spectral
from sedjax.audio.clips import Clip, Unreadable, ahead, recut
from sedjax.core import grid, parallel, task
from sedjax.core.errors import UserError
from sedjax.data.records import require_features
from sedjax.inference.trained import EMBEDDINGS, TrainedModel, fingerprint, load_model, with_embeddings
from sedjax.models import atst_frame


@dataclasses.dataclass(frozen=True)
class AtstExtractor:
    """ATST-Frame: windows of 10 s on the frame grid, 40 ms tokens averaged into frames by absolute time.

    The last frame of a recording is padded with silence, as in records of audio, so that a model with this encoder
    inside (models.atst_detector) gets the same input.

    Attributes:
      model, weights: encoder and its weights.
      hop_samples: distance between window starts, a multiple of a frame; overlapping windows are averaged.
      batch_size: windows per batch, from one or several recordings.
    """

    model: atst_frame.AtstFrame
    weights: dict
    hop_samples: int
    batch_size: int = 4
    inputs: tuple[str, ...] = (spectral.SAMPLES,)
    max_frames: int = 250

    @functools.cached_property
    def embedding_version(self) -> str:
        return f"atst_frame {fingerprint(self.weights)} hop {self.hop_samples} dropped {self.model.drop_layers}"

    @property
    def embedding_width(self) -> int:
        return self.model.width

    def embed(self, stream: Generator[Clip | Unreadable], dtype: type = np.float16) -> Generator[Clip | Unreadable]:
        """Each recording as one clip."""
        with contextlib.closing(stream):
            for _, items in itertools.groupby(self._tokens(self._windows(stream)), key=operator.itemgetter(0)):
                yield self._stitched(items, dtype)

    def _windows(self, stream: Iterable[Clip | Unreadable]
                 ) -> Iterator[tuple[int, np.ndarray | Clip | Unreadable, int]]:
        """Yields (recording number, samples of a window, how many of them are real).

        After its windows, each recording yields (number, clip of its other features or Unreadable, 0).
        """
        for number, items in itertools.groupby(stream, key=operator.attrgetter("number")):
            read: list[Clip | Unreadable] = []  # clips without their samples
            for samples, real in reader.windows(_sound(items, read), atst_frame.WINDOW_SAMPLES, self.hop_samples):
                if real:
                    yield number, samples, real
            end = read[-1]
            if isinstance(end, Clip):
                parts = [clip.features for clip in read if isinstance(clip, Clip)]
                end = dataclasses.replace(end, features={key: np.concatenate([part[key] for part in parts])
                                                         for key in end.features})
            yield number, end, 0

    def _tokens(self, windows: Iterator[tuple[int, np.ndarray | Clip | Unreadable, int]]
                ) -> Iterator[tuple[int, np.ndarray | Clip | Unreadable]]:
        """Replaces the samples of each window by the tokens that have real samples; passes on the final items."""
        while batch := list(itertools.islice(windows, self.batch_size)):
            sounds = [item for _, item, _ in batch if isinstance(item, np.ndarray)]
            encoded = iter(self._encoded(sounds) if sounds else ())
            for number, item, real in batch:
                is_sound = isinstance(item, np.ndarray)
                yield number, next(encoded)[: real // atst_frame.TOKEN_SAMPLES] if is_sound else item

    def _encoded(self, sounds: list[np.ndarray]) -> np.ndarray:
        # Few batch sizes, so that few are compiled.
        size = min(1 << (len(sounds) - 1).bit_length(), self.batch_size)
        samples = np.zeros((size, atst_frame.WINDOW_SAMPLES), np.float32)
        samples[: len(sounds)] = sounds
        return np.asarray(_encode(self.model, self.weights, samples))

    def _stitched(self, items: Iterator[tuple[int, np.ndarray | Clip | Unreadable]],
                  dtype: type) -> Clip | Unreadable:
        ends: list[Clip | Unreadable] = []  # the final item

        def tokens() -> Iterator[np.ndarray]:
            for _, item in items:
                if isinstance(item, np.ndarray):
                    yield item
                else:
                    ends.append(item)

        with np.errstate(over="ignore"):  # with_embeddings rejects infinity
            parts = [grid.mean_by_group(rows, atst_frame.TOKENS_PER_FRAME).astype(dtype, copy=False)
                     for rows in grid.stitch(tokens(), self.hop_samples // atst_frame.TOKEN_SAMPLES)]
        (end,) = ends
        return with_embeddings(end, np.concatenate(parts), dtype) if isinstance(end, Clip) else end


def _sound(clips: Iterable[Clip | Unreadable], read: list[Clip | Unreadable]) -> Iterator[np.ndarray]:
    """The samples of a recording; its clips, without their samples, are appended to `read`."""
    for clip in clips:
        if isinstance(clip, Unreadable):
            read.append(clip)
            return
        features = {key: value for key, value in clip.features.items() if key != spectral.SAMPLES}
        read.append(dataclasses.replace(clip, features=features))
        yield clip.features[spectral.SAMPLES].ravel()


_encode = jax.jit(atst_frame.encode, static_argnums=0)


# Frozen models that embed recordings. Common to them are `inputs` (names from spectral.SPECTRAL and spectral.SOUND),
# `max_frames` of their input clips, `embedding_width`, `embedding_version`, which identifies all that determines the
# embeddings, and `embed`, which adds `embeddings` to the clips of a stream.
Extractor = AtstExtractor | TrainedModel


def embed_recordings(recordings: Iterable[reader.Recording], extractor: Extractor, keys: Sequence[str] = (),
                     extras: Sequence[str] = (), sample_rate_hz: reader.SampleRate | None = None
                     ) -> Generator[Clip | Unreadable]:
    """The recordings as clips of any length with `embeddings`; a thread reads ahead of the extractor.

    Args:
      recordings, extras, sample_rate_hz: as for spectral.clips.
      extractor: extractor of the embeddings.
      keys: names of further features of each clip.
    """
    needed = tuple(dict.fromkeys([*extractor.inputs, *keys]))
    clips = ahead(recut(spectral.clips(recordings, needed, extras, sample_rate_hz), extractor.max_frames))
    with contextlib.closing(extractor.embed(clips)) as embedded:
        for item in embedded:
            if isinstance(item, Clip):
                item = dataclasses.replace(item, features={key: item.features[key] for key in (*keys, EMBEDDINGS)})
            yield item


def extract_features(recordings: Iterable[reader.Recording], wanted: Sequence[str], extractor: Extractor | None = None,
                     sample_rate_hz: reader.SampleRate | None = None) -> Iterator[Clip | Unreadable]:
    """Each recording as one clip with the features `wanted`; nothing else is computed.

    Args:
      recordings: files or arrays.
      wanted: names from SPECTRAL, and `embeddings` (float16) if there is an extractor.
      extractor: from `load_extractor`.
      sample_rate_hz: sample rate of the arrays.
    """
    extras = tuple(key for key in wanted if key != EMBEDDINGS)
    stream = (embed_recordings(recordings, extractor, (), extras, sample_rate_hz) if extractor
              else spectral.clips(recordings, wanted, (), sample_rate_hz))
    for clip in recut(stream):
        if isinstance(clip, Clip):
            features = clip.features | clip.extras
            clip = dataclasses.replace(clip, features={key: features[key] for key in wanted}, extras={})
        yield clip


def load_extractor(path: str, hop_seconds: float, drop_layers: int) -> Extractor:
    """The extractor at `path`: an npz file of ATST-Frame, or the workdir of a trained model.

    Raises UserError if it is neither, or damaged.
    """
    if path.endswith(".npz"):
        return AtstExtractor(*atst_frame.load(path, drop_layers), round(hop_seconds * task.SAMPLE_RATE_HZ))
    return _load_trained(path)


def _load_trained(workdir: str) -> TrainedModel:
    """The trained model in a workdir, for its embeddings.

    Raises UserError if it is not a workdir, or its model has no embeddings or takes features that recordings lack.
    """
    model = load_model(workdir)
    task.require_frame_seconds(model.task)
    for key in model.inputs:
        if key not in spectral.WIDTHS:
            raise UserError(f"The model in {workdir} takes {key!r}, so it cannot be an extractor: choose one whose "
                            f"inputs are among {list(spectral.WIDTHS)}.")
    require_features(spectral.WIDTHS, model.inputs, model.widths, where="a recording")
    _ = model.embedding_width
    return model


def extractor_of(model: TrainedModel, embeddings_from: str | os.PathLike | None = None) -> Extractor:
    """The extractor of a model's input embeddings, as recorded in its workdir.

    Looks at the recorded path, then next to the workdir, since both may have moved together.

    Args:
      model: model that takes embeddings.
      embeddings_from: path of the extractor if the recorded one is missing or outdated: a workdir, or the npz file of
        an ATST-Frame.

    Raises:
      UserError: it was never recorded, has moved, or has changed.
    """
    entry, width = model.features[EMBEDDINGS].get("extractor") or {}, model.widths[EMBEDDINGS]
    takes = f"The model in {model.workdir} takes embeddings ({width} columns)"
    advice = "give it with --embeddings_from=PATH, a workdir or the npz file of an ATST-Frame"
    options = {"hop_seconds": 9.6, "drop_layers": 0, **entry}
    with parallel.all_or_none():
        if not embeddings_from and not entry:
            raise UserError(f"{takes}, but their extractor was not recorded: {advice}.")
        path = pathlib.Path(embeddings_from or entry["path"])
        if not embeddings_from and not os.path.exists(path):
            path = model.workdir.absolute().parent / path.name
            if not os.path.exists(path):
                raise UserError(f"{takes} from {entry['path']}, which no longer exists: {advice}.")
        is_atst = path.suffix == ".npz"
        atst = load_extractor(str(path), options["hop_seconds"], options["drop_layers"]) if is_atst else None
    extractor = atst or _load_trained(str(path))  # outside the block: it synchronises the processes itself
    with parallel.all_or_none():
        if entry and extractor.embedding_version != entry["parameters"]:
            raise UserError(f"{takes} from another extractor than {path}: {entry['parameters']!r}, not "
                            f"{extractor.embedding_version!r}; {advice}.")
        if extractor.embedding_width != width:
            raise UserError(f"{takes}, but those from {path} have {extractor.embedding_width} columns; {advice}.")
    return extractor
