"""From recordings to clips of what a model takes, which are computed here, embeddings by the right extractor."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sedjax import audio, extractors, input_pipeline, parallel
from sedjax.clips import Clip, ahead, recut
from sedjax.detector import EMBEDDINGS, Detector, load
from sedjax.errors import UserError
from sedjax.extractors import DetectorExtractor, Extractor
from sedjax.files import printable

log = logging.getLogger("sedjax")


def find(places: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The recordings that files and folders name, each once, those of a folder by name.

    Raises UserError if a place is not there, or a folder holds none.
    """
    paths: dict[str, pathlib.Path] = {}
    for place in map(pathlib.Path, places):
        if not os.path.exists(place):
            raise UserError(f"There is no recording and no folder {place}.")
        for path in audio.files_in(place) if os.path.isdir(place) else [place]:
            paths.setdefault(os.path.realpath(path), path)
    return list(paths.values())


def clips(detector: Detector, read: Callable[..., Iterator[Clip]], further: Sequence[str] = ()) -> Iterator[Clip]:
    """Recordings in clips of max_frames, each with what the model takes, read ahead in a thread.

    Args:
      detector: the model.
      read: `read` of these recordings, which gives features and embeddings as its last two arguments say.
      further: features to have besides.

    Raises:
      UserError: the model takes what cannot be computed, or of another width.
    """
    audio.require_frame_seconds(detector.task)
    keys = detector.model.features
    extractor = detector.extractor if EMBEDDINGS in keys else None
    widths = extractors.WIDTHS | ({EMBEDDINGS: extractor.width} if extractor else {})
    input_pipeline.require_features(widths, keys, detector.widths, where="a recording")
    needed = tuple(dict.fromkeys([*further, *(key for key in keys if key != EMBEDDINGS)]))
    frames = detector.config.data.max_frames
    if isinstance(extractor, DetectorExtractor):
        embedded = extractor.detector.embed_clips(clips(extractor.detector, read, needed))
        return recut((dataclasses.replace(clip, features={**{key: clip.features[key] for key in needed},
                                                          EMBEDDINGS: _half(rows, extractor.detector)})
                      for clip, rows in embedded), frames)
    if extractor and audio.FEATURE in needed:
        raise UserError(f"The model in {detector.workdir} takes the sound beside embeddings, which cannot be computed "
                        "together.")
    if not needed and not extractor:  # a model that takes nothing must still know how many frames there are
        needed = ("melspectrogram",)
    return ahead(recut(read(needed, extractor), frames))


def _half(embeddings: np.ndarray, detector: Detector) -> np.ndarray:
    embeddings = extractors.narrowed(embeddings)
    extractors.require_finite(embeddings, f"the model in {detector.workdir}")
    return embeddings


def read(recordings: Sequence[audio.Recording], sample_rate_hz: audio.SampleRate | None, keep: tuple[str, ...],
         bad: dict[int, str] | None, keys: tuple[str, ...], extractor: Extractor | None = None) -> Iterator[Clip]:
    """Recordings in clips of any length.

    Of the sound alone, memory holds some seconds; otherwise the features of a recording, maybe with its sound.

    Args:
      recordings, sample_rate_hz, keep, bad: as for Detector.detect.
      keys: features to be had in each clip, besides embeddings if there is an extractor of them; then not the sound.
      extractor: of the sound.
    """
    def unreadable(number: int, error: UserError) -> None:
        if bad is None:
            raise error
        bad[number] = str(error)

    if extractor is None:
        wanted = tuple(key for key in dict.fromkeys([*keys, *keep]) if key != audio.FEATURE)
        for number, recording in enumerate(recordings):
            one = extractors.Pass(audio.blocks(recording, sample_rate_hz), wanted)
            try:
                yield from extractors.clips_of(number, one, keys, keep)
            except UserError as error:
                unreadable(number, error)
        return
    wanted = tuple(dict.fromkeys([*keys, *keep, EMBEDDINGS]))
    for number, one in enumerate(extractors.features_of(recordings, wanted, extractor, sample_rate_hz)):
        if isinstance(one, UserError):
            unreadable(number, one)
            continue
        features, seconds = one
        yield Clip(number, {key: features[key] for key in (*keys, EMBEDDINGS)}, seconds,
                   {key: features[key] for key in keep})


def warn_of_others(detector: Detector) -> None:
    """Warns if a model, or one whose embeddings it takes, was trained on features unlike those that are computed here.

    Or may have been: what is not noted in its workdir is taken for another's.
    """
    others = []
    while detector:
        keys = [key for key in detector.model.features if key in extractors.SPECTRAL
                and detector.features[key].get("extractor", {}).get("parameters") != extractors.SPECTRAL_VERSION]
        if keys:
            others.append(printable(f"{' and '.join(keys)} of the model in {detector.workdir}"))
        extractor = detector.extractor if EMBEDDINGS in detector.model.features else None
        detector = extractor.detector if isinstance(extractor, DetectorExtractor) else None
    if others:
        log.warning("Trained on features that may be unlike those computed here, as their data set does not note the "
                    "same origin: %s. Where they differ it hears worse: make the features with `python -m "
                    "data_prep.extract --audio`, and train on those.", "; ".join(others))


def extractor_of(detector: Detector) -> Extractor:
    """The extractor of the embeddings that a model takes: the one that its workdir names.

    Looked for where it was, then beside the workdir, since both may have moved together.

    Raises UserError if it is not known or not there, is another one by now, or takes embeddings of this model itself.
    """
    entry, width = detector.features[EMBEDDINGS].get("extractor"), detector.widths[EMBEDDINGS]
    said = f"The model in {detector.workdir} takes embeddings ({width} wide)"
    say_where = "name it with --embeddings_from=PATH, a workdir or the npz file of an ATST-Frame"

    def place_of() -> pathlib.Path:
        if detector.embeddings_from:
            return pathlib.Path(detector.embeddings_from)
        if not entry:
            raise UserError(f"{said}, and it is not known what computes them: {say_where}.")
        place = pathlib.Path(entry["path"])
        place = place if os.path.exists(place) else detector.workdir.absolute().parent / place.name
        if not os.path.exists(place):
            raise UserError(f"{said} that {entry['path']} computes, which is not there any more: {say_where}.")
        return place

    options = {"hop_seconds": 9.6, "drop_layers": 0, **(entry or {})}
    takers = (*detector.takers, os.path.realpath(detector.workdir))
    with parallel.together():
        place = place_of()
        if os.path.realpath(place) in takers:
            raise UserError(f"{said} that {place} would compute, a model that takes its embeddings from this one in "
                            f"turn: {say_where}.")
        is_atst = place.suffix == ".npz"
        atst = extractors.of(str(place), options["hop_seconds"], options["drop_layers"]) if is_atst else None
    # In `load` the processes work together.
    extractor = atst or DetectorExtractor(dataclasses.replace(load(place), takers=takers))
    with parallel.together():
        if entry and extractor.parameters != entry["parameters"]:
            raise UserError(f"{said} of another extractor than {place}: {entry['parameters']!r}, not "
                            f"{extractor.parameters!r}; {say_where}.")
        if extractor.width != width:
            raise UserError(f"{said}, but {place} gives embeddings that are {extractor.width} wide; {say_where}.")
    return extractor
