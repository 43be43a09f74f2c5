"""Comparison of systems that were trained with several seeds: a table, verdicts and figures."""

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
      name: of its folder.
      title: for people.
      parent: name of the system that it is compared with; "" for none.
      published: what the study that is repeated says against the parent: "better", "worse", "no difference" or "".
      seeds: of its runs.
      config: of its runs.
    """

    name: str
    title: str
    parent: str
    published: str
    seeds: tuple[int, ...]
    config: Config


@dataclasses.dataclass(frozen=True)
class Figure:
    """Some systems in one picture; `show` is one of DRAW, "class_costs" being those on the validation split."""

    title: Annotated[str, AfterValidator(without_controls)]
    show: Literal["validation_cost", "loss", "class_costs"]
    systems: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A system against its parent on the test split, both as means over their seeds.

    Attributes:
      difference: of the cost per minute; negative is better.
      interval: 95 %, as metrics.difference_interval has it.
      note: what the interval does not know, where a trained system has one run; else "".
    """

    difference: float
    interval: tuple[float, float]
    note: str = ""

    @property
    def verdict(self) -> str:
        low, high = self.interval
        return "better" if high < 0 else "worse" if low > 0 else "no evidence"


def run_name(row: Row, seed: int) -> str:
    """The folder of a run in the folder of its study."""
    return os.path.join(row.name, f"seed{seed}")


def compare(runs: Sequence[System], baseline: Sequence[System]) -> Comparison:
    """A system's runs against another's. Raises UserError if they were not evaluated on the same recordings."""
    if not same_recordings([*runs, *baseline]):
        raise UserError(f"{runs[0].name!r} and {baseline[0].name!r} were not evaluated on the same recordings.")
    sides = [list(runs), list(baseline)]
    if max(map(len, sides)) > 1:  # the naive system has the same result with every seed: two runs say so
        sides = [side * 2 if len(side) == 1 and side[0].naive else side for side in sides]
    interval = metrics.difference_interval(*(np.stack([run.counts for run in side]) for side in sides), runs[0].task)
    note = ("", "one run, spread of the other's", "recordings only")[sum(len(side) == 1 for side in sides)]
    return Comparison(float(np.mean([run.cost for run in runs]) - np.mean([run.cost for run in baseline])), interval,
                      note)


def agreement(found: str, published: str) -> str:
    """What a verdict says about a published one; no evidence is no proof that there is no difference."""
    if not published:
        return ""
    if found == "no evidence":
        return "no contradiction" if published == "no difference" else "not confirmed"
    return "confirmed" if found == published else "contradicted"


def require_same(config: Config, folder: pathlib.Path) -> None:
    """Raises UserError if the finished run in a folder is of another config, or of other records than those there now.

    Where there are none any more, its evaluations may still be kept.
    """
    if identity.has_records(config.data.path):
        found = identity.read_metadata(config.data.path)
        workdir.require_same(folder, config, found.task, found.entries)
        workdir.update(folder, config)
    else:
        workdir.require_same_config(folder, config)


def collect(rows: Sequence[Row], folder: pathlib.Path, split: str,
            left_out: Container[str] = ()) -> dict[str, list[System]]:
    """The finished runs of each system by its name, under the title of its row; without systems that have none.

    Runs that are `left_out`, by run_name, do not count.
    """
    found = {}
    for row in rows:
        folders = [folder / run_name(row, seed) for seed in row.seeds if run_name(row, seed) not in left_out]
        if finished := [path for path in folders if is_finished(path)]:
            found[row.name] = [dataclasses.replace(system, name=row.title)
                               for system in results.collect(finished, split)]
    return found


def require_replaceable(figures: dict[str, Figure], folder: pathlib.Path) -> None:
    """Raises UserError if `write` would replace what sedjax did not write."""
    for name in (report.PAGE, *(f"{name}.png" for name in figures)):
        files.require_replaceable(folder / "report" / name)


def write(rows: Sequence[Row], figures: dict[str, Figure], folder: pathlib.Path,
          problems: dict[str, str]) -> pathlib.Path:
    """Writes report/index.md and its figures into the folder of a study, and returns the path of the page.

    Args:
      rows: all systems of the study.
      figures: by file name, without its ending.
      folder: of the study.
      problems: why runs are missing, or do not count, by run_name.

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
            pictures.append(f"### {figure.title}\n\nNot drawn: not all of its systems have a finished run.")
    first = next(iter(test.values()))[0]
    seeds = sorted({len(runs) for runs in test.values()})
    missing = "\n".join(f"- `{name}`: {text}" for name, text in problems.items())
    text = f"""# {first.task.name}: {len(rows)} systems

Cost per minute (lower is better) on {len(first.counts):,} test recordings, at the checkpoint with the lowest
validation cost; mean and standard deviation over {" or ".join(map(str, seeds))} seeds. A difference is against the
parent system on the test split; its 95 % interval is a t interval for other recordings and other seeds, and a verdict
needs one without 0. If a trained system has one run, its seeds are taken to spread as those of the other system; if
neither has several, the interval is that of these two runs on other recordings only. Made by sedjax {__version__}.

{table(rows, validation, test)}

{f"Runs that are missing:{chr(10)}{chr(10)}{missing}{chr(10)}" if missing else "No run is missing."}

## Figures

A dot is the best checkpoint; each line is a run, the runs of a system have one colour.

{(chr(10) * 2).join(pictures)}

## Cost of each class

On the test split, mean over the seeds.

{class_table(rows, test)}
"""
    with atomic_output(output / report.PAGE) as path:
        path.write_text(text, encoding="utf-8")
    return output / report.PAGE


def table(rows: Sequence[Row], validation: dict[str, list[System]], test: dict[str, list[System]]) -> str:
    """One Markdown row per system, those without a run too."""
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
            found = compare(runs, test[row.parent])
            line[2] = found.verdict
            note = f" ({found.note})" if found.note else ""
            compared = [f"{found.difference:+.2f}", "{:+.2f} to {:+.2f}".format(*found.interval) + note]
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
    """Mean and, of several values, their standard deviation."""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
