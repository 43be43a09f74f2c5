"""From recordings to their features files: the same in one process as on the workers of a Beam pipeline."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from data_prep import journal
from sedjax.audio.clips import Unreadable
from sedjax.core import files, npz
from sedjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make of recordings, and where.

    Attributes:
      output: a directory in MLPC layout.
      wanted: names of features.
      embeddings_from, hop_seconds, drop_layers: the extractor, as extractors.load_extractor takes it, if there is one.
    """

    output: pathlib.Path
    wanted: tuple[str, ...]
    embeddings_from: str | None = None
    hop_seconds: float = 9.6
    drop_layers: int = 0

    def absolute(self) -> "Job":
        """The same job, for processes whose working directory is another."""
        extractor = self.embeddings_from and str(pathlib.Path(self.embeddings_from).absolute())
        return dataclasses.replace(self, output=self.output.absolute(), embeddings_from=extractor)

    def features_path(self, recording: pathlib.Path) -> pathlib.Path:
        return self.output / "audio_features" / f"{recording.stem}.npz"

    def extractor(self):
        """The sedjax.inference.extractors.Extractor, loaded anew; None if none is needed. Raises UserError."""
        from sedjax.inference import extractors  # imports JAX, which is slow

        if self.embeddings_from:
            return extractors.load_extractor(self.embeddings_from, self.hop_seconds, self.drop_layers)

    def parameters(self, extractor) -> dict[str, str]:
        """What the numbers of each feature depend on."""
        from sedjax.inference import extractors

        return {name: extractor.parameters if name == "embeddings" else extractors.SPECTRAL_VERSION
                for name in self.wanted}


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A recording to be done.

    Attributes:
      path: where it is.
      state: its size and time when it was listed.
      noted: its line in the journal, whatever has changed since; None if there is none.
    """

    path: pathlib.Path
    state: dict[str, int]
    noted: journal.Entry | None


def outcomes(job: Job, extractor, waiting: Sequence[Waiting]) -> Iterator[journal.Entry | journal.Bad]:
    """Writes the features file of each recording in turn; yields its journal entry, or its filename and the `reason`.

    Raises UserError if a file cannot be written.
    """
    from sedjax.inference import extractors

    parameters = job.parameters(extractor)
    clips = extractors.extract_features((one.path for one in waiting), job.wanted, extractor)
    with contextlib.closing(clips):
        for one, clip in zip(waiting, clips):
            path = job.features_path(one.path)
            try:
                if isinstance(clip, Unreadable):
                    raise clip.error
                has_changed = bool(one.noted) and not one.state.items() <= one.noted.items()
                others, ours = kept(path, job.wanted, one.noted, has_changed)
                labels = job.output / "labels" / f"{one.path.stem}_labels.npz"
                as_others = fit(clip.features, {key: value.shape for key, value in others.items()}, path)
                as_labels = fit(clip.features, npz.npz_shapes(labels) if os.path.lexists(labels) else {}, labels)
            except UserError as error:
                yield {"filename": one.path.name, "reason": str(error)}
                continue
            write(path, others, as_others if others else as_labels, ours)
            known = one.noted["parameters"] if one.noted else {}
            yield journal.entry(one.path, one.state, path, clip.seconds,
                                {key: value for key, value in known.items() if key in ours} | parameters)


def write(path: pathlib.Path, others: dict[str, np.ndarray], features: dict[str, np.ndarray],
          ours: Collection[str]) -> None:
    """Writes a features file: `others`, of which sedjax made `ours`, and what it has made now."""
    with files.atomic_output(path, ours=True) as temporary:
        npz.write_npz(temporary, others | features, made=[*ours, *features])


def kept(path: pathlib.Path, wanted: Collection[str], noted: journal.Entry | None = None,
         has_changed: bool = False) -> tuple[dict[str, np.ndarray], set[str]]:
    """The arrays of a features file that stay where they are when `wanted` are made, and which of them sedjax made.

    Args:
      path: the features file, which may not be there.
      wanted: what is to be made.
      noted: its recording's line in the journal.
      has_changed: the recording, since then; what sedjax made of it before does not stay.

    Raises:
      UserError: the file is damaged and was not made by sedjax, or holds what is wanted from another source.
    """
    ours = require_ours(path, wanted, noted)
    if ours is None:
        return {}, set()
    others = [key for key in npz.npz_keys(path) if key not in wanted and not (has_changed and key in ours)]
    return npz.read_npz(path, others), ours.intersection(others)


def require_ours(path: pathlib.Path, wanted: Collection[str], noted: journal.Entry | None) -> set[str] | None:
    """The arrays of a features file that sedjax made; None if there is no file, or one that sedjax made and is spoilt.

    Raises UserError as `kept`.
    """
    if not os.path.lexists(path) or (path.is_file() and not path.stat().st_size):
        return None
    try:
        keys = npz.npz_keys(path)
    except UserError:
        if noted and path.is_file():
            return None
        raise
    ours = {key for key, is_ours in keys.items() if is_ours}
    if noted and path.stat().st_size == noted["features_bytes"]:  # of a file without checksums the journal tells
        ours |= noted["parameters"].keys() & keys.keys()
    if others := [key for key in wanted if key in keys and key not in ours]:
        raise UserError(f"{path} holds {others[0]!r} that sedjax did not make, or that has been changed since, and "
                        "which it does not replace: move the file away, or work on a copy without it.")
    return ours


def fit(features: dict[str, np.ndarray], others: dict[str, tuple[int, ...]],
        path: pathlib.Path) -> dict[str, np.ndarray]:
    """Features with as many rows as what others made of the recording, who may have rounded its length down.

    Raises UserError if `others`, the shapes of arrays in the file `path`, are those of another recording.
    """
    frames, lengths = len(next(iter(features.values()))), [shape[0] for shape in others.values() if shape]
    if any(abs(frames - rows) > 1 for rows in lengths):
        raise UserError(f"{path} is of a recording of {max(lengths)} frames, but this one has {frames}: delete it, or "
                        "choose another --output.")
    rows = min(lengths, default=frames)
    return {name: value[:rows] if rows <= frames else np.concatenate([value, value[-1:]])
            for name, value in features.items()}
