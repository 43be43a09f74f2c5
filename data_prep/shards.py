"""TFDS records: shards, each written while its recordings are examined, and the metadata of the whole.

A record holds `filename`, `features/<key>` (T, D_k) and `votes` (T, C), the fraction of annotators that marked the
frame. `tfds.builder_from_directory` reads them without sedjax.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from sedjax.audio import reader
from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div
from sedjax.data import host_tensorflow, identity
from sedjax.data.layout import Layout

from .examination import Contents, Examined, examine
from .statistics import Sums, column_statistics, column_sums

SHARD_RECORDINGS = 256
MOST_SHARDS = 512  # per split, since readers keep a file open for each


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some recordings of a split, in order, and the file to write them to."""

    split: str
    filenames: tuple[str, ...]
    path: pathlib.Path


@dataclasses.dataclass
class Written:
    """Result of writing a shard.

    Attributes:
      examined: result of examining each recording; those without problems were written.
      sums: sums over the features (except audio) and labels of each of these, in the split "train".
      num_bytes: size of the records.
    """

    examined: dict[str, Examined] = dataclasses.field(default_factory=dict)
    sums: list[dict[str, Sums]] = dataclasses.field(default_factory=list)
    num_bytes: int = 0

    @property
    def good(self) -> dict[str, Examined]:
        return {filename: result for filename, result in self.examined.items() if not result.problems}


def file_name(split: str, number: int, count: int) -> str:
    """Name of the file of shard `number` of `count`, as TFDS expects it."""
    return f"{identity.RECORDS_NAME}-{split}.array_record-{number:05d}-of-{count:05d}"


def plan(splits: Mapping[str, Sequence[str]], folder: pathlib.Path) -> list[Shard]:
    """Divides the recordings of each split into shards."""
    shards = []
    for split, names in splits.items():
        count = min(ceil_div(len(names), SHARD_RECORDINGS), MOST_SHARDS)
        for number in range(count):
            start, stop = len(names) * number // count, len(names) * (number + 1) // count
            shards.append(Shard(split, tuple(names[start:stop]), folder / file_name(split, number, count)))
    return shards


def write(shard: Shard, layout: Layout, contents: Contents) -> Written:
    """Examines the recordings of a shard, each read once, and writes those without problems.

    Raises UserError if the file cannot be written.
    """
    host_tensorflow.load()
    import tensorflow_datasets as tfds

    written, form = Written(), _record_form(layout, contents)

    def records() -> Iterator[tuple[str, bytes]]:
        for filename in tqdm(shard.filenames, shard.path.name, disable=None, leave=False):
            result, features, votes = examine(filename, layout, contents)
            written.examined[filename] = result
            if result.problems:
                continue
            if shard.split == "train":
                columns = {key: value for key, value in features.items() if key != reader.FEATURE}
                written.sums.append({key: column_sums(value) for key, value in
                                     {**columns, identity.LABELS: votes > 0}.items()})
            record = form.serialize_example({"filename": filename, "features": features, "votes": votes})
            written.num_bytes += len(record)
            yield filename, record

    with files.atomic_output(shard.path, ours=True) as temporary:  # Beam may start a shard twice
        try:
            tfds.core.ExampleWriter(tfds.core.FileFormat.ARRAY_RECORD).write(temporary, records())
        except RuntimeError as error:  # of array_record, for a full disk among others
            raise UserError(f"Cannot write {shard.path}: {error}.") from error
    return written


def write_metadata(folder: pathlib.Path, layout: Layout, contents: Contents,
                   written: Mapping[str, Sequence[Written]]) -> None:
    """Writes the metadata of the shards of each split in a folder.

    Besides that of TFDS, it holds the task and, for each feature and the labels, the width, the statistics of the
    training frames (not for audio, whose columns are single samples), the fingerprint of each split, and the extractor
    if known.
    """
    import tensorflow_datasets as tfds

    good = {split: {filename: result for shard in shards for filename, result in shard.good.items()}
            for split, shards in written.items()}
    sums = [recording for shard in written["train"] for recording in shard.sums]
    statistics = {key: column_statistics(recording[key] for recording in sums) for key in sums[0]}
    fingerprints = {split: identity.split_fingerprints(
        layout.task, {filename: result.digests for filename, result in results.items()})
        for split, results in good.items() if results}
    layout = dataclasses.replace(layout, filenames=tuple(
        filename for filename in layout.filenames if any(filename in results for results in good.values())))

    def entry(key: str) -> dict:
        return {"width": contents.kinds[key][0], **statistics.get(key, {}),
                **({"extractor": extractor} if (extractor := layout.extractor(key)) else {}), **fingerprint(key)}

    def fingerprint(key: str) -> dict:
        return {"fingerprint": {split: prints[key] for split, prints in fingerprints.items()}}

    metadata = {
        "task": layout.task.to_json(),
        "lengths": {split: [result.frames for result in results.values()] for split, results in good.items()},
        "features": {key: entry(key) for key in contents.keys},
        "labels": {**statistics[identity.LABELS], **fingerprint(identity.LABELS)},
    }
    metadata["checksum"] = identity.checksum(metadata)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_record_form(layout, contents),
        split_infos=[tfds.core.SplitInfo(name=split, shard_lengths=[len(shard.good) for shard in shards],
                                         num_bytes=sum(shard.num_bytes for shard in shards))
                     for split, shards in written.items() if good[split]],
        check_data=False,  # by tf.data, which does not read this format
        description=f"Sound event detection: {layout.task.name}.",
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,  # the order of metadata.csv; training shuffles by (seed, epoch)
    )


def _record_form(layout: Layout, contents: Contents):
    """The tfds.features.FeaturesDict of a record."""
    import tensorflow_datasets as tfds

    def tensor(width: int, dtype: str) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(None, width), dtype=np.dtype(dtype), encoding="bytes")

    return tfds.features.FeaturesDict({
        "filename": tfds.features.Text(),
        "features": {key: tensor(*kind) for key, kind in contents.kinds.items()},
        "votes": tensor(len(layout.task.classes), "float16"),
    })
