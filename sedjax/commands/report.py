"""`sedjax report WORKDIR...`: compares trained models in a table and figures."""

import pathlib
from collections.abc import Sequence

from absl import flags

from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.studies import report
from sedjax.studies.results import collect


def define_flags() -> None:
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to report results on.")
    flags.DEFINE_string("output", None, "Folder for index.md and the figures. Default: `report` in the first "
                                        "workdir.")


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise UserError("report needs one or more workdirs: sedjax report WORKDIR...")
    split, folder = flags.FLAGS.split, pathlib.Path(flags.FLAGS.output or pathlib.Path(argv[1]) / "report")
    files.require_makeable(folder)
    for name in (report.PAGE, *report.FIGURES):
        files.require_replaceable(folder / name)
    systems = collect(argv[1:], split)
    path = report.write(systems, split, folder)
    print(report.systems_table(systems, split) + f"\n\nWrote {path}.")
