"""Tables and figures that compare trained models."""

import contextlib
import logging
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sedjax.core import files
from sedjax.core.files import atomic_output
from sedjax.core.numbers import ceil_div
from sedjax.core.task import MLPC_2025
from sedjax.core.version import __version__
from sedjax.studies.results import System, same_recordings

if TYPE_CHECKING:
    import matplotlib.figure

log = logging.getLogger("sedjax")

# Cost per minute of each class by the team's report (SPEC section 4): system 1 and system 13. Only for MLPC 2025.
PUBLISHED = {
    "published: final (own test)": {
        "Speech": 5.18, "Shout": 6.13, "Chainsaw": 1.23, "Jackhammer": 4.16, "Lawn Mower": 3.00, "Power Drill": 5.92,
        "Dog Bark": 1.28, "Rooster Crow": 0.17, "Horn Honk": 7.51, "Siren": 4.02},
    "published: naive (validation)": {
        "Speech": 24.8092, "Shout": 9.4118, "Chainsaw": 6.6057, "Jackhammer": 7.4642, "Lawn Mower": 7.7266,
        "Power Drill": 14.2369, "Dog Bark": 7.0986, "Rooster Crow": 0.3816, "Horn Honk": 12.7107, "Siren": 18.4102},
}

# Okabe and Ito (2008): distinguishable with any colour vision. Naive baselines are grey, published figures white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_STYLES = (("-", ""), ("-.", "////"), (":", "...."))  # line and hatch
GREY = "#8C8C8C"
STYLE = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "axes.axisbelow": True, "grid.color": "#E3E3E3", "legend.frameon": False, "lines.linewidth": 1.8,
         "hatch.linewidth": 0.6, "savefig.dpi": 150}


def class_costs(systems: Sequence[System]) -> dict[str, dict[str, float]]:
    """Cost per minute by class and system name, the costliest class of the first system first.

    Systems with the same name are averaged. For the task of MLPC 2025, the published figures come last.
    """
    task = systems[0].task
    runs = {name: [system.class_costs for system in systems if system.name == name]
            for name in dict.fromkeys(system.name for system in systems)}
    if dict(zip(task.classes, task.costs)) == dict(zip(MLPC_2025.classes, MLPC_2025.costs)):
        runs |= {name: [costs] for name, costs in PUBLISHED.items()}
    by_class = {label: {name: float(np.mean([run[label] for run in costs])) for name, costs in runs.items()}
                for label in task.classes}
    return dict(sorted(by_class.items(), key=lambda item: -item[1][systems[0].name]))


def draw_validation_cost(systems: Sequence[System], path: pathlib.Path) -> "matplotlib.figure.Figure":
    """Validation cost by epoch, with a dot at the best checkpoint; naive baselines are dashed lines."""
    with _figure(path, 8, 4.6) as (figure, (axes,)):
        _plot(axes, systems, "validation_cost")
        axes.set(ylabel="cost per minute", title="Cost on the validation split")
    return figure


def draw_losses(systems: Sequence[System], path: pathlib.Path) -> "matplotlib.figure.Figure":
    """Training and validation loss by epoch, side by side, in the style of `draw_validation_cost`."""
    with _figure(path, 10, 4.3, panels=2) as (figure, panels):
        for axes, series, title in zip(panels, ("train_loss", "validation_loss"), ("Training", "Validation")):
            _plot(axes, systems, series)
            axes.set_title(title)
        panels[0].set_ylabel("loss per frame")
        panels[1].tick_params(axis="y", length=0)
    return figure


def draw_class_costs(systems: Sequence[System], path: pathlib.Path) -> "matplotlib.figure.Figure":
    """Cost of each class as one bar per system, the costliest class of the first system on top."""
    rows = class_costs(systems)
    names = list(next(iter(rows.values())))
    looks = {**_looks(systems), **{name: ("white", "", hatch) for name, (_, hatch) in zip(PUBLISHED, LINE_STYLES)}}
    thickness = 0.84 / len(names)
    with _figure(path, 8, 1 + len(rows) * (0.2 + 0.14 * len(names)), legend="upper") as (figure, (axes,)):
        for i, name in enumerate(names):
            colour, _, hatch = looks[name]
            places = np.arange(len(rows)) + (i + 0.5) * thickness - 0.42
            bars = axes.barh(places, [costs[name] for costs in rows.values()], thickness * 0.88, label=name,
                             color=colour, hatch=hatch, edgecolor="black" if name in PUBLISHED else "white",
                             linewidth=0.7)
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7.5)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel="cost per minute", title="Cost of each class", ylim=(len(rows) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
    return figure


PAGE = "index.md"
FIGURES = {"validation_cost.png": draw_validation_cost, "loss.png": draw_losses, "class_costs.png": draw_class_costs}


def systems_table(systems: Sequence[System], split: str) -> str:
    """One Markdown row per system; training seconds only if known for any of them."""
    rows = [["system", "model", "parameters", "best step", "validation cost", f"{split} cost", "95 % interval",
             "training (s)"]]
    for system in systems:
        rows.append([system.name, system.model, f"{system.parameters:,}", f"{system.steps[system.best]:,}",
                     f"{system.validation_cost[system.best]:.2f}", f"{system.cost:.2f}",
                     f"{system.interval[0]:.2f} to {system.interval[1]:.2f}",
                     "" if system.seconds is None else f"{system.seconds:,.0f}"])
    if all(system.seconds is None for system in systems):
        rows = [row[:-1] for row in rows]
    return markdown(rows, text_columns=2)


def class_table(systems: Sequence[System]) -> str:
    """One Markdown row per class, in the order of `class_costs`, then the total; one column per system."""
    costs = class_costs(systems)
    names = list(next(iter(costs.values())))
    total = [math.fsum(row[name] for row in costs.values()) for name in names]
    rows = [[label, *(f"{row[name]:.2f}" for name in names)] for label, row in costs.items()]
    return markdown([["class", *names], *rows, ["**total**", *(f"**{cost:.2f}**" for cost in total)]], text_columns=1)


def write(systems: Sequence[System], split: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes the figures and index.md, and returns the path of the page. Raises UserError if that fails."""
    files.make_folder(folder)
    for name, draw in FIGURES.items():
        draw(systems, folder / name)
    recordings = sorted({f"{len(system.counts):,}" for system in systems})
    warning = "" if same_recordings(systems) else (
        "**The systems were not evaluated on the same recordings: their costs cannot be compared.**\n\n")
    text = f"""# {systems[0].task.name}: {len(systems)} system{"s" if len(systems) > 1 else ""}

Cost per minute on the {split} split ({" or ".join(recordings)} recordings), at the checkpoint with the lowest
validation cost; the interval is over recordings. Made by sedjax {__version__}.

{warning}{systems_table(systems, split)}

![Validation cost by epoch](validation_cost.png)

Dots mark the best checkpoints; a dashed grey line is a naive baseline.

![Training and validation loss by epoch](loss.png)

Losses are comparable only between systems with the same class and error weights.

![Cost per class](class_costs.png)

{class_table(systems)}
"""
    with atomic_output(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def markdown(rows: list[list[str]], text_columns: int) -> str:
    """A table whose first row is the header; the first `text_columns` columns are text, the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(rows[0]) - text_columns)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:]))


def _looks(systems: Sequence[System]) -> dict[str, tuple[str, str, str]]:
    """Colour, line style and hatch of each system; trained ones beyond the sixth reuse colours with other lines."""
    trained = dict.fromkeys(system.name for system in systems if not system.naive)
    return {**{system.name: (GREY, "--", "") for system in systems},
            **{name: (COLOURS[i % len(COLOURS)], *LINE_STYLES[i // len(COLOURS) % len(LINE_STYLES)])
               for i, name in enumerate(trained)}}


def _plot(axes, systems: Sequence[System], series: str) -> None:
    looks = _looks(systems)
    for system in systems:
        colour, line, _ = looks[system.name]
        values, look = getattr(system, series), {"color": colour, "linestyle": line, "label": system.name}
        if system.naive:
            axes.axhline(values[system.best], **look)
        else:
            axes.plot(system.epochs, values, marker="o", markevery=[system.best], **look)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


@contextlib.contextmanager
def _figure(path: pathlib.Path, width: float, height: float, panels: int = 1, legend: str = "lower") -> Iterator[tuple]:
    """Yields a figure and its panels, which share the y axis; then adds a legend and writes it to `path`.

    The size is in inches, without the legend, which is placed above ("upper") or below ("lower") the panels.
    """
    import matplotlib  # slow to import
    import matplotlib.figure

    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        yield figure, axes
        handles, labels = axes[0].get_legend_handles_labels()
        entries = dict(zip(labels, handles))
        columns = min(max(int(width * 9) // (max(map(len, entries)) + 6), 1), len(entries))
        figure.set_figheight(height + 0.25 * ceil_div(len(entries), columns))
        figure.legend(entries.values(), entries, loc=f"outside {legend} center", ncols=columns)
        with atomic_output(path) as temporary:
            figure.savefig(temporary)
