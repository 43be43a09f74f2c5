"""Detects events in recordings with a trained model."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Iterable, Iterator

import numpy as np

from sedjax.audio import reader, spectral
from sedjax.audio.clips import Clip, Unreadable, ahead, recut
from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.core import task
from sedjax.core.errors import UserError, printable
from sedjax.core.task import Task
from sedjax.data.records import require_features
from sedjax.inference.detection import Detection
from sedjax.inference.extractors import EMBEDDINGS, Extractor, ModelExtractor, embed_recordings, extractor_of
from sedjax.inference.trained import Outputs, TrainedModel, load_model

log = logging.getLogger("sedjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """Detects events in recordings.

        for onset, offset, label, score in detector("street.mp3"):

    Attributes:
      model: the trained model.
      embeddings_from: the extractor of the embeddings that the model may take, as for extractors.extractor_of.
    """

    model: TrainedModel
    embeddings_from: str | os.PathLike | None = None

    @property
    def task(self) -> Task:
        return self.model.task

    @functools.cached_property
    def extractor(self) -> Extractor | None:
        """Of the embeddings that the model takes; None if it takes none. Raises UserError if it is missing."""
        return extractor_of(self.model, self.embeddings_from) if EMBEDDINGS in self.model.inputs else None

    def __call__(self, recording: reader.Recording, sample_rate_hz: reader.SampleRate | None = None) -> Detection:
        """Detects events in a file, or in an array of samples at `sample_rate_hz`, as sedjax.audio.reader reads them.

        Raises UserError if the recording cannot be read.
        """
        (detection,) = self.detect([recording], sample_rate_hz)
        if isinstance(detection, Unreadable):
            raise detection.error
        return detection

    def detect(self, recordings: Iterable[reader.Recording], sample_rate_hz: reader.SampleRate | None = None, *,
               keep: tuple[str, ...] = ()) -> Iterator[Detection | Unreadable]:
        """Detects events in each recording, in their order; says of those that cannot be read why.

        Recordings of any length are read in blocks, ahead of the device, and their clips fill batches together.

        Args:
          recordings: files, or arrays of samples.
          sample_rate_hz: of the arrays.
          keep: spectral features to be had in Detection.features.

        Raises:
          UserError: the model takes what recordings do not give, or embeddings whose extractor is missing; it gives
            NaN; or `keep` names something else.
        """
        if isinstance(recordings, str | os.PathLike | np.ndarray):
            raise UserError("Detector.detect takes a list of recordings: call the detector itself with a single one.")
        if unknown := [key for key in keep if key not in spectral.SPECTRAL]:
            raise UserError(f"keep = {unknown[0]!r} is not a spectral feature; they are {list(spectral.SPECTRAL)}.")
        # All of this now: a model that cannot do it is an error before anything is read.
        task.require_frame_seconds(self.task)
        widths = spectral.WIDTHS | ({EMBEDDINGS: self.extractor.width} if self.extractor else {})
        require_features(widths, self.model.inputs, self.model.widths, where="a recording")
        stream, frames = self._clips(list(recordings), sample_rate_hz, keep), self.model.config.data.max_frames
        return detections(self.model, recut(stream, frames))

    def _clips(self, recordings: list[reader.Recording], sample_rate_hz: reader.SampleRate | None,
               keep: tuple[str, ...]) -> Iterator[Clip | Unreadable]:
        """Recordings in clips of any length, with what the model takes."""
        keys = tuple(key for key in self.model.inputs if key != EMBEDDINGS)
        if self.extractor:
            return embed_recordings(recordings, self.extractor, keys, keep, sample_rate_hz)
        # A model that takes nothing must still know how many frames there are.
        clips = spectral.clips(recordings, keys or ("melspectrogram",), keep, sample_rate_hz)
        return ahead(recut(clips, self.model.config.data.max_frames))


def load(workdir: str | os.PathLike, checkpoint: str | int = "best",
         embeddings_from: str | os.PathLike | None = None) -> Detector:
    """The detector that a training left in its workdir.

    Args:
      workdir: of the training.
      checkpoint: "best" (lowest validation cost), "last", or a step.
      embeddings_from: the extractor of the embeddings that the model takes, as for extractors.extractor_of.

    Raises:
      UserError: as load_model, or the model takes no embeddings although an extractor is given.
    """
    model = load_model(workdir, checkpoint)
    if embeddings_from and EMBEDDINGS not in model.inputs:
        raise UserError(f"The model in {workdir} takes no embeddings: leave out --embeddings_from={embeddings_from}.")
    return Detector(model, embeddings_from)


def detections(model: TrainedModel, stream: Iterator[Clip | Unreadable]) -> Iterator[Detection | Unreadable]:
    """What a model detects in recordings, given as a stream of clips of max_frames at most.

    Raises UserError if the model gives NaN.
    """
    number, parts = None, []
    with contextlib.closing(model.predict(stream)) as results:
        for result in results:
            if isinstance(result, Unreadable):
                yield result
                continue
            clip, outputs = result
            if clip.number != number:  # what came before of a recording that is unreadable is dropped
                number, parts = clip.number, []
            parts.append(outputs)
            if clip.is_last:
                yield Detection(clip.recording, model.task, model.thresholds, clip.seconds, **_joined(parts),
                                features=clip.extras)


def warn_of_other_features(detector: Detector) -> None:
    """Warns if a model, or its extractor, was trained on spectral features that differ from those computed here.

    Unrecorded provenance counts as different.
    """
    models = [detector.model, *([detector.extractor.model] if isinstance(detector.extractor, ModelExtractor) else [])]
    others = []
    for model in models:
        keys = [key for key in model.inputs if key in spectral.SPECTRAL
                and model.features[key].get("extractor", {}).get("parameters") != SPECTRAL_VERSION]
        if keys:
            others.append(printable(f"{' and '.join(keys)} of the model in {model.workdir}"))
    if others:
        log.warning("The features this model was trained on may differ from those computed here (%s); detections may "
                    "be worse. Extract the features with `sedjax extract --audio`, and train on those.",
                    "; ".join(others))


def _joined(parts: list[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
