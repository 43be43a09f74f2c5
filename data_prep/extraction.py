"""Computes features files of recordings, in one process or on the workers of a Beam pipeline."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from sedjax.audio import mel
from sedjax.audio.clips import Unreadable
from sedjax.core import files, npz
from sedjax.core.errors import UserError
from sedjax.data import provenance
from sedjax.data.identity import Extractor
from sedjax.data.provenance import Provenance, Recording


@dataclasses.dataclass(frozen=True)
class Job:
    """Features to compute, and where to write them.

    Attributes:
      output: directory in MLPC layout.
      wanted: names of the features to compute.
      embeddings_from, hop_seconds, drop_layers: arguments of extractors.load_extractor, if embeddings are computed.
    """

    output: pathlib.Path
    wanted: tuple[str, ...]
    embeddings_from: str | None = None
    hop_seconds: float = 9.6
    drop_layers: int = 0

    def features_path(self, recording: pathlib.Path) -> pathlib.Path:
        return self.output / "audio_features" / f"{recording.stem}.npz"

    def extractor(self):
        """Loads the extractor of embeddings; None if not needed. Raises UserError."""
        from sedjax.inference import extractors  # imports JAX, which is slow

        if self.embeddings_from:
            return extractors.load_extractor(self.embeddings_from, self.hop_seconds, self.drop_layers)

    def origins(self, extractor) -> dict[str, Extractor]:
        """The origin of each feature."""
        origins = dict.fromkeys(self.wanted, Extractor(parameters=mel.SPECTRAL_VERSION))
        if extractor:
            windows = ({"hop_seconds": self.hop_seconds, "drop_layers": self.drop_layers}
                       if self.embeddings_from.endswith(".npz") else {})
            origins["embeddings"] = origin_of(self.embeddings_from, extractor.embedding_version, **windows)
        return origins

    def seconds(self, recording: pathlib.Path, origins: dict[str, Extractor]) -> float | None:
        """Length of a recording whose features file holds all wanted features from these origins; otherwise None."""
        try:
            _, recorded = provenance.read(self.features_path(recording))
            if not recorded.recording or recorded.recording.state != recording_state(recording):
                return None
        except (OSError, UserError):
            return None
        by_recording = {key: origin.parameters for key, origin in recorded.origins.items()
                        if provenance.FROM_FEATURES not in origin.model_extra}
        is_done = all(by_recording.get(key) == origin.parameters for key, origin in origins.items())
        return recorded.recording.seconds if is_done else None


def origin_of(path: str, parameters: str, **options) -> Extractor:
    """The origin of embeddings: path of the extractor, identifier of its parameters, and its options."""
    return Extractor(path=str(pathlib.Path(path).absolute()), parameters=parameters, **options)


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A recording to process.

    Attributes:
      path: path of the audio file.
      state: `recording_state` when it was listed; if the recording has changed since, it does not count as done.
    """

    path: pathlib.Path
    state: dict[str, int]


def recording_state(recording: pathlib.Path) -> dict[str, int]:
    """Size and modification time of a recording, to detect changes."""
    status = os.stat(recording)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def process(job: Job, extractor, waiting: Sequence[Waiting]) -> Iterator[str | None]:
    """Writes the features file of each recording; yields None, or the reason for the failure.

    Raises UserError if a file cannot be written.
    """
    from sedjax.inference import extractors

    origins = job.origins(extractor)
    clips = extractors.extract_features((recording.path for recording in waiting), job.wanted, extractor)
    with contextlib.closing(clips):
        for recording, clip in zip(waiting, clips):
            path = job.features_path(recording.path)
            try:
                if isinstance(clip, Unreadable):
                    raise clip.error
                others, recorded = kept(path, job.wanted, recording.state)
                labels = job.output / "labels" / f"{recording.path.stem}_labels.npz"
                as_others = fit(clip.features, {key: value.shape for key, value in others.items()}, path)
                as_labels = fit(clip.features, npz.npz_shapes(labels) if os.path.lexists(labels) else {}, labels)
            except UserError as error:
                yield str(error)
                continue
            write(path, others, as_others if others else as_labels, recorded, origins,
                  Recording(**recording.state, seconds=clip.seconds))
            yield None


def process_on_worker(waiting: Sequence[Waiting], job: Job) -> list[str | None]:
    """As `process`, on a worker of Apache Beam, which loads the extractor once."""
    return list(process(job, _loaded(job), waiting))


@functools.cache
def _loaded(job: Job):
    return job.extractor()


def write(path: pathlib.Path, others: dict[str, np.ndarray], features: dict[str, np.ndarray], recorded: Provenance,
          origins: dict[str, Extractor], recording: Recording | None) -> None:
    """Writes a features file: `others`, with the provenance `recorded`, and new features with `origins`."""
    all_origins = {**{key: recorded.origins.get(key) for key in recorded.sums},
                   **{key: origins.get(key) for key in features}}
    with files.atomic_output(path, ours=True) as temporary:
        provenance.write(temporary, others | features, all_origins, recording)


def kept(path: pathlib.Path, wanted: Collection[str],
         state: dict[str, int] | None = None) -> tuple[dict[str, np.ndarray], Provenance]:
    """The arrays of a features file to keep when `wanted` are computed, and their provenance.

    Args:
      path: features file, which may be missing.
      wanted: names of the features to compute.
      state: state of the recording; if it has changed, features that sedjax computed before are not kept.

    Raises:
      UserError: the file is damaged, or holds a wanted feature from another source.
    """
    keys, recorded = require_ours(path, wanted)
    has_changed = bool(state and recorded.recording) and recorded.recording.state != state
    others = [key for key in keys if key not in wanted and not (has_changed and key in recorded.sums)]
    kept_sums = {key: crc for key, crc in recorded.sums.items() if key in others}
    return npz.read_npz(path, others) if others else {}, recorded.model_copy(update={"sums": kept_sums})


def require_ours(path: pathlib.Path, wanted: Collection[str]) -> tuple[set[str], Provenance]:
    """Keys and provenance of a features file, which may be missing or empty.

    Raises UserError like `kept`.
    """
    if not os.path.lexists(path) or (path.is_file() and not path.stat().st_size):
        return set(), Provenance()
    keys, recorded = provenance.read(path)
    if others := [key for key in wanted if key in keys and key not in recorded.sums]:
        raise UserError(f"{path} holds {others[0]!r}, which sedjax did not compute, or which has changed since, so it "
                        "is not replaced: move the file away, or work on a copy without it.")
    return keys, recorded


def fit(features: dict[str, np.ndarray], others: dict[str, tuple[int, ...]],
        path: pathlib.Path) -> dict[str, np.ndarray]:
    """Cuts or pads features to the length of the recording's other arrays, which may have been rounded differently.

    Raises UserError if `others`, the shapes of the arrays in the file `path`, belong to another recording.
    """
    frames, lengths = len(next(iter(features.values()))), [shape[0] for shape in others.values() if shape]
    if any(abs(frames - rows) > 1 for rows in lengths):
        raise UserError(f"{path} is from a recording of {max(lengths)} frames, but this one has {frames}: delete it, "
                        "or choose another --output.")
    rows = min(lengths, default=frames)
    return {name: value[:rows] if rows <= frames else np.concatenate([value, value[-1:]])
            for name, value in features.items()}
