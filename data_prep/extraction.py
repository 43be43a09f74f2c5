"""From recordings to their features files: the same in one process as on the workers of a Beam pipeline."""

import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep import journal
from sedjax import files
from sedjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make of recordings, and where.

    Attributes:
      output: a directory in MLPC layout.
      wanted: names of features.
      embeddings_from, hop_seconds, drop_layers: the extractor, as sedjax.extractors.of takes it, if there is one.
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
        """The sedjax.extractors.Extractor, loaded anew; None if none is needed. Raises UserError."""
        from sedjax import extractors  # imports JAX, which is slow

        if self.embeddings_from:
            return extractors.of(self.embeddings_from, self.hop_seconds, self.drop_layers)

    def parameters(self, extractor) -> dict[str, str]:
        """What the numbers of each feature depend on."""
        from sedjax import extractors

        return {name: extractor.parameters if name == "embeddings" else extractors.SPECTRAL_VERSION
                for name in self.wanted}


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A recording to be done.

    Attributes:
      path: where it is.
      state: its size and time when it was listed.
      kept: with which parameters the features were made that its features file holds and may keep; None if it may keep
        nothing.
    """

    path: pathlib.Path
    state: dict
    kept: dict[str, str] | None


def outcomes(job: Job, extractor, waiting: Sequence[Waiting]) -> Iterator[dict]:
    """Writes the features file of each recording in turn; yields its journal entry, or its filename and the `reason`.

    Raises UserError if a file cannot be written.
    """
    from sedjax import extractors

    parameters = job.parameters(extractor)
    made = extractors.features_of((one.path for one in waiting), job.wanted, extractor)
    for one, found in zip(waiting, made):
        path = job.features_path(one.path)
        try:
            if isinstance(found, UserError):
                raise found
            features, seconds = found
            held = {} if one.kept is None else arrays_in(path)
            labels = job.output / "labels" / f"{one.path.stem}_labels.npz"
            as_held, as_labels = fit(features, held, path), fit(features, arrays_in(labels), labels)
            features = held | (as_held if held.keys() - features.keys() else as_labels)
        except UserError as error:
            yield {"filename": one.path.name, "reason": str(error)}
            continue
        with files.atomic_output(path, ours=True) as temporary:
            np.savez(temporary, **features)
        yield journal.entry(one.path, one.state, path, seconds, (one.kept or {}) | parameters)


def arrays_in(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file that is there already; none if it is not. Raises UserError if it is damaged."""
    if not path.exists():
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged, and was not made by this command: delete it ({error}).") from error


def fit(features: dict[str, np.ndarray], held: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """Features with as many rows as what others made of the recording, who may have rounded its length down.

    Raises UserError if `held`, the arrays in the file `path`, are those of another recording.
    """
    frames, lengths = len(next(iter(features.values()))), {name: len(x) for name, x in held.items() if x.ndim}
    if any(abs(frames - rows) > 1 for rows in lengths.values()):
        raise UserError(f"{path} is of a recording of {max(lengths.values())} frames, but this one has {frames}: "
                        "delete it, or choose another --output.")
    rows = min((rows for name, rows in lengths.items() if name not in features), default=frames)
    return {name: value[:rows] if rows <= frames else np.concatenate([value, value[-1:]])
            for name, value in features.items()}
