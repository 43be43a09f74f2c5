"""Detects events in recordings with a trained model."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Generator, Iterable, Iterator

import numpy as np

from sedjax.audio import reader, spectral
from sedjax.audio.clips import Clip, Unreadable, ahead, recut
from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.core import task
from sedjax.core.errors import UserError, printable
from sedjax.core.task import Task
from sedjax.data.records import require_features
from sedjax.inference.detection import Detection
from sedjax.inference.extractors import EMBEDDINGS, Extractor, embed_recordings, extractor_of
from sedjax.inference.trained import TrainedModel, load_model
from sedjax.scoring.event_rules import EventRules, Value, changed, default_rules

log = logging.getLogger("sedjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """Detects events in recordings.

        for onset, offset, label, score in detector("street.mp3"):

    Attributes:
      model: trained model.
      rules: how probabilities become events.
      embeddings_from: path of the extractor of the model's input embeddings, as for extractors.extractor_of.
    """

    model: TrainedModel
    rules: EventRules
    embeddings_from: str | os.PathLike | None = None

    @property
    def task(self) -> Task:
        return self.model.task

    @functools.cached_property
    def extractor(self) -> Extractor | None:
        """The extractor of the model's input embeddings; None if it takes none. Raises UserError if it is missing."""
        return extractor_of(self.model, self.embeddings_from) if EMBEDDINGS in self.model.inputs else None

    def with_rules(self, **changes: Value | None) -> "Detector":
        """A detector with other rules, for example `threshold=0.4, min_duration={"Siren": 1.0}` (seconds).

        Args and errors are those of event_rules.changed.
        """
        return dataclasses.replace(self, rules=changed(self.rules, self.task, **changes))

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
        """Yields the detection of each recording, in input order, or why the recording is unreadable.

        Recordings of any length are read in blocks, ahead of the device, and batches mix clips of several recordings.

        Args:
          recordings: files, or arrays of samples.
          sample_rate_hz: sample rate of the arrays.
          keep: names of spectral features to return in Detection.features.

        Raises:
          UserError: the model takes features that recordings lack, or embeddings whose extractor is missing; it
            outputs NaN; or `keep` names anything but spectral features.
        """
        if isinstance(recordings, str | os.PathLike | np.ndarray):
            raise UserError("Detector.detect takes a list of recordings: for a single one, call the detector itself.")
        if unknown := [key for key in keep if key not in spectral.SPECTRAL]:
            raise UserError(f"keep = {unknown[0]!r} is not a spectral feature; choose from {list(spectral.SPECTRAL)}.")
        return self._detections(list(recordings), sample_rate_hz, keep)

    def _detections(self, recordings: list[reader.Recording], sample_rate_hz: reader.SampleRate | None,
                    keep: tuple[str, ...]) -> Iterator[Detection | Unreadable]:
        # Checked here, not in the generator: an unsuitable model is an error before anything is read.
        task.require_frame_seconds(self.task)
        widths = spectral.WIDTHS | ({EMBEDDINGS: self.extractor.embedding_width} if self.extractor else {})
        require_features(widths, self.model.inputs, self.model.widths, where="a recording")
        stream, frames = self._clips(recordings, sample_rate_hz, keep), self.model.max_frames
        return detections(self.model, recut(stream, frames), self.rules)

    def _clips(self, recordings: list[reader.Recording], sample_rate_hz: reader.SampleRate | None,
               keep: tuple[str, ...]) -> Generator[Clip | Unreadable]:
        """The recordings as clips with the features that the model takes."""
        keys = tuple(key for key in self.model.inputs if key != EMBEDDINGS)
        if self.extractor:
            return embed_recordings(recordings, self.extractor, keys, keep, sample_rate_hz)
        # A model without inputs still needs the number of frames.
        clips = spectral.clips(recordings, keys or ("melspectrogram",), keep, sample_rate_hz)
        return ahead(recut(clips, self.model.max_frames))


def load(workdir: str | os.PathLike, checkpoint: str | int = "best",
         embeddings_from: str | os.PathLike | None = None) -> Detector:
    """Loads the detector of a trained model.

    Args:
      workdir: run directory of the training.
      checkpoint: "best" (lowest validation cost), "last", or a step.
      embeddings_from: path of the extractor of the model's input embeddings, as for extractors.extractor_of.

    Raises:
      UserError: as load_model, or an extractor is given although the model takes no embeddings.
    """
    model = load_model(workdir, checkpoint)
    if embeddings_from and EMBEDDINGS not in model.inputs:
        raise UserError(f"The model in {workdir} takes no embeddings: leave out --embeddings_from={embeddings_from}.")
    return Detector(model, default_rules(model.thresholds), embeddings_from)


def detections(model: TrainedModel, stream: Generator[Clip | Unreadable],
               rules: EventRules) -> Generator[Detection | Unreadable]:
    """The detections in recordings, given as a stream of clips of at most max_frames.

    Raises UserError if the model outputs NaN.
    """
    number, parts = -1, []
    with contextlib.closing(model.predict(stream)) as results:
        for result in results:
            if isinstance(result, Unreadable):
                yield result
                continue
            clip, outputs = result
            if clip.number != number:  # drops the earlier clips of a recording that turned out unreadable
                number, parts = clip.number, []
            parts.append(outputs)
            if (seconds := clip.seconds) is not None:
                joined = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
                yield Detection(clip.recording, model.task, rules, seconds, **joined, features=clip.extras)


def warn_of_other_features(detector: Detector) -> None:
    """Warns if a model, or its extractor, was trained on spectral features that differ from those computed here.

    Unrecorded provenance counts as different.
    """
    differing = []
    for model in (detector.model, detector.extractor):
        if not isinstance(model, TrainedModel):
            continue
        keys = [key for key in model.inputs if key in spectral.SPECTRAL
                and model.features[key].get("extractor", {}).get("parameters") != SPECTRAL_VERSION]
        if keys:
            differing.append(printable(f"{' and '.join(keys)} of the model in {model.workdir}"))
    if differing:
        log.warning("The features this model was trained on may differ from those computed here (%s); detections may "
                    "be worse. Extract the features with `sedjax extract --audio`, and train on those.",
                    "; ".join(differing))
