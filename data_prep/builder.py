"""The TFDS builder: one record a recording, readable by `tfds.builder_from_directory` without sedjax."""

import functools
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow_datasets as tfds

from sedjax import audio
from sedjax.frontend import level
from sedjax.layout import Layout


class SedRecords(tfds.core.GeneratorBasedBuilder):
    """Records of recordings in MLPC layout.

    A record holds `filename`, `features/<key>` (T, D_k) and `votes` (T, C): the fraction of annotators that marked the
    frame. The dataset's metadata holds the task, and per feature, and for the labels, the width and the statistics
    of the training frames; of audio, whose columns are one sample each, the width only. Each names what
    computed it, if that is known.

    Args:
      layout: where the recordings are.
      splits: recordings of each split, in the order in which they are stored.
      keys: features to store.
      frames: number of frames of each recording.
      statistics: of the training frames, from `training_statistics`.
      on_beam: whether workers of a Beam pipeline read the recordings; the records are the same.
      data_dir: where to write.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "sed_records"

    def __init__(self, layout: Layout, splits: dict[str, tuple[str, ...]], keys: tuple[str, ...],
                 frames: dict[str, int], statistics: dict[str, dict], on_beam: bool = False, **kwargs):
        self._layout, self._splits, self._keys, self._frames = layout, splits, keys, frames
        self._statistics, self._on_beam = statistics, on_beam
        self._sample = layout.features(next(f for names in splits.values() for f in names), keys)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        def tensor(width: int, dtype) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(None, width), dtype=dtype, encoding="bytes")

        features = {key: tensor(value.shape[1], value.dtype) for key, value in self._sample.items()}
        metadata = tfds.core.MetadataDict(
            task=self._layout.task.to_json(),
            lengths={split: [self._frames[name] for name in names] for split, names in self._splits.items()},
            features={key: self._entry(key) for key in self._keys},
            labels=self._statistics["labels"],
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Sound event detection: {self._layout.task.name}.",
            features=tfds.features.FeaturesDict({
                "filename": tfds.features.Text(),
                "features": features,
                "votes": tensor(len(self._layout.task.classes), np.float16),
            }),
            metadata=metadata,
            disable_shuffling=True,  # the order of metadata.csv; training shuffles by (seed, epoch)
        )

    def _entry(self, key: str) -> dict:
        extractor = self._layout.extractor(key)
        return {"width": self._sample[key].shape[1], **self._statistics.get(key, {}),
                **({"extractor": extractor} if extractor else {})}

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(names) for split, names in self._splits.items() if names}

    def _generate_examples(self, filenames: tuple[str, ...]):
        if not self._on_beam:
            return (_example(numbered, self._layout, self._keys) for numbered in enumerate(filenames))
        from data_prep import beam  # an extra

        return beam.each(_example, list(enumerate(filenames)), self._layout, self._keys)


def _example(numbered: tuple[int, str], layout: Layout, keys: tuple[str, ...]) -> tuple[int, dict]:
    """The number of a recording, by which records are in order, and its record."""
    number, filename = numbered
    return number, {"filename": filename, "features": layout.features(filename, keys), "votes": layout.votes(filename)}


def training_statistics(layout: Layout, filenames: tuple[str, ...], keys: tuple[str, ...],
                        over: Callable = map) -> dict[str, dict]:
    """`column_statistics` over recordings, of each feature but audio, and of the `labels`.

    `over` is like `map`; data_prep.beam.over has workers do it.
    """
    keys = tuple(key for key in keys if key != audio.FEATURE)
    sums = list(over(functools.partial(_column_sums, layout=layout, keys=keys), filenames))
    return {key: column_statistics(each[key] for each in sums) for key in (*keys, "labels")}


Sums = tuple[int, np.ndarray, bool]  # rows; per column those of the values, their squares, levels and squares of these


def _column_sums(filename: str, layout: Layout, keys: tuple[str, ...]) -> dict[str, Sums]:
    features = layout.features(filename, keys) if keys else {}
    return {key: column_sums(value) for key, value in {**features, "labels": layout.votes(filename) > 0}.items()}


def column_sums(value: np.ndarray) -> Sums:
    """What `column_statistics` needs of a (T, D) array; at last, whether nothing in it is negative."""
    value = value.astype(np.float64)
    decibels = level(value)
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
