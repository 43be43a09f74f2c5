"""The TFDS builder: one record a recording, readable by `tfds.builder_from_directory` without sedjax."""

import functools
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow_datasets as tfds

from data_prep.check import Survey, digests_of
from sedjax.audio import reader
from sedjax.audio.frontend import power_to_db
from sedjax.core.errors import UserError
from sedjax.data import identity
from sedjax.data.layout import Layout


class SedRecords(tfds.core.GeneratorBasedBuilder):
    """Records of recordings in MLPC layout.

    A record holds `filename`, `features/<key>` (T, D_k) and `votes` (T, C): the fraction of annotators that marked the
    frame. The dataset's metadata holds the task, and per feature, and for the labels, the width and the statistics
    of the training frames; of audio, whose columns are one sample each, the width only; and the fingerprint of each
    split. Each names what computed it, if that is known.

    Args:
      layout: where the recordings are.
      splits: recordings of each split, in the order in which they are stored.
      keys: features to store.
      found: what data_prep.check found in the recordings, which must not change after it.
      statistics: of the training frames, from `training_statistics`.
      fingerprints: of each split, from `identity.split_fingerprints`.
      on_beam: whether workers of a Beam pipeline read the recordings; the records are the same.
      data_dir: where to write.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = identity.RECORDS_NAME

    def __init__(self, layout: Layout, splits: dict[str, tuple[str, ...]], keys: tuple[str, ...],
                 found: Survey, statistics: dict[str, dict], fingerprints: dict[str, dict[str, str]],
                 on_beam: bool = False, **kwargs):
        self._layout, self._splits, self._keys, self._found = layout, splits, keys, found
        self._statistics, self._fingerprints, self._on_beam = statistics, fingerprints, on_beam
        self._sample = layout.features(next(f for names in splits.values() for f in names), keys)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        def tensor(width: int, dtype) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(None, width), dtype=dtype, encoding="bytes")

        features = {key: tensor(value.shape[1], value.dtype) for key, value in self._sample.items()}
        metadata = {
            "task": self._layout.task.to_json(),
            "lengths": {split: [self._found.frames[name] for name in names] for split, names in self._splits.items()},
            "features": {key: self._entry(key) for key in self._keys},
            "labels": {**self._statistics[identity.LABELS], **self._fingerprint(identity.LABELS)},
        }
        metadata["checksum"] = identity.checksum(metadata)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Sound event detection: {self._layout.task.name}.",
            features=tfds.features.FeaturesDict({
                "filename": tfds.features.Text(),
                "features": features,
                "votes": tensor(len(self._layout.task.classes), np.float16),
            }),
            metadata=tfds.core.MetadataDict(metadata),
            disable_shuffling=True,  # the order of metadata.csv; training shuffles by (seed, epoch)
        )

    def _log_download_bytes(self) -> None:
        """Says nothing: nothing is downloaded, and data_dir is a folder that will have another name."""

    _log_download_done = _log_download_bytes

    def _entry(self, key: str) -> dict:
        extractor = self._layout.extractor(key)
        return {"width": self._sample[key].shape[1], **self._statistics.get(key, {}),
                **({"extractor": extractor} if extractor else {}), **self._fingerprint(key)}

    def _fingerprint(self, key: str) -> dict:
        return {"fingerprint": {split: found[key] for split, found in self._fingerprints.items() if found}}

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(names) for split, names in self._splits.items() if names}

    def _generate_examples(self, filenames: tuple[str, ...]):
        items = [(number, name, self._found.digests[name]) for number, name in enumerate(filenames)]
        if not self._on_beam:
            return (_example(item, self._layout, self._keys) for item in items)
        from data_prep import beam  # an extra

        return beam.each(_example, items, self._layout, self._keys)


def _example(item: tuple[int, str, dict[str, str]], layout: Layout, keys: tuple[str, ...]) -> tuple[int, dict]:
    """The number of a recording, by which records are in order, and its record.

    Raises UserError if its files no longer have the digests that the fingerprint covers.
    """
    number, filename, digests = item
    features, votes = layout.features(filename, keys), layout.votes(filename)
    if digests_of(features, votes) != digests:
        raise UserError(f"The files of {filename!r} in {layout.path} changed while the records were made: start again.")
    return number, {"filename": filename, "features": features, "votes": votes}


def training_statistics(layout: Layout, filenames: tuple[str, ...], keys: tuple[str, ...],
                        over: Callable = map) -> dict[str, dict]:
    """`column_statistics` over recordings, of each feature but audio, and of the `labels`.

    `over` is like `map`; data_prep.beam.over has workers do it.
    """
    keys = tuple(key for key in keys if key != reader.FEATURE)
    sums = list(over(functools.partial(_column_sums, layout=layout, keys=keys), filenames))
    return {key: column_statistics(each[key] for each in sums) for key in (*keys, identity.LABELS)}


Sums = tuple[int, np.ndarray, bool]  # rows; per column those of the values, their squares, levels and squares of these


def _column_sums(filename: str, layout: Layout, keys: tuple[str, ...]) -> dict[str, Sums]:
    features = layout.features(filename, keys) if keys else {}
    arrays = {**features, identity.LABELS: layout.votes(filename) > 0}
    return {key: column_sums(value) for key, value in arrays.items()}


def column_sums(value: np.ndarray) -> Sums:
    """What `column_statistics` needs of a (T, D) array; at last, whether nothing in it is negative."""
    value = value.astype(np.float64)
    decibels = power_to_db(value)
    sums = np.stack([value.sum(0), (value**2).sum(0), decibels.sum(0), (decibels**2).sum(0)])
    return len(value), sums, bool((value >= 0).all())


def column_statistics(sums: Iterable[Sums]) -> dict:
    """Width, and mean and standard deviation per column over all rows of some (T, D) arrays.

    For a power (nothing negative), also those of its level in decibels: `level_mean` and `level_std`.
    """
    all_rows, all_sums, powers = zip(*sums)
    frames, power = sum(all_rows), all(powers)
    mean, square, level_mean, level_square = sum(all_sums) / frames

    def deviation(square: np.ndarray, mean: np.ndarray) -> list[float]:
        # A column that never changes carries nothing: dividing by 1 leaves it at 0.
        variance = np.maximum(square - mean**2, 0)
        return np.where(variance > 1e-12, np.sqrt(variance), 1.0).tolist()

    found = {"width": len(mean), "mean": mean.tolist(), "std": deviation(square, mean)}
    if power:
        found |= {"level_mean": level_mean.tolist(), "level_std": deviation(level_square, level_mean)}
    return found
