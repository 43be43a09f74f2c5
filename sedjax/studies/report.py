"""Tables and figures that compare systems, each trained once or with several seeds."""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from sedjax.core import files, markdown
from sedjax.core.bounds import without_controls
from sedjax.core.errors import UserError
from sedjax.core.files import atomic_output
from sedjax.core.task import MLPC_2025
from sedjax.core.version import __version__
from sedjax.scoring import metrics
from sedjax.studies.results import Run, same_recordings

if TYPE_CHECKING:
    import matplotlib.figure

Systems = Mapping[str, Sequence[Run]]  # by title
Title = Annotated[str, AfterValidator(without_controls)]

# Cost per minute of each class by the team's report (SPEC section 4): system 1 and system 13. Only for MLPC 2025.
PUBLISHED = {
    "published: final (own test)": {
        "Speech": 5.18, "Shout": 6.13, "Chainsaw": 1.23, "Jackhammer": 4.16, "Lawn Mower": 3.00, "Power Drill": 5.92,
        "Dog Bark": 1.28, "Rooster Crow": 0.17, "Horn Honk": 7.51, "Siren": 4.02},
    "published: naive (validation)": {
        "Speech": 24.8092, "Shout": 9.4118, "Chainsaw": 6.6057, "Jackhammer": 7.4642, "Lawn Mower": 7.7266,
        "Power Drill": 14.2369, "Dog Bark": 7.0986, "Rooster Crow": 0.3816, "Horn Honk": 12.7107, "Siren": 18.4102},
}

# Okabe and Ito (2008): distinguishable with any colour vision. Naive baselines are grey, published figures light.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_STYLES = ("-", "-.", ":")
GREY = "#8C8C8C"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
         "grid.color": "#E3E3E3", "legend.frameon": False, "savefig.dpi": 150}
WIDTH = 9  # of figures, in inches
PAGE = "index.md"

DIFFERENCES = """A difference is to the system in the column "against"; its 95 % interval is a t interval over
recordings and seeds, and a verdict needs an interval that excludes 0. A trained system with one run is assumed to have
the other system's spread between seeds; if neither has several runs, the interval covers recordings only."""


def compare(runs: Sequence[Run], baseline: Sequence[Run]) -> tuple[tuple[float, float], str]:
    """95 % interval of the difference in cost per minute between two systems, negative if the first is better.

    Returns:
      The interval from metrics.difference_interval, and its limitation if a trained system has a single run, else "".

    Raises:
      UserError: they were evaluated on different recordings.
    """
    if not same_recordings([*runs, *baseline]):
        raise UserError(f"{runs[0].name!r} and {baseline[0].name!r} were not evaluated on the same recordings.")
    sides = [list(runs), list(baseline)]
    if max(map(len, sides)) > 1:  # the naive system does not depend on the seed: count its run twice
        sides = [side * 2 if len(side) == 1 and side[0].naive else side for side in sides]
    interval = metrics.difference_interval(*(np.stack([run.counts for run in side]) for side in sides), runs[0].task)
    return interval, ("", "one run, spread of the other's", "recordings only")[sum(len(side) == 1 for side in sides)]


def verdict(interval: tuple[float, float]) -> str:
    """What the interval of a difference in cost says."""
    low, high = interval
    return "better" if high < 0 else "worse" if low > 0 else "no evidence"


def table(systems: Systems, split: str, parents: Mapping[str, str] | None = None) -> str:
    """One Markdown row per system, with its difference to its parent, if any; several runs have mean and spread."""
    rows = []
    for name, runs in systems.items():
        parent = (parents or {}).get(name, "")
        row = {"system": name, "against": parent, "verdict": "" if runs else "not run"}
        if runs:
            seconds = [run.seconds for run in runs if run.seconds is not None]
            row |= {"model": runs[0].model, "parameters": f"{runs[0].parameters:,}",
                    "best step": " / ".join(f"{run.steps[run.best]:,}" for run in runs),
                    "validation cost": spread([run.validation_cost[run.best] for run in runs]),
                    f"{split} cost": spread([run.cost for run in runs]),
                    "95 % interval": "{:.2f} to {:.2f}".format(*metrics.bootstrap_interval(
                        np.sum([run.counts for run in runs], axis=0), runs[0].task)),
                    "training (s)": f"{np.mean(seconds):,.0f}" if seconds else ""}
        if runs and systems.get(parent):
            interval, note = compare(runs, systems[parent])
            difference = np.mean([run.cost for run in runs]) - np.mean([run.cost for run in systems[parent]])
            row |= {"verdict": verdict(interval), "difference": f"{difference:+.2f}",
                    "interval of the difference": "{:+.2f} to {:+.2f}".format(*interval) + (note and f" ({note})")}
        rows.append(row)
    return markdown.table(rows)


def spread(values: Sequence[float]) -> str:
    """Mean and, for several values, standard deviation."""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def class_costs(systems: Systems) -> dict[str, dict[str, float]]:
    """Cost per minute by system and class, mean over the runs; the costliest class of the first system comes first.

    For the task of MLPC 2025, the published figures come last.
    """
    costs = {name: {label: float(np.mean([run.class_costs[label] for run in runs])) for label in runs[0].class_costs}
             for name, runs in systems.items() if runs}
    first, task = next(iter(costs.values())), next(run for runs in systems.values() for run in runs).task
    if dict(zip(task.classes, task.costs)) == dict(zip(MLPC_2025.classes, MLPC_2025.costs)):
        costs |= PUBLISHED
    order = sorted(first, key=lambda label: -first[label])
    return {name: {label: row[label] for label in order} for name, row in costs.items()}


def class_table(systems: Systems) -> str:
    """One Markdown row per system, with the costs of `class_costs` and their total."""
    return markdown.table([{"system": name, **{label: f"{cost:.2f}" for label, cost in row.items()},
                            "total": f"**{math.fsum(row.values()):.2f}**"}
                           for name, row in class_costs(systems).items()])


def draw_histories(systems: Systems, panels: Mapping[str, str], path: pathlib.Path) -> "matplotlib.figure.Figure":
    """Series of runs by epoch, with a dot at the best checkpoint; naive baselines are dashed lines.

    `panels` has the title of each panel, by the name of a series in Run.
    """
    looks = _looks(systems)
    with _figure(path, 4.5) as figure:
        subplots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (series, title) in zip(subplots, panels.items()):
            for name, runs in systems.items():
                for i, run in enumerate(runs):
                    values, label = getattr(run, series), "_" if i else name  # one legend entry per system
                    if run.naive:
                        axes.axhline(values[run.best], label=label, **looks[name])
                    else:
                        axes.plot(run.epochs, values, label=label, marker="o", markevery=[run.best], **looks[name])
            axes.set(xlabel="epoch", title=title)
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_class_costs(systems: Systems, path: pathlib.Path) -> "matplotlib.figure.Figure":
    """Cost of each class as one bar per system, the costliest class of the first system on top."""
    costs = class_costs(systems)
    labels, height = list(next(iter(costs.values()))), 0.84 / len(costs)
    colours = {name: look["color"] for name, look in _looks(systems).items()} | dict(zip(PUBLISHED, ("0.9", "0.75")))
    with _figure(path, 1 + len(labels) * (0.2 + 0.14 * len(costs))) as figure:
        axes = figure.subplots()
        for i, (name, row) in enumerate(costs.items()):
            places = np.arange(len(labels)) + (i + 0.5) * height - 0.42
            axes.bar_label(axes.barh(places, list(row.values()), height * 0.88, label=name, color=colours[name]),
                           fmt="%.2f", padding=3, fontsize="x-small")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="cost per minute", title="Cost of each class")
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
    return figure


DRAW = {
    "validation_cost": functools.partial(draw_histories, panels={"validation_cost": "Validation cost per minute"}),
    "loss": functools.partial(draw_histories, panels={"train_loss": "Training loss per frame",
                                                      "validation_loss": "Validation loss per frame"}),
    "class_costs": draw_class_costs}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of some systems; `show` is a key of DRAW."""

    title: Title
    show: Literal["validation_cost", "loss", "class_costs"]
    systems: Annotated[tuple[str, ...], Field(min_length=1)]


def require_replaceable(folder: pathlib.Path, figures: Iterable[str]) -> None:
    """Raises UserError if `write` would replace a file that sedjax did not write; `figures` are their names."""
    for name in (PAGE, *(f"{figure}.png" for figure in figures)):
        files.require_replaceable(folder / name)


def write(folder: pathlib.Path, systems: Systems, split: str, figures: Mapping[str, Figure],
          drawn: Systems | None = None, parents: Mapping[str, str] | None = None,
          problems: Mapping[str, str] | None = None) -> pathlib.Path:
    """Writes figures and a page that compares systems, and returns the path of the page.

    Args:
      folder: where to write; created if missing.
      systems: the runs of each system, none if it was not run.
      split: split of their results.
      figures: figures of titles in `systems`, by file name; one that shows a system without runs is left out.
      drawn: the systems as shown in figures, if other results than those of `systems`.
      parents: title of the system that a system is compared with, by its title.
      problems: reasons why runs are missing or ignored, by name.

    Raises:
      UserError: a system and its parent were evaluated on different recordings, or writing fails.
    """
    files.make_folder(folder)
    pictures = []
    for name, figure in figures.items():
        shown = {title: (drawn or systems)[title] for title in figure.systems}
        if all(shown.values()):
            DRAW[figure.show](shown, path=folder / f"{name}.png")
            picture = f"![{figure.title}]({name}.png)"
        else:
            picture = "Not drawn: some of its systems have no finished run."
        pictures.append(f"### {figure.title}\n\n{picture}")
    runs = [run for runs in systems.values() for run in runs]
    recordings = sorted({f"{len(run.counts):,}" for run in runs})
    parts = [f"# {runs[0].task.name}: {len(systems)} system{'s' if len(systems) > 1 else ''}",
             f"Cost per minute (lower is better) on the {split} split ({' or '.join(recordings)} recordings), at the "
             "checkpoint with the lowest\nvalidation cost; several runs of a system have mean and standard deviation. "
             f"The 95 % interval is over recordings.\nMade by sedjax {__version__}."]
    if not same_recordings(runs):
        parts.append("**The systems were not evaluated on the same recordings: their costs cannot be compared.**")
    if parents:
        parts.append(DIFFERENCES)
    parts.append(table(systems, split, parents))
    if problems:
        parts.append("Missing runs:\n\n" + "\n".join(f"- `{name}`: {text}" for name, text in problems.items()))
    parts += ["## Figures", "Each line is a run, dots mark the best checkpoints, dashed grey lines are naive "
              "baselines.\nLosses are comparable only between systems with the same class and error weights.",
              *pictures, "## Cost of each class", class_table(systems)]
    with atomic_output(folder / PAGE) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return folder / PAGE


def _looks(systems: Systems) -> dict[str, dict[str, str]]:
    """Colour and line style of each system; trained ones beyond the sixth reuse colours with other lines."""
    looks = itertools.cycle({"color": colour, "linestyle": line} for line in LINE_STYLES for colour in COLOURS)
    return {name: {"color": GREY, "linestyle": "--"} if runs[0].naive else next(looks)
            for name, runs in systems.items()}


@contextlib.contextmanager
def _figure(path: pathlib.Path, height: float) -> Iterator["matplotlib.figure.Figure"]:
    """Yields a figure of this height in inches; then adds its first panel's legend below, and writes it to `path`."""
    import matplotlib  # slow to import
    import matplotlib.figure

    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.set_figheight(height + 0.25 * len(labels))
        figure.legend(handles, labels, loc="outside lower center")
        with atomic_output(path) as temporary:
            figure.savefig(temporary)
