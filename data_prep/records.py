"""`sedjax records`: a directory in MLPC layout -> TFDS records."""

import functools
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import pydantic
from absl import flags

from sedjax.commands import cli
from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.data import host_tensorflow, identity
from sedjax.data.layout import Layout, read_layout, read_splits, read_task

from . import shards, staging
from .examination import Contents, read_contents

log = logging.getLogger("data_prep")


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Directory in MLPC layout.", required=True)
    flags.DEFINE_string("output", None, "Directory for the records.", required=True)
    flags.DEFINE_list("features", ["embeddings", "melspectrogram"], "Features to store; `audio` means the recordings.")
    flags.DEFINE_string("costs", None, "costs.json of the task; default: that of the source, else MLPC 2025.")
    flags.DEFINE_integer("split_seed", None, "Seed of a random split, instead of splits.csv; 42 gives the report's.")
    flags.DEFINE_bool("skip_bad", False, "Skip and list damaged recordings instead of stopping.")
    flags.DEFINE_bool("overwrite", False, "Replace the records in --output, if it holds nothing else.")
    flags.DEFINE_string("beam_options", None, "Run in Apache Beam pipelines with these options, such as "
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
    """Writes the records while it checks the source, whose recordings it reads once; the output is complete or absent.

    With `beam_options`, workers of an Apache Beam pipeline read and write; the records are the same.

    Raises UserError if the output exists or, with `overwrite`, holds anything but records; if it cannot be written; or
    if a recording is damaged and `skip_bad` is false.
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
    over = map
    if beam_options is not None:
        from . import beam  # an extra

        source = source.absolute()  # for workers elsewhere
        over = functools.partial(beam.over, folder=output.parent, options=beam_options)
    layout = read_layout(source, read_task(costs) if costs else None)
    splits = read_splits(layout, split_seed)
    contents = read_contents(layout, keys)
    if contents.problems:
        raise UserError(" ".join(contents.problems))
    if not contents.labelled:
        raise UserError(f"{source} has no labels: records are for training and evaluation; `sedjax predict` "
                        "works without labels.")
    with staging.staging(output) as folder:
        counts, skipped = _write(folder / staging.NEW, layout, contents, splits, over, skip_bad)
        staging.put(folder, output, functools.partial(_require_records, shown=output))
    print(f"Wrote {', '.join(f'{count} {split}' for split, count in counts.items())} recordings to {output}"
          f"{f'; {skipped} skipped' if skipped else ''}.")


def _write(folder: pathlib.Path, layout: Layout, contents: Contents, splits: dict[str, tuple[str, ...]],
           over: Callable, skip_bad: bool) -> tuple[dict[str, int], int]:
    """Writes the records to an empty folder; returns the number of recordings in each split and of those skipped.

    Raises UserError as `build` does.
    """
    plan = shards.plan(splits, folder)
    written: dict[str, list[shards.Written]] = {split: [] for split in splits}
    for shard, result in zip(plan, over(functools.partial(shards.write, layout=layout, contents=contents), plan)):
        written[shard.split].append(result)

    examined = {name: result for results in written.values() for shard in results
                for name, result in shard.examined.items()}
    problems = [" ".join(examined[name].problems) for name in layout.filenames if examined[name].problems]
    for problem in problems:
        log.warning("%s: %s", "Skipped" if skip_bad else "Damaged", problem)
    if problems and not skip_bad:
        raise UserError(f"{len(problems)} of {len(layout.filenames)} recordings in {layout.path} are damaged (listed "
                        f"above, first: {problems[0]}): repair them, or skip them with --skip_bad.")
    counts = {split: sum(len(shard.good) for shard in results) for split, results in written.items()}
    for split in ("train", "validation"):
        if not counts[split]:
            raise UserError(f"The split {split!r} of {layout.path} holds no usable recording.")
    if not counts["test"]:
        for shard in plan:
            if shard.split == "test":
                shard.path.unlink()
    shards.write_metadata(folder, layout, contents, written)
    return counts, len(problems)


class _Split(pydantic.BaseModel):
    name: str
    shardLengths: list[str]


class _Info(pydantic.BaseModel):
    """Content of dataset_info.json in our records."""

    name: Literal[identity.RECORDS_NAME]
    fileFormat: Literal["array_record"]
    splits: list[_Split]

    def files(self) -> set[str]:
        return {shards.file_name(split.name, number, len(split.shardLengths))
                for split in self.splits for number in range(len(split.shardLengths))}


def _require_storable(keys: tuple[str, ...]) -> None:
    """Raises UserError for feature names that records cannot store."""
    for key in keys:
        if not key or not key.isprintable() or "/" in key or key == identity.LABELS:
            raise UserError(f"--features: records cannot have a feature named {key!r}: rename it in the features "
                            "files.")


def _require_apart(output: pathlib.Path, source: pathlib.Path) -> None:
    """Raises UserError if `output` is the source, inside it, or a parent of it."""
    source = pathlib.Path(os.path.realpath(source))
    for inner, outer in ((output, source), (source, output)):
        # Not by name: a disk may ignore case, or be mounted at two paths.
        if any(os.path.exists(path) and os.path.samefile(path, outer) for path in (inner, *inner.parents)
               if os.path.exists(outer)):
            raise UserError(f"--output={output} would replace part of --source={source}: choose another "
                            "--output.")


def _require_replaceable(output: pathlib.Path) -> None:
    """Raises UserError unless `output` is a folder that holds only records."""
    if os.path.ismount(output):
        raise UserError(f"{output} cannot be replaced, since a disk is mounted there: choose a folder inside it.")
    _require_records(output, output)


def _require_records(folder: pathlib.Path, shown: pathlib.Path) -> None:
    """Raises UserError if `folder`, shown as `shown`, holds anything but records written by `build`."""
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
        raise UserError(f"{shown} does not hold intact records of sedjax, {advice} ({error})") from error
    known = {"dataset_info.json", "features.json", "metadata.json", *info.files()}
    if others := sorted(name for name, is_file in names.items() if name not in known or not is_file):
        raise UserError(f"{shown} holds {others[0]!r} besides records, {advice}.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
