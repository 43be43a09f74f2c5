"""The TFDS builder: one record a recording, readable by `tfds.builder_from_directory` without sedjax."""

from collections.abc import Iterable

import numpy as np
import tensorflow_datasets as tfds

from sedjax import audio
from sedjax.frontend import level
from sedjax.layout import Layout


class SedRecords(tfds.core.GeneratorBasedBuilder):
    """Records of recordings in MLPC layout.

    A record holds `filename`, `features/<key>` (T, D_k) and `votes` (T, C): the fraction of annotators that marked the
    frame. The dataset's metadata holds the task, and per feature, and for the labels, the width and the statistics
    of the training frames; of audio, whose columns are one sample each, the width only. Embeddings name their
    extractor, if it is known.

    Args:
      layout: where the recordings are.
      splits: recordings of each split, in the order in which they are stored.
      keys: features to store.
      frames: number of frames of each recording.
      on_beam: whether workers of a Beam pipeline read the recordings; the records are the same.
      data_dir: where to write.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "sed_records"

    def __init__(self, layout: Layout, splits: dict[str, tuple[str, ...]], keys: tuple[str, ...],
                 frames: dict[str, int], on_beam: bool = False, **kwargs):
        self._layout, self._splits, self._keys, self._frames = layout, splits, keys, frames
        self._on_beam = on_beam
        self._sample = layout.features(next(f for names in splits.values() for f in names), keys)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        def tensor(width: int, dtype) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(None, width), dtype=dtype, encoding="bytes")

        features = {key: tensor(value.shape[1], value.dtype) for key, value in self._sample.items()}
        train = self._splits["train"]
        metadata = tfds.core.MetadataDict(
            task=self._layout.task.to_json(),
            lengths={split: [self._frames[name] for name in names] for split, names in self._splits.items()},
            features={key: self._entry(key, train) for key in self._keys},
            labels=column_statistics(self._layout.votes(name) > 0 for name in train),
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

    def _entry(self, key: str, train: tuple[str, ...]) -> dict:
        if key == audio.FEATURE:
            return {"width": self._sample[key].shape[1]}
        entry = column_statistics(self._layout.features(name, (key,))[key] for name in train)
        extractor = self._layout.extractor(key)
        return entry | {"extractor": extractor} if extractor else entry

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


def column_statistics(arrays: Iterable[np.ndarray]) -> dict:
    """Width, and mean and standard deviation per column over all rows of some (T, D) arrays.

    For a power (nothing negative), also those of its level in decibels: `level_mean` and `level_std`.
    """
    frames, sums, power = 0, 0.0, True
    for value in arrays:
        value = value.astype(np.float64)
        power = power and bool((value >= 0).all())
        decibels = level(value)
        sums = sums + np.stack([value.sum(0), (value**2).sum(0), decibels.sum(0), (decibels**2).sum(0)])
        frames += len(value)
    mean, square, level_mean, level_square = sums / frames

    def deviation(square: np.ndarray, mean: np.ndarray) -> list[float]:
        # A column that never changes carries nothing: dividing by 1 leaves it at 0.
        variance = np.maximum(square - mean**2, 0)
        return np.where(variance > 1e-12, np.sqrt(variance), 1.0).tolist()

    found = {"width": len(mean), "mean": mean.tolist(), "std": deviation(square, mean)}
    if power:
        found |= {"level_mean": level_mean.tolist(), "level_std": deviation(level_square, level_mean)}
    return found
