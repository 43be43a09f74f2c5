"""`sedjax records`: a directory in MLPC layout -> TFDS records."""

import functools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Literal

import pydantic
from absl import flags

from data_prep import staging
from data_prep.check import survey
from sedjax.commands import cli
from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.data import host_tensorflow, identity
from sedjax.data.layout import read_layout, read_splits, read_task

log = logging.getLogger("data_prep")


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Directory in MLPC layout.", required=True)
    flags.DEFINE_string("output", None, "Directory for the records.", required=True)
    flags.DEFINE_list("features", ["embeddings", "melspectrogram"], "Features to store; `audio`: the recordings.")
    flags.DEFINE_string("costs", None, "Task: costs.json; that of the source, else MLPC 2025, if not given.")
    flags.DEFINE_integer("split_seed", None, "Split by this seed instead of splits.csv; 42 is the report's split.")
    flags.DEFINE_bool("skip_bad", False, "Leave damaged recordings out, and list them, instead of stopping.")
    flags.DEFINE_bool("overwrite", False, "Replace the records in the output, if it holds nothing else.")
    flags.DEFINE_string("beam_options", None, "Work in Apache Beam pipelines with these options, such as "
                                              "\"--runner=FlinkRunner --flink_master=HOST:8081\".")


def main(argv: Sequence[str]) -> None:
    cli.require_no_arguments(argv)
    options = flags.FLAGS
    build(cli.file_path(options.source), cli.file_path(options.output), tuple(options.features),
          costs=options.costs, split_seed=options.split_seed, skip_bad=options.skip_bad, overwrite=options.overwrite,
          beam_options=options.beam_options)


def build(source: pathlib.Path, output: pathlib.Path, keys: tuple[str, ...], *, costs: str | None = None,
          split_seed: int | None = None, skip_bad: bool = False, overwrite: bool = False,
          beam_options: str | None = None) -> None:
    """Checks the whole source, then writes the records; the output is complete or not there.

    With `beam_options`, workers of Apache Beam pipelines read and write; the records are the same.

    Raises UserError if the output exists, or with `overwrite` holds anything but records; if nothing can be written; or
    for a damaged recording without skip_bad.
    """
    _require_storable(keys)
    host_tensorflow.require()
    source, output = pathlib.Path(source), pathlib.Path(os.path.realpath(output))
    if overwrite:
        _require_apart(output, source)
    if os.path.lexists(output):
        if not overwrite:
            raise UserError(f"{output} exists already: choose another --output, or replace it with --overwrite.")
        _require_replaceable(output)
    over, pipeline_options = map, None
    if beam_options is not None:
        from data_prep import beam  # an extra

        source = source.absolute()  # for workers elsewhere
        over = functools.partial(beam.over, folder=output.parent, options=beam_options)
        pipeline_options = beam.pipeline_options(beam_options)
    layout = read_layout(source, read_task(costs) if costs else None)
    splits = read_splits(layout, split_seed)
    found = survey(layout, keys, over)
    if found.general:
        raise UserError(" ".join(found.general))
    if not found.labelled:
        raise UserError(f"{source} has no labels: records are for training and evaluation; `sedjax predict` "
                        "needs none.")
    for problem in found.problems.values():
        log.warning("%s: %s", "Left out" if skip_bad else "Damaged", problem)
    if found.problems and not skip_bad:
        raise UserError(f"{len(found.problems)} of {len(layout.filenames)} recordings in {source} are damaged (listed "
                        f"above, the first: {next(iter(found.problems.values()))}): mend them, or leave them out "
                        "with --skip_bad.")
    splits = {split: tuple(name for name in names if name in found.frames) for split, names in splits.items()}
    empty = [split for split in ("train", "validation") if not splits[split]]
    if empty:
        raise UserError(f"The split {empty[0]!r} of {source} holds no usable recording.")

    fingerprints = {split: identity.split_fingerprints(layout.task, {name: found.digests[name] for name in names})
                    for split, names in splits.items()}

    host_tensorflow.load()
    import tensorflow_datasets as tfds  # slow to import; the checks above need none of it

    from data_prep.builder import SedRecords, training_statistics

    tfds.display_progress_bar(os.isatty(2))
    try:
        with staging.staging(output) as folder:
            statistics = training_statistics(layout, splits["train"], keys, over)
            builder = SedRecords(layout, splits, keys, found, statistics, fingerprints,
                                 on_beam=beam_options is not None, data_dir=folder / staging.NEW,
                                 file_format="array_record")
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=pipeline_options))
            staging.put(folder, pathlib.Path(builder.data_path), output,
                        functools.partial(_require_records, shown=output))
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error
    counts = ", ".join(f"{len(names)} {split}" for split, names in splits.items())
    left_out = f"; {len(found.problems)} left out" if found.problems else ""
    print(f"Wrote {counts} recordings to {output}{left_out}.")


class _Split(pydantic.BaseModel):
    name: str
    shardLengths: list[str]


class _Info(pydantic.BaseModel):
    """What dataset_info.json of our records holds."""

    name: Literal[identity.RECORDS_NAME]
    fileFormat: Literal["array_record"]
    splits: list[_Split]

    def files(self) -> set[str]:
        return {f"{identity.RECORDS_NAME}-{split.name}.array_record-{number:05d}-of-{len(split.shardLengths):05d}"
                for split in self.splits for number in range(len(split.shardLengths))}


def _require_storable(keys: tuple[str, ...]) -> None:
    """Raises UserError for names of features that records cannot have."""
    for key in keys:
        if not key or not key.isprintable() or "/" in key or key == identity.LABELS:
            raise UserError(f"--features: records cannot have a feature called {key!r}: give it another name in the "
                            "features files.")


def _require_apart(output: pathlib.Path, source: pathlib.Path) -> None:
    """Raises UserError if `output` is the source, in it, or above it."""
    source = pathlib.Path(os.path.realpath(source))
    for inner, outer in ((output, source), (source, output)):
        # Not by name: a disk may not tell upper from lower case, or be there under two paths.
        if any(os.path.exists(path) and os.path.samefile(path, outer) for path in (inner, *inner.parents)
               if os.path.exists(outer)):
            raise UserError(f"--output={output} would replace what is part of --source={source}: choose another "
                            "--output.")


def _require_replaceable(output: pathlib.Path) -> None:
    """Raises UserError unless `output` is a folder of records and nothing else."""
    if os.path.ismount(output):
        raise UserError(f"{output} cannot be replaced: a disk is mounted there; choose a folder in it.")
    _require_records(output, output)


def _require_records(folder: pathlib.Path, shown: pathlib.Path) -> None:
    """Raises UserError if `folder`, called `shown`, holds anything but records that `build` wrote."""
    advice = "so --overwrite does not replace it: choose another --output, or move it away"
    if not folder.is_dir():
        raise UserError(f"{shown} is not a folder of records, {advice}.")
    try:
        names = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(folder)}
        if not names:
            return
        info = files.read_json(folder / "dataset_info.json", _Info)
        identity.read_metadata(folder)
    except (OSError, UserError) as error:
        raise UserError(f"{shown} does not hold records of sedjax, or damaged ones, {advice} ({error})") from error
    known = {"dataset_info.json", "features.json", "metadata.json", *info.files()}
    if others := sorted(name for name, is_file in names.items() if name not in known or not is_file):
        raise UserError(f"{shown} holds {others[0]!r} besides records, {advice}.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
