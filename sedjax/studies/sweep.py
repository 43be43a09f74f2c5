"""Sweeps: the systems of a study, each trained with several seeds, and compared."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Container, Sequence
from typing import Annotated, Literal

import jax
from ml_collections import ConfigDict
from pydantic import AfterValidator, Field
from tqdm import tqdm

from sedjax.core import bounds
from sedjax.core.bounds import FilePath, Seed, without_controls
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.data import identity
from sedjax.studies import report
from sedjax.studies.results import Run, collect
from sedjax.training import configs, preemption, workdir
from sedjax.training.progress import is_finished
from sedjax.training.trainer import train

log = logging.getLogger("sedjax")

FolderName = Annotated[str, Field(max_length=200, pattern=r"^[^/]*[^/.][^/]*$"), AfterValidator(without_controls)]


def sweep_config(systems: Sequence[tuple[str, str, str, ConfigDict]],
                 figures: Sequence[tuple[str, str, str, tuple[str, ...]]] = (),
                 seeds: tuple[int, ...] = (0, 1, 2)) -> ConfigDict:
    """The ConfigDict of a sweep, which a config file returns.

    Args:
      systems: name of the folder, title, name of the system it is compared with (or ""), and config of each.
      figures: file name, title, what to show (a key of report.DRAW), and names of the systems of each.
      seeds: seeds of each system; a naive one, which does not depend on it, takes the first.
    """
    config = ConfigDict({"data": {"path": ""}, "seeds": seeds, "figures": {
        name: {"title": title, "show": show, "systems": shown} for name, title, show, shown in figures}})
    config.systems = ConfigDict(sort_keys=False)
    for name, title, parent, system in systems:
        if name in config.systems:
            raise UserError(f"systems.{name} is given twice.")
        config.systems[name] = ConfigDict({"title": title, "parent": parent, "config": system})
    return config


@dataclasses.dataclass(frozen=True)
class SweepFields:
    """Fields of a sweep, see sweep_config; data.path has the records of all systems, or "" for those in each config."""

    systems: Annotated[dict[FolderName, dict], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    data: dict[Literal["path"], FilePath] = dataclasses.field(default_factory=dict)
    figures: dict[FolderName, dict] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class System:
    """A system: its title, its config as in a config file, and the name of the system it is compared with or ""."""

    title: report.Title
    config: dict
    parent: str = ""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A checked sweep: its systems and figures by name, and the configs of its runs by their folders in the sweep's."""

    systems: dict[str, System]
    figures: dict[str, report.Figure]
    runs: dict[str, Config]

    def folders(self, name: str) -> list[str]:
        """The folders of the runs of a system."""
        return [folder for folder in self.runs if os.path.dirname(folder) == name]


def freeze(fields: dict) -> Sweep:
    """Checks a sweep. Raises UserError that names the system with an invalid config."""
    if "systems" not in fields:
        raise UserError("The config is not a sweep: it has no systems; see configs/sweeps/report.py for an example.")
    sweep = bounds.check(SweepFields, fields)
    systems = {name: System(**bounds.check(System, system, f"systems.{name}."))
               for name, system in sweep["systems"].items()}
    if title := bounds.twice(system.title for system in systems.values()):
        raise UserError(f"Two systems have the title {title!r}.")
    runs = {}
    for name, system in systems.items():
        try:
            config = configs.freeze(system.config)
        except UserError as error:
            raise UserError(f"systems.{name}: {error}") from error
        if system.parent not in ("", *systems):
            raise UserError(f"systems.{name}: there is no system {system.parent!r} to compare it with.")
        data = dataclasses.replace(config.data, path=sweep["data"].get("path") or config.data.path)
        for seed in sweep["seeds"][:1] if config.model["name"] == "naive" else sweep["seeds"]:
            train_config = dataclasses.replace(config.train, seed=seed)
            runs[os.path.join(name, f"seed{seed}")] = dataclasses.replace(config, data=data, train=train_config)
    figures = {name: report.Figure(**bounds.check(report.Figure, figure, f"figures.{name}."))
               for name, figure in sweep["figures"].items()}
    for name, figure in figures.items():
        if unknown := [system for system in figure.systems if system not in systems]:
            raise UserError(f"figures.{name}: there is no system {unknown[0]!r}.")
    return Sweep(systems, figures, runs)


def run(runs: dict[str, Config], folder: pathlib.Path, stop: preemption.Stop) -> tuple[dict[str, str], dict[str, str]]:
    """Trains and evaluates runs in a folder; checks finished ones and resumes interrupted ones.

    A request to `stop` saves the current step and returns.

    Returns:
      Reasons why runs were skipped, and why runs failed, by folder relative to `folder`; other runs still run.
    """
    not_run, failed = {}, {}
    with tqdm(runs.items(), unit="run", disable=None, dynamic_ncols=True) as bar:
        for number, (name, config) in enumerate(bar, start=1):
            if stop:
                break
            weights = config.train.initial_weights
            if weights and not os.path.exists(weights) and not is_finished(folder / name):
                not_run[name] = f"there is no file {weights}, its initial weights"
                continue
            log.info("Run %d of %d: %s.", number, len(runs), name)
            try:
                run_one(config, folder / name, stop)
            except Exception as error:  # whatever the error, the other runs are worth having
                log.error("%s failed.", name, exc_info=not isinstance(error, UserError))
                failed[name] = str(error) or type(error).__name__
            jax.clear_caches()  # the next system compiles its own steps
    return not_run, failed


def run_one(config: Config, folder: pathlib.Path, stop: preemption.Stop) -> None:
    """Trains in a folder, and evaluates on the validation and test splits."""
    if is_finished(folder):
        require_same(config, folder)
    elif not train(config, folder, stop).finished:
        return  # stop was requested
    for split in ("validation", "test"):
        collect([folder], split)  # caches the result in the folder


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


def finished_runs(sweep: Sweep, folder: pathlib.Path, split: str, left_out: Container[str]) -> dict[str, list[Run]]:
    """The finished runs of each system, by its title, without those whose folder is in `left_out`."""
    systems = {}
    for name, system in sweep.systems.items():
        folders = [folder / run for run in sweep.folders(name) if run not in left_out and is_finished(folder / run)]
        systems[system.title] = collect(folders, split)
    return systems


def write(sweep: Sweep, folder: pathlib.Path, problems: dict[str, str]) -> pathlib.Path:
    """Writes report/index.md and its figures to the folder of a sweep, and returns the path of the page.

    `problems` has the reasons why runs are missing or ignored. Raises UserError if no run is finished, or as
    report.write does.
    """
    validation, test = (finished_runs(sweep, folder, split, problems) for split in ("validation", "test"))
    if not any(test.values()):
        raise UserError(f"No run in {folder} is finished" + (f": {'; '.join(problems.values())}." if problems else "."))
    titles = {name: system.title for name, system in sweep.systems.items()}
    figures = {name: dataclasses.replace(figure, systems=tuple(titles[system] for system in figure.systems))
               for name, figure in sweep.figures.items()}
    parents = {system.title: titles[system.parent] for system in sweep.systems.values() if system.parent}
    return report.write(folder / "report", test, "test", figures, validation, parents, problems)
