"""`sedjax report WORKDIR...`: compares trained models in a table and figures."""

import pathlib
from collections.abc import Sequence

from absl import flags

from sedjax.core import files
from sedjax.core.errors import UserError
from sedjax.studies import report
from sedjax.studies.results import collect

FIGURES = {"validation_cost": "Validation cost by epoch", "loss": "Training and validation loss by epoch",
           "class_costs": "Cost by class"}


def define_flags() -> None:
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to report results on.")
    flags.DEFINE_string("output", None, "Folder for index.md and the figures. Default: `report` in the first "
                                        "workdir.")


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise UserError("report needs one or more workdirs: sedjax report WORKDIR...")
    split, folder = flags.FLAGS.split, pathlib.Path(flags.FLAGS.output or pathlib.Path(argv[1]) / "report")
    files.require_makeable(folder)
    report.require_replaceable(folder, FIGURES)
    systems = {run.name: [run] for run in collect(argv[1:], split)}
    figures = {name: report.Figure(title, name, tuple(systems)) for name, title in FIGURES.items()}
    path = report.write(folder, systems, split, figures)
    print(report.table(systems, split) + f"\n\nWrote {path}.")
