"""The TFDS builder: one record per recording, readable by `tfds.builder_from_directory` without sedjax."""


import numpy as np
import tensorflow_datasets as tfds

from sedjax.core.errors import UserError
from sedjax.data import identity
from sedjax.data.layout import Layout

from .check import Survey, digests_of


class SedRecords(tfds.core.GeneratorBasedBuilder):
    """TFDS records of the recordings in a directory in MLPC layout.

    A record holds `filename`, `features/<key>` (T, D_k) and `votes` (T, C): the fraction of annotators that marked the
    frame. The dataset's metadata holds the task and, for each feature and the labels, the width, the statistics of the
    training frames (not for audio, whose columns are single samples), the fingerprint of each split, and the extractor
    if known.

    Args:
      layout: the source directory.
      splits: recordings of each split, in the order of the records.
      keys: keys of the features to store.
      found: result of `check.survey`; the recordings must not have changed since.
      statistics: statistics of the training frames, from `statistics.column_statistics`.
      fingerprints: fingerprints of each split, from `identity.split_fingerprints`.
      on_beam: whether workers of a Beam pipeline read the recordings; the records are the same.
      data_dir: directory to write to.
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
        """Logs nothing: nothing is downloaded, and data_dir is a folder that will be renamed."""

    _log_download_done = _log_download_bytes

    def _entry(self, key: str) -> dict:
        extractor = self._layout.extractor(key)
        return {"width": self._sample[key].shape[1], **self._statistics.get(key, {}),
                **({"extractor": extractor} if extractor else {}), **self._fingerprint(key)}

    def _fingerprint(self, key: str) -> dict:
        return {"fingerprint": {split: prints[key] for split, prints in self._fingerprints.items() if prints}}

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(names) for split, names in self._splits.items() if names}

    def _generate_examples(self, filenames: tuple[str, ...]):
        items = [(number, name, self._found.digests[name]) for number, name in enumerate(filenames)]
        if not self._on_beam:
            return (_example(item, self._layout, self._keys) for item in items)
        from . import beam  # an extra

        return beam.each(_example, items, self._layout, self._keys)


def _example(item: tuple[int, str, dict[str, str]], layout: Layout, keys: tuple[str, ...]) -> tuple[int, dict]:
    """The key (the number of the recording, which defines the order) and content of a record.

    Raises UserError if its files no longer have the digests that the fingerprint covers.
    """
    number, filename, digests = item
    features, votes = layout.features(filename, keys), layout.votes(filename)
    if digests_of(features, votes) != digests:
        raise UserError(f"The files of {filename!r} in {layout.path} changed during the build: start again.")
    return number, {"filename": filename, "features": features, "votes": votes}
