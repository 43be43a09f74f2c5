"""Compares systems trained with several seeds: a table, verdicts and figures."""

import dataclasses
import os
import pathlib
from collections.abc import Container, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from sedjax.core import files
from sedjax.core.bounds import without_controls
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.core.files import atomic_output
from sedjax.core.version import __version__
from sedjax.data import identity
from sedjax.scoring import metrics
from sedjax.studies import report, results
from sedjax.studies.results import System, same_recordings
from sedjax.training import workdir
from sedjax.training.progress import is_finished

SPLITS = ("validation", "test")
DRAW = {"validation_cost": report.draw_validation_cost, "loss": report.draw_losses,
        "class_costs": report.draw_class_costs}


@dataclasses.dataclass(frozen=True)
class Row:
    """One system of a study.

    Attributes:
      name: name of its folder.
      title: display name.
      parent: name of the system it is compared with; "" for none.
      published: verdict of the reproduced study against the parent: "better", "worse", "no difference" or "".
      seeds: seeds of its runs.
      config: config of its runs.
    """

    name: str
    title: str
    parent: str
    published: str
    seeds: tuple[int, ...]
    config: Config


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of some systems on the validation split; `show` is a key of DRAW."""

    title: Annotated[str, AfterValidator(without_controls)]
    show: Literal["validation_cost", "loss", "class_costs"]
    systems: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A system against its parent on the test split, both averaged over seeds.

    Attributes:
      difference: difference in cost per minute; negative is better.
      interval: 95 % interval from metrics.difference_interval.
      note: limitation of the interval if a trained system has a single run, else "".
    """

    difference: float
    interval: tuple[float, float]
    note: str = ""

    @property
    def verdict(self) -> str:
        low, high = self.interval
        return "better" if high < 0 else "worse" if low > 0 else "no evidence"


def run_name(row: Row, seed: int) -> str:
    """The folder of a run, relative to that of its study."""
    return os.path.join(row.name, f"seed{seed}")


def compare(runs: Sequence[System], baseline: Sequence[System]) -> Comparison:
    """Compares the runs of two systems. Raises UserError if they were evaluated on different recordings."""
    if not same_recordings([*runs, *baseline]):
        raise UserError(f"{runs[0].name!r} and {baseline[0].name!r} were not evaluated on the same recordings.")
    sides = [list(runs), list(baseline)]
    if max(map(len, sides)) > 1:  # the naive system does not depend on the seed: count its run twice
        sides = [side * 2 if len(side) == 1 and side[0].naive else side for side in sides]
    interval = metrics.difference_interval(*(np.stack([run.counts for run in side]) for side in sides), runs[0].task)
    note = ("", "one run, spread of the other's", "recordings only")[sum(len(side) == 1 for side in sides)]
    return Comparison(float(np.mean([run.cost for run in runs]) - np.mean([run.cost for run in baseline])), interval,
                      note)


def agreement(found: str, published: str) -> str:
    """Relation of a verdict to a published one; no evidence does not prove that there is no difference."""
    if not published:
        return ""
    if found == "no evidence":
        return "no contradiction" if published == "no difference" else "not confirmed"
    return "confirmed" if found == published else "contradicted"


def require_same(config: Config, folder: pathlib.Path) -> None:
    """Raises UserError if the finished run in a folder has another config, or other records than the current ones.

    If the records no longer exist, only the config is compared: evaluations may be cached.
    """
    if identity.has_records(config.data.path):
        metadata = identity.read_metadata(config.data.path)
        workdir.require_same(folder, config, metadata.task, metadata.entries)
        workdir.update(folder, config)
    else:
        workdir.require_same_config(folder, config)


def collect(rows: Sequence[Row], folder: pathlib.Path, split: str,
            left_out: Container[str] = ()) -> dict[str, list[System]]:
    """The finished runs by row name, with the row's title as system name; rows without finished runs are left out.

    `left_out` has the run_name of runs to ignore.
    """
    systems = {}
    for row in rows:
        folders = [folder / run_name(row, seed) for seed in row.seeds if run_name(row, seed) not in left_out]
        if finished := [path for path in folders if is_finished(path)]:
            systems[row.name] = [dataclasses.replace(system, name=row.title)
                                 for system in results.collect(finished, split)]
    return systems


def require_replaceable(figures: dict[str, Figure], folder: pathlib.Path) -> None:
    """Raises UserError if `write` would replace a file that sedjax did not write."""
    for name in (report.PAGE, *(f"{name}.png" for name in figures)):
        files.require_replaceable(folder / "report" / name)


def write(rows: Sequence[Row], figures: dict[str, Figure], folder: pathlib.Path,
          problems: dict[str, str]) -> pathlib.Path:
    """Writes report/index.md and its figures to the folder of a study, and returns the path of the page.

    Args:
      rows: all systems of the study.
      figures: figures by file name without suffix.
      folder: folder of the study.
      problems: reasons why runs are missing or ignored, by run_name.

    Raises:
      UserError: no run is finished, or the files cannot be written.
    """
    validation, test = (collect(rows, folder, split, problems) for split in SPLITS)
    if not test:
        raise UserError(f"No run in {folder} is finished" + (f": {'; '.join(problems.values())}." if problems else "."))
    output = files.make_folder(folder / "report")
    pictures = []
    for name, figure in figures.items():
        systems = [system for key in figure.systems for system in validation.get(key, [])]
        if {key for key in figure.systems if key in validation} == set(figure.systems):
            DRAW[figure.show](systems, output / f"{name}.png")
            pictures.append(f"### {figure.title}\n\n![{figure.title}]({name}.png)")
        else:
            pictures.append(f"### {figure.title}\n\nNot drawn: some of its systems have no finished run.")
    first = next(iter(test.values()))[0]
    seeds = sorted({len(runs) for runs in test.values()})
    missing = "\n".join(f"- `{name}`: {text}" for name, text in problems.items())
    text = f"""# {first.task.name}: {len(rows)} systems

Cost per minute (lower is better) on {len(first.counts):,} test recordings, at the checkpoint with the lowest
validation cost; mean and standard deviation over {" or ".join(map(str, seeds))} seeds. Differences are to the parent
system on the test split; their 95 % interval is a t interval over recordings and seeds, and a verdict needs an interval
that excludes 0. A trained system with one run is assumed to have the other system's spread between seeds; if neither
has several runs, the interval covers recordings only. Made by sedjax {__version__}.

{table(rows, validation, test)}

{f"Missing runs:{chr(10)}{chr(10)}{missing}{chr(10)}" if missing else "No run is missing."}

## Figures

Dots mark the best checkpoints; each line is a run, and the runs of a system share a colour.

{(chr(10) * 2).join(pictures)}

## Cost of each class

Mean over the seeds, on the test split.

{class_table(rows, test)}
"""
    with atomic_output(output / report.PAGE) as path:
        path.write_text(text, encoding="utf-8")
    return output / report.PAGE


def table(rows: Sequence[Row], validation: dict[str, list[System]], test: dict[str, list[System]]) -> str:
    """One Markdown row per system, including those without a run."""
    titles = {row.name: row.title for row in rows}
    lines = [["system", "against", "verdict", "published", "the published verdict is", "parameters", "validation",
              "test", "difference", "95 % interval", "training (s)"]]
    for row in rows:
        line = [row.title, titles.get(row.parent, ""), "", row.published]
        if row.name not in test:
            lines.append([*line, "not run", *[""] * 6])
            continue
        runs = test[row.name]
        costs = [spread([run.validation_cost[run.best] for run in validation[row.name]]),
                 spread([run.cost for run in runs])]
        compared = ["", ""]
        if row.parent in test:
            comparison = compare(runs, test[row.parent])
            line[2] = comparison.verdict
            note = f" ({comparison.note})" if comparison.note else ""
            compared = [f"{comparison.difference:+.2f}", "{:+.2f} to {:+.2f}".format(*comparison.interval) + note]
        seconds = [run.seconds for run in runs if run.seconds is not None]
        lines.append([*line, agreement(line[2], row.published) if line[2] else "", f"{runs[0].parameters:,}", *costs,
                      *compared, f"{np.mean(seconds):,.0f}" if seconds else ""])
    return report.markdown(lines, text_columns=5)


def class_table(rows: Sequence[Row], test: dict[str, list[System]]) -> str:
    """One Markdown row per system, one column per class."""
    classes = next(iter(test.values()))[0].task.classes
    lines = [["system", *classes]]
    for row in rows:
        if runs := test.get(row.name):
            lines.append([row.title, *(f"{np.mean([run.class_costs[name] for run in runs]):.2f}" for name in classes)])
    return report.markdown(lines, text_columns=1)


def spread(values: Sequence[float]) -> str:
    """Mean and, for several values, standard deviation."""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
