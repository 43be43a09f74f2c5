"""`python -m data_prep.build_records`: a directory in MLPC layout -> TFDS records."""

import functools
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

from absl import flags

from data_prep.layout import survey
from sedjax import commands
from sedjax.errors import UserError
from sedjax.layout import read_layout, read_splits
from sedjax.task import read_task

log = logging.getLogger("data_prep")


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Directory in MLPC layout.", required=True)
    flags.DEFINE_string("output", None, "Directory for the records.", required=True)
    flags.DEFINE_list("features", ["embeddings", "melspectrogram"], "Features to store; `audio`: the recordings.")
    flags.DEFINE_string("costs", None, "Task: costs.json; that of the source, else MLPC 2025, if not given.")
    flags.DEFINE_integer("split_seed", None, "Split by this seed instead of splits.csv; 42 is the report's split.")
    flags.DEFINE_bool("skip_bad", False, "Leave damaged recordings out, and list them, instead of stopping.")
    flags.DEFINE_bool("overwrite", False, "Replace the output if it exists.")
    flags.DEFINE_string("beam_options", None, "Work in Apache Beam pipelines with these options, such as "
                                              "\"--runner=FlinkRunner --flink_master=HOST:8081\".")


def main(argv: Sequence[str]) -> None:
    commands.require_no_arguments(argv)
    options = flags.FLAGS
    build(commands.file_path(options.source), commands.file_path(options.output), tuple(options.features),
          costs=options.costs, split_seed=options.split_seed, skip_bad=options.skip_bad, overwrite=options.overwrite,
          beam_options=options.beam_options)


def build(source: pathlib.Path, output: pathlib.Path, keys: tuple[str, ...], *, costs: str | None = None,
          split_seed: int | None = None, skip_bad: bool = False, overwrite: bool = False,
          beam_options: str | None = None) -> None:
    """Checks the whole source, then writes the records; the output is complete or not there.

    With `beam_options`, workers of Apache Beam pipelines read and write; the records are the same.

    Raises UserError if the output exists, if nothing can be written, or for a damaged recording without skip_bad.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already: choose another --output, or replace it with --overwrite.")
    over, pipeline_options = map, None
    if beam_options is not None:
        from data_prep import beam  # an extra

        source, output = source.absolute(), output.absolute()  # for workers elsewhere
        over = functools.partial(beam.over, folder=output.parent, options=beam_options)
        pipeline_options = beam.pipeline_options(beam_options)
    layout = read_layout(source, read_task(costs) if costs else None)
    splits = read_splits(layout, split_seed)
    found = survey(layout, keys, over)
    if found.general:
        raise UserError(" ".join(found.general))
    if not found.labelled:
        raise UserError(f"{source} has no labels: records are for training and evaluation; `python -m sedjax predict` "
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

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds  # slow to import; the checks above need none of it

    from data_prep.builder import SedRecords, training_statistics

    tfds.display_progress_bar(os.isatty(2))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        statistics = training_statistics(layout, splits["train"], keys, over)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
            builder = SedRecords(layout, splits, keys, found.frames, statistics, on_beam=beam_options is not None,
                                 data_dir=temporary, file_format="array_record")
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=pipeline_options))
            if output.exists():
                shutil.rmtree(output)
            shutil.move(builder.data_path, output)
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error
    counts = ", ".join(f"{len(names)} {split}" for split, names in splits.items())
    left_out = f"; {len(found.problems)} left out" if found.problems else ""
    print(f"Wrote {counts} recordings to {output}{left_out}.")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
