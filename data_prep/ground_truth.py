"""`sedjax truth`: labels of a directory in MLPC layout -> ground truth for `sedjax score`, as segments or events."""

from collections.abc import Sequence

import numpy as np
from absl import flags

from sedjax.commands import cli
from sedjax.core import files, grid
from sedjax.data.layout import SPLITS, Layout, read_layout, read_splits
from sedjax.scoring.events import Event, frame_events, write_events
from sedjax.scoring.submission import write_submission


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Directory in MLPC layout.", required=True)
    flags.DEFINE_string("output", None, "CSV of segments to write; with the suffix .tsv, an event table in DCASE "
                                        "format.", required=True)
    flags.DEFINE_enum("split", None, SPLITS, "Split to write; all recordings if not given.")


def main(argv: Sequence[str]) -> None:
    cli.require_no_arguments(argv)
    options = flags.FLAGS
    files.require_writable(options.output)
    layout = read_layout(options.source)
    filenames = read_splits(layout)[options.split] if options.split else layout.filenames
    if options.output.endswith(".tsv"):
        write_events(options.output, {name: true_events(layout, name) for name in filenames})
    else:
        write_submission(options.output, layout.task, {name: true_segments(layout, name) for name in filenames})
    print(f"Wrote {len(filenames):,} recordings to {options.output}.")


def true_segments(layout: Layout, filename: str) -> np.ndarray:
    """(S, C) bool: the classes that any annotator marked in any frame of each segment."""
    return grid.any_frame(grid.pad_to_segments(layout.votes(filename) > 0, layout.task), layout.task)


def true_events(layout: Layout, filename: str) -> list[Event]:
    """The runs of frames in which any annotator marked a class."""
    return frame_events(layout.votes(filename) > 0, layout.task)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
