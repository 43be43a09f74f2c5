"""`python -m sedjax report WORKDIR...`: compares trained models in a table and figures."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic
from absl import flags
from jaxtyping import Float, Int

from sedjax import __version__, files, identity, models, workdir
from sedjax.commands import distinct_names
from sedjax.errors import UserError
from sedjax.evaluate import evaluate_workdir
from sedjax.files import atomic_output
from sedjax.metric_writer import read_metrics
from sedjax.task import MLPC_2025, Task

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

# Okabe and Ito (2008): told apart with any colour vision. Naive baselines are grey, published figures white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MORE = (("-", ""), ("-.", "////"), (":", "...."))  # line and hatch
GREY = "#8C8C8C"
STYLE = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "axes.axisbelow": True, "grid.color": "#E3E3E3", "legend.frameon": False, "lines.linewidth": 1.8,
         "hatch.linewidth": 0.6, "savefig.dpi": 150}


@dataclasses.dataclass(frozen=True)
class System:
    """A trained model: how its training went, and its result on one split.

    Systems of one name are runs of one system, for example with several seeds: figures give them one colour and one
    entry in the legend, and take the mean of their costs per class.

    Attributes:
      name: of the system; the folder's from `collect`.
      model: name of the model.
      task: what it was trained for.
      parameters: trainable ones.
      seconds: of training; None where metrics.jsonl has no `seconds` (those since the entry before).
      steps, epochs: of each evaluation on the validation split.
      validation_cost, validation_loss: of each evaluation; cost per minute, loss per frame.
      train_loss: mean of the steps since the evaluation before, NaN where there are none.
      best: which evaluation is that of the best checkpoint.
      counts: of segments on the split.
      cost, interval: on the split, per minute, with its 95 % interval.
      class_costs: on the split, per minute, by class.
      recordings: fingerprint of the recordings and labels of the split; "" if unknown.
    """

    name: str
    model: str
    task: Task
    parameters: int
    seconds: float | None
    steps: Int[np.ndarray, "evaluation"]
    epochs: Float[np.ndarray, "evaluation"]
    validation_cost: Float[np.ndarray, "evaluation"]
    validation_loss: Float[np.ndarray, "evaluation"]
    train_loss: Float[np.ndarray, "evaluation"]
    best: int
    counts: Int[np.ndarray, "recording class outcome"]
    cost: float
    interval: tuple[float, float]
    class_costs: dict[str, float]
    recordings: str = ""

    @property
    def naive(self) -> bool:
        return self.model == "naive"


def define_flags() -> None:
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which recordings the results are of.")
    flags.DEFINE_string("output", None, "Folder for index.md and the figures; `report` in the first workdir if not "
                                        "given.")


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise UserError("report needs the workdir of a training, or several: python -m sedjax report WORKDIR...")
    split, folder = flags.FLAGS.split, pathlib.Path(flags.FLAGS.output or pathlib.Path(argv[1]) / "report")
    files.require_makeable(folder)
    for name in (PAGE, *FIGURES):
        files.require_replaceable(folder / name)
    systems = collect(argv[1:], split)
    path = write(systems, split, folder)
    print(systems_table(systems, split) + f"\n\nWrote {path}.")


def collect(folders: Sequence[str | os.PathLike], split: str) -> list[System]:
    """The systems of workdirs of one task, the lowest cost first; evaluates those that have no result on the split yet.

    Raises UserError if one is no workdir, has no evaluation yet, or is of another task, or a result cannot be had.
    """
    paths = [pathlib.Path(folder) for folder in folders]
    names = distinct_names(paths)
    found = [workdir.read(path) for path in paths]
    for path, (_, task, _) in zip(paths, found):
        found[0][1].require_same(task, where=f"the workdir {path}")
    histories = [read_history(path) for path in paths]  # all are looked at before the first is evaluated for minutes
    systems = []
    for path, name, history, (config, task, features) in zip(paths, names, histories, found):
        result = result_of(path, split, int(history["steps"][np.argmin(history["validation_cost"])]))
        history = read_history(path)  # again: a training may have gone on meanwhile
        widths = {key: entry["width"] for key, entry in features.items()}
        systems.append(System(
            name=name, model=config.model["name"], task=task, **history,
            parameters=models.count_parameters(models.build_from(config, task), widths),
            best=int(np.flatnonzero(history["steps"] == result["step"])[-1]), counts=np.array(result["counts"]),
            cost=result["cost"], interval=tuple(result["interval"]),
            class_costs={label: figures["cost"] for label, figures in result["classes"].items()},
            recordings=result["records"]["identity"].get(identity.LABELS, "")))
    return sorted(systems, key=lambda system: system.cost)


def result_of(folder: pathlib.Path, split: str, step: int) -> dict:
    """What evaluate.evaluate_workdir returns, of the best checkpoint and the records that are there now.

    It is kept in the workdir if that can be written, and made again once anything that it depends on has changed.

    Raises UserError as evaluate_workdir does.
    """
    path = folder / "report" / f"evaluation_{split}.json"
    kept = None
    with contextlib.suppress(UserError):  # missing, or of another form
        kept = files.read_json(path, _Kept)
    if kept and kept.digest == _digest(kept.of, kept.result) and kept.of == _depends_on(folder, split, step):
        return kept.result
    log.info("Evaluating %s on the %s split.", folder, split)
    result = evaluate_workdir(folder, split)
    of = {"step": result["step"], "checkpoint": _checkpoint_identity(folder, result["step"]),
          "records": result["records"]["identity"]}
    try:
        files.make_folder(path.parent)
        files.write_json(path, {"of": of, "digest": _digest(of, result), "result": result}, ours=True)
    except UserError as error:
        log.warning("This evaluation cannot be kept: %s", error)
    return result


@pydantic.dataclasses.dataclass
class _Kept:
    """An evaluation in a workdir.

    Attributes:
      of: what it depends on, as `_depends_on` gives it.
      digest: of the others.
      result: what evaluate.evaluate_workdir returned.
    """

    of: dict[str, Any]
    digest: str
    result: dict[str, Any]


def _depends_on(folder: pathlib.Path, split: str, step: int) -> dict[str, Any]:
    """What the evaluation of a step depends on: the checkpoint and the records, which may be None: unknown.

    Where there are no records any more, they are those of the training.

    Raises UserError if the records are damaged.
    """
    config, _, features = workdir.read(folder)
    keys = [key for key in features if key != identity.LABELS]
    records = (identity.read_metadata(config.data.path).identity(split, keys)
               if identity.has_records(config.data.path) else identity.of_split(features, split, keys))
    return {"step": step, "checkpoint": _checkpoint_identity(folder, step), "records": records}


def _checkpoint_identity(folder: pathlib.Path, step: int) -> str | None:
    """Of the progress at a step, which has the checksums of the weights; None if there is no such checkpoint."""
    try:
        with files.open_file(folder / "checkpoints" / str(step) / "progress" / "metadata") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except UserError:
        return None


def _digest(of: dict[str, Any], result: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps([of, result]).encode(), digest_size=16).hexdigest()


def read_history(folder: pathlib.Path) -> dict:
    """The fields of System that metrics.jsonl tells: seconds, and the series over the evaluations.

    Raises UserError if there was no evaluation yet.
    """
    entries = read_metrics(folder)
    evaluations = [entry for entry in entries if "validation_cost" in entry]
    if not evaluations:
        raise UserError(f"The training in {folder} has no validation cost yet: let it reach its first evaluation.")
    series = {name: np.array([entry[key] for entry in evaluations], kind) for name, key, kind in (
        ("steps", "step", int), ("epochs", "epoch", float), ("validation_cost", "validation_cost", float),
        ("validation_loss", "validation_loss", float))}
    logged = [entry for entry in entries if "loss" in entry]
    ends, losses = (np.array([entry[key] for entry in logged], float) for key in ("step", "loss"))
    weights = np.diff(ends, prepend=0)  # an entry is the mean of the steps since the one before
    train_loss = []
    for start, end in itertools.pairwise([0, *series["steps"]]):
        since = (ends > start) & (ends <= end)
        train_loss.append(np.average(losses[since], weights=weights[since]) if since.any() else np.nan)
    seconds = [entry["seconds"] for entry in entries if "seconds" in entry]
    return {**series, "train_loss": np.array(train_loss), "seconds": math.fsum(seconds) if seconds else None}


def class_costs(systems: Sequence[System]) -> dict[str, dict[str, float]]:
    """Cost per minute by class and name of the system, the costliest class of the first system first.

    Of systems of one name it is the mean. What the report published comes last, if the task is that of MLPC 2025.
    """
    task = systems[0].task
    runs = {name: [system.class_costs for system in systems if system.name == name]
            for name in dict.fromkeys(system.name for system in systems)}
    if dict(zip(task.classes, task.costs)) == dict(zip(MLPC_2025.classes, MLPC_2025.costs)):
        runs |= {name: [costs] for name, costs in PUBLISHED.items()}
    by_class = {label: {name: float(np.mean([costs[label] for costs in found])) for name, found in runs.items()}
                for label in task.classes}
    return dict(sorted(by_class.items(), key=lambda item: -item[1][systems[0].name]))


def draw_validation_cost(systems: Sequence[System], path: pathlib.Path) -> "matplotlib.figure.Figure":
    """Validation cost over the epochs, a dot at the best checkpoint; a naive baseline is a dashed line."""
    with _figure(path, 8, 4.6) as (figure, (axes,)):
        _plot(axes, systems, "validation_cost")
        axes.set(ylabel="cost per minute", title="Cost on the validation split")
    return figure


def draw_losses(systems: Sequence[System], path: pathlib.Path) -> "matplotlib.figure.Figure":
    """Training and validation loss over the epochs, beside each other, drawn as the validation cost is."""
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
    looks = {**_looks(systems), **{name: ("white", "", hatch) for name, (_, hatch) in zip(PUBLISHED, MORE)}}
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
    """One Markdown row per system; seconds of training only if one of them tells."""
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
    """Writes the figures and index.md, which shows them, and returns its path. Raises UserError if it cannot."""
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

![Validation cost over the epochs](validation_cost.png)

A dot is the best checkpoint; a dashed grey line is a naive baseline.

![Training and validation loss over the epochs](loss.png)

Losses can be compared only between systems that weigh classes and errors alike.

![Cost per class](class_costs.png)

{class_table(systems)}
"""
    with atomic_output(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def same_recordings(systems: Sequence[System]) -> bool:
    """Whether systems were evaluated on the same recordings and labels, as far as is known."""
    known = {system.recordings for system in systems} - {""}
    return len({len(system.counts) for system in systems}) == 1 and len(known) <= 1


def markdown(rows: list[list[str]], text_columns: int) -> str:
    """A table; the first row is its head, the first `text_columns` columns are text and the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(rows[0]) - text_columns)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:]))


def _looks(systems: Sequence[System]) -> dict[str, tuple[str, str, str]]:
    """Colour, line and hatch of each system; a seventh trained one has the first one's colour and another line."""
    trained = dict.fromkeys(system.name for system in systems if not system.naive)
    return {**{system.name: (GREY, "--", "") for system in systems},
            **{name: (COLOURS[i % len(COLOURS)], *MORE[i // len(COLOURS) % len(MORE)])
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

    The size is in inches, without the legend, which comes above ("upper") or below ("lower") and covers nothing.
    """
    import matplotlib  # takes a second, which other commands need not wait for
    import matplotlib.figure

    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        yield figure, axes
        handles, labels = axes[0].get_legend_handles_labels()
        entries = dict(zip(labels, handles))
        columns = min(max(int(width * 9) // (max(map(len, entries)) + 6), 1), len(entries))
        figure.set_figheight(height + 0.25 * -(-len(entries) // columns))
        figure.legend(entries.values(), entries, loc=f"outside {legend} center", ncols=columns)
        with atomic_output(path) as temporary:
            figure.savefig(temporary)
