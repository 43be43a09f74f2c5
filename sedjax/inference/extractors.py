"""Extractors: frozen models that embed recordings, one row for each frame of 120 ms."""

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import pathlib
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from sedjax.audio import reader, spectral
from sedjax.audio.clips import Clip, Unreadable, ahead, recut
from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.core import grid, parallel, task
from sedjax.core.errors import UserError
from sedjax.data.records import require_features
from sedjax.inference.trained import TrainedModel, load_model
from sedjax.models import atst_frame

EMBEDDINGS = "embeddings"


@runtime_checkable
class Extractor(Protocol):
    """A frozen model that embeds recordings.

    Attributes:
      parameters: identifies the weights, hop and version that determine the embeddings.
      width: columns of the embeddings.
      inputs: what it takes: of spectral.SPECTRAL and spectral.SOUND.
      max_frames: of the clips that it takes.
    """

    parameters: str
    width: int
    inputs: tuple[str, ...]
    max_frames: int

    def embed(self, stream: Generator[Clip | Unreadable], dtype: type = np.float16) -> Iterator[Clip | Unreadable]:
        """The clips, of any length, with `embeddings` (t, width) besides their features.

        A recording with embeddings that are not finite in `dtype` is unreadable. The stream is closed at the end.
        """


def embed_recordings(recordings: Iterable[reader.Recording], extractor: Extractor, keys: Sequence[str] = (),
                     extras: Sequence[str] = (), sample_rate_hz: reader.SampleRate | None = None
                     ) -> Iterator[Clip | Unreadable]:
    """Recordings in clips of any length with `embeddings`, read ahead of the extractor in a thread.

    Args:
      recordings, extras, sample_rate_hz: as for spectral.clips.
      extractor: of the embeddings.
      keys: further features of each clip.
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
    """Each recording as one clip with the features `wanted`, of which only these are computed.

    Args:
      recordings: files or arrays.
      wanted: some of SPECTRAL, and `embeddings`, float16, if there is an extractor.
      extractor: from `load_extractor`.
      sample_rate_hz: of arrays.
    """
    extras = tuple(key for key in wanted if key != EMBEDDINGS)
    stream = (embed_recordings(recordings, extractor, (), extras, sample_rate_hz) if extractor
              else spectral.clips(recordings, wanted, (), sample_rate_hz))
    for clip in recut(stream):
        if isinstance(clip, Clip):
            features = clip.features | clip.extras
            clip = dataclasses.replace(clip, features={key: features[key] for key in wanted}, extras={})
        yield clip


def narrowed(embeddings: np.ndarray, dtype: type = np.float16) -> np.ndarray:
    """Embeddings in another type. Raises UserError if they are not finite numbers in it."""
    with np.errstate(over="ignore"):
        embeddings = embeddings.astype(dtype, copy=False)
    if not np.isfinite(embeddings).all():
        raise UserError(f"The embeddings hold NaN, or numbers beyond the range of {embeddings.dtype}: use another "
                        "extractor.")
    return embeddings


def _embedded(clip: Clip, embeddings: np.ndarray, dtype: type) -> Clip | Unreadable:
    try:
        return dataclasses.replace(clip, features={**clip.features, EMBEDDINGS: narrowed(embeddings, dtype)})
    except UserError as error:
        return Unreadable(clip.number, clip.recording, error)


@dataclasses.dataclass(frozen=True)
class ModelExtractor:
    """The last hidden layer of a trained sedjax model that takes spectral features or audio."""

    model: TrainedModel

    @classmethod
    def load(cls, workdir: str) -> "ModelExtractor":
        """Raises UserError if it is not a workdir, or its model has no embeddings or takes what recordings lack."""
        model = load_model(workdir)
        task.require_frame_seconds(model.task)
        for key in model.inputs:
            if key not in spectral.WIDTHS:
                raise UserError(f"The model in {workdir} takes {key!r}, so it cannot be an extractor: name one that "
                                f"takes some of {list(spectral.WIDTHS)}.")
        require_features(spectral.WIDTHS, model.inputs, model.widths, where="a recording")
        extractor = cls(model)
        _ = extractor.width
        return extractor

    @functools.cached_property
    def parameters(self) -> str:
        takes_spectral = any(key in spectral.SPECTRAL for key in self.inputs)
        version = f" of spectral features {SPECTRAL_VERSION}" if takes_spectral else ""
        return f"{self.model.config.model['name']} {fingerprint(self.model.variables)}{version}"

    @property
    def width(self) -> int:
        return self.model.embedding_width

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.model.inputs

    @property
    def max_frames(self) -> int:
        return self.model.config.data.max_frames

    def embed(self, stream: Generator[Clip | Unreadable], dtype: type = np.float16) -> Iterator[Clip | Unreadable]:
        for item in self.model.embed(stream):
            yield item if isinstance(item, Unreadable) else _embedded(item[0], item[1]["frames"], dtype)


@dataclasses.dataclass(frozen=True)
class AtstExtractor:
    """ATST-Frame: windows of 10 s on the grid of frames, 40 ms tokens grouped into frames by absolute time.

    The last frame of a recording is filled up with silence, as in records of audio, so that a model that computes the
    same inside (models.atst_detector) sees the same.

    Attributes:
      model, weights: of the encoder.
      hop_samples: from one window to the next, a multiple of a frame; where windows overlap, their mean is taken.
      batch_size: windows at once, of one recording or several.
    """

    model: atst_frame.AtstFrame
    weights: dict
    hop_samples: int
    batch_size: int = 4
    inputs: tuple[str, ...] = (spectral.SAMPLES,)
    max_frames: int = 250

    @functools.cached_property
    def parameters(self) -> str:
        return f"atst_frame {fingerprint(self.weights)} hop {self.hop_samples} dropped {self.model.drop_layers}"

    @property
    def width(self) -> int:
        return self.model.width

    def embed(self, stream: Generator[Clip | Unreadable], dtype: type = np.float16) -> Iterator[Clip | Unreadable]:
        """Each recording as one clip."""
        with contextlib.closing(stream):
            for _, items in itertools.groupby(self._tokens(self._windows(stream)), key=operator.itemgetter(0)):
                yield self._stitched(items, dtype)

    def _windows(self, stream: Iterable[Clip | Unreadable]
                 ) -> Iterator[tuple[int, np.ndarray | Clip | Unreadable, int]]:
        """Number of the recording, samples of a window, and how many are real; none in what each recording ends with.

        That is a clip with its features besides the sound, or why it is unreadable.
        """
        for number, items in itertools.groupby(stream, key=operator.attrgetter("number")):
            read: list[Clip | Unreadable] = []  # without the sound
            for samples, real in reader.windows(_sound(items, read), atst_frame.WINDOW_SAMPLES, self.hop_samples):
                if real:
                    yield number, samples, real
            end = read[-1]
            if isinstance(end, Clip):
                end = dataclasses.replace(end, features={key: np.concatenate([clip.features[key] for clip in read])
                                                         for key in end.features})
            yield number, end, 0

    def _tokens(self, windows: Iterator[tuple[int, np.ndarray | Clip | Unreadable, int]]
                ) -> Iterator[tuple[int, np.ndarray | Clip | Unreadable]]:
        """The tokens of each window in which there is a real sample; what a recording ends with as it comes."""
        while batch := list(itertools.islice(windows, self.batch_size)):
            sounds = [samples for _, samples, real in batch if real]
            encoded = iter(self._encoded(sounds) if sounds else ())
            for number, samples, real in batch:
                yield number, next(encoded)[: real // atst_frame.TOKEN_SAMPLES] if real else samples

    def _encoded(self, sounds: list[np.ndarray]) -> np.ndarray:
        # Few sizes of batch, so that few are compiled.
        size = min(1 << (len(sounds) - 1).bit_length(), self.batch_size)
        samples = np.zeros((size, atst_frame.WINDOW_SAMPLES), np.float32)
        samples[: len(sounds)] = sounds
        return np.asarray(_encode(self.model, self.weights, samples))

    def _stitched(self, items: Iterator[tuple[int, np.ndarray | Clip | Unreadable]],
                  dtype: type) -> Clip | Unreadable:
        end = None

        def tokens() -> Iterator[np.ndarray]:
            nonlocal end
            for _, end in items:
                if isinstance(end, np.ndarray):
                    yield end

        with np.errstate(over="ignore"):  # _embedded refuses infinity
            parts = [grid.mean_by_group(rows, atst_frame.TOKENS_PER_FRAME).astype(dtype, copy=False)
                     for rows in grid.stitch(tokens(), self.hop_samples // atst_frame.TOKEN_SAMPLES)]
        return _embedded(end, np.concatenate(parts), dtype) if isinstance(end, Clip) else end


def _sound(clips: Iterable[Clip | Unreadable], read: list[Clip | Unreadable]) -> Iterator[np.ndarray]:
    """The samples of a recording; what else is in its clips is added to `read`."""
    for clip in clips:
        if isinstance(clip, Unreadable):
            read.append(clip)
            return
        others = {key: value for key, value in clip.features.items() if key != spectral.SAMPLES}
        read.append(dataclasses.replace(clip, features=others))
        yield clip.features[spectral.SAMPLES].ravel()


_encode = jax.jit(atst_frame.encode, static_argnums=0)


def load_extractor(path: str, hop_seconds: float, drop_layers: int) -> Extractor:
    """The extractor at `path`: an npz file of ATST-Frame, or the workdir of a trained model.

    Raises UserError if it is neither, or not whole.
    """
    if path.endswith(".npz"):
        return AtstExtractor(*atst_frame.load(path, drop_layers), round(hop_seconds * task.SAMPLE_RATE_HZ))
    return ModelExtractor.load(path)


def extractor_of(model: TrainedModel, embeddings_from: str | os.PathLike | None = None) -> Extractor:
    """The extractor of the embeddings that a model takes: the one that its workdir names.

    It is looked for where it was, then next to the workdir, since both may have moved together.

    Args:
      model: one that takes embeddings.
      embeddings_from: where the extractor is now, if not where the workdir says, or it does not say: a workdir, or
        the npz file of an ATST-Frame.

    Raises:
      UserError: it was never recorded, has moved, or has changed.
    """
    entry, width = model.features[EMBEDDINGS].get("extractor"), model.widths[EMBEDDINGS]
    said = f"The model in {model.workdir} takes embeddings ({width} wide)"
    say_where = "name it with --embeddings_from=PATH, a workdir or the npz file of an ATST-Frame"

    def place_of() -> pathlib.Path:
        if embeddings_from:
            return pathlib.Path(embeddings_from)
        if not entry:
            raise UserError(f"{said}, and what computes them was not recorded: {say_where}.")
        place = pathlib.Path(entry["path"])
        place = place if os.path.exists(place) else model.workdir.absolute().parent / place.name
        if not os.path.exists(place):
            raise UserError(f"{said} that {entry['path']} computes, which no longer exists: {say_where}.")
        return place

    options = {"hop_seconds": 9.6, "drop_layers": 0, **(entry or {})}
    with parallel.all_or_none():
        place = place_of()
        is_atst = place.suffix == ".npz"
        atst = load_extractor(str(place), options["hop_seconds"], options["drop_layers"]) if is_atst else None
    extractor = atst or ModelExtractor.load(str(place))  # in which the processes work together
    with parallel.all_or_none():
        if entry and extractor.parameters != entry["parameters"]:
            raise UserError(f"{said} of another extractor than {place}: {entry['parameters']!r}, not "
                            f"{extractor.parameters!r}; {say_where}.")
        if extractor.width != width:
            raise UserError(f"{said}, but {place} gives embeddings that are {extractor.width} wide; {say_where}.")
    return extractor


def fingerprint(variables) -> str:
    """A number that tells weights apart."""
    total = 0
    for leaf in jax.tree.leaves(variables):
        total = zlib.crc32(np.ascontiguousarray(leaf), total)
    return f"{total:08x}"
