"""Sweeps: the systems of a study, each trained with several seeds."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
from ml_collections import ConfigDict
from pydantic import AfterValidator, Field
from tqdm import tqdm

from sedjax.core import bounds
from sedjax.core.bounds import FilePath, Seed, without_controls
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.studies import study
from sedjax.studies.results import collect
from sedjax.studies.study import Row
from sedjax.training import configs, preemption
from sedjax.training.progress import is_finished
from sedjax.training.trainer import train

log = logging.getLogger("sedjax")

FolderName = Annotated[str, Field(max_length=200, pattern=r"^[^/]*[^/.][^/]*$"), AfterValidator(without_controls)]


def new_sweep() -> ConfigDict:
    """The ConfigDict of an empty sweep, to be filled by `add` and `add_figure`."""
    return ConfigDict({"data": {"path": ""}, "seeds": (0, 1, 2), "systems": {}, "figures": {}})


def add(sweep: ConfigDict, name: str, title: str, base: ConfigDict | None = None, parent: str = "",
        published: str = "", seeds: tuple[int, ...] = (), **changes) -> None:
    """Adds a system to a sweep.

    Args:
      sweep: ConfigDict from new_sweep.
      name: name of its folder.
      title: display name.
      base: config to start from; that of the parent if None.
      parent: name of the system it is compared with.
      published: verdict of the reproduced study against the parent: "better", "worse" or "no difference".
      seeds: seeds that replace the sweep's.
      changes: config keys and values to change, with `__` for the dot.
    """
    config = configs.changed(base or sweep.systems[parent].config, **changes)
    # `place` records the order, since a ConfigDict does not keep that of its keys.
    sweep.systems[name] = ConfigDict({"place": len(sweep.systems), "title": title, "parent": parent,
                                      "published": published, "seeds": seeds, "config": config})


def add_figure(sweep: ConfigDict, name: str, title: str, show: str, systems: tuple[str, ...]) -> None:
    """Adds a figure of some systems; `show` is "validation_cost", "loss" or "class_costs" (on validation)."""
    sweep.figures[name] = ConfigDict({"title": title, "show": show, "systems": systems})


@dataclasses.dataclass(frozen=True)
class DataFields:
    """Records of all systems; "" for the path in each config."""

    path: FilePath = ""


@dataclasses.dataclass(frozen=True)
class SweepFields:
    """Fields of a sweep, see new_sweep."""

    systems: dict[FolderName, dict]
    seeds: tuple[Seed, ...]
    data: DataFields = DataFields()
    figures: dict[FolderName, dict] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SystemFields:
    """Fields of a system of a sweep, see add."""

    place: int
    title: Annotated[str, AfterValidator(without_controls)]
    config: dict
    parent: str = ""
    published: Literal["", "better", "worse", "no difference"] = ""
    seeds: tuple[Seed, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A validated sweep: its rows, and its figures by file name."""

    rows: tuple[Row, ...]
    figures: dict[str, study.Figure]


def freeze(fields: dict) -> Sweep:
    """Validates a sweep. Raises UserError that names the system with an invalid config."""
    if "systems" not in fields:
        raise UserError("The config is not a sweep: it has no systems; see configs/sweeps/report.py for an example.")
    sweep = bounds.check(SweepFields, fields)
    systems = {name: bounds.check(SystemFields, system, f"systems.{name}.")
               for name, system in sweep["systems"].items()}
    if not systems or not sweep["seeds"]:
        raise UserError("The sweep has no systems or no seeds.")
    rows = []
    for name, system in sorted(systems.items(), key=lambda item: item[1]["place"]):
        try:
            config = configs.freeze(system["config"])
        except UserError as error:
            raise UserError(f"systems.{name}: {error}") from error
        if path := sweep["data"].path:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
        if system["parent"] not in ("", *systems):
            raise UserError(f"systems.{name}: there is no system {system['parent']!r} to compare it with.")
        rows.append(Row(name, system["title"], system["parent"], system["published"],
                        system["seeds"] or sweep["seeds"], config))
    figures = {name: study.Figure(**bounds.check(study.Figure, figure, f"figures.{name}."))
               for name, figure in sweep["figures"].items()}
    for name, figure in figures.items():
        if unknown := [system for system in figure.systems if system not in systems]:
            raise UserError(f"figures.{name}: there is no system {unknown[0]!r}.")
    return Sweep(tuple(rows), figures)


def run(rows: Sequence[Row], folder: pathlib.Path, stop: preemption.Stop) -> tuple[dict[str, str], dict[str, str]]:
    """Trains and evaluates each row with each seed; skips finished runs and resumes interrupted ones.

    A request to `stop` saves the current step and returns.

    Returns:
      Reasons why runs were skipped, and why runs failed, by folder relative to `folder`; other runs still run.
    """
    not_run, failed = {}, {}
    runs = [(row, seed) for row in rows for seed in row.seeds]
    with tqdm(runs, unit="run", disable=None, dynamic_ncols=True) as bar:
        for number, (row, seed) in enumerate(bar, start=1):
            if stop:
                break
            name = study.run_name(row, seed)
            weights = row.config.train.initial_weights
            if weights and not os.path.exists(weights):
                not_run[name] = f"there is no file {weights}, its initial weights"
                continue
            log.info("Run %d of %d: %s.", number, len(runs), name)
            try:
                run_one(row.config, seed, folder / name, stop)
            except Exception as error:  # whatever the error, the other runs are worth having
                log.error("%s failed.", name, exc_info=not isinstance(error, UserError))
                failed[name] = str(error) or type(error).__name__
            jax.clear_caches()  # the next system compiles its own steps
    return not_run, failed


def of_others(rows: Sequence[Row], folder: pathlib.Path) -> dict[str, str]:
    """Reasons why finished runs have another config or other records, by folder relative to `folder`."""
    reasons = {}
    for row in rows:
        for seed in row.seeds:
            name = study.run_name(row, seed)
            if is_finished(folder / name):
                try:
                    study.require_same(_with_seed(row.config, seed), folder / name)
                except UserError as error:
                    reasons[name] = str(error)
    return reasons


def _with_seed(config: Config, seed: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))


def run_one(config: Config, seed: int, folder: pathlib.Path, stop: preemption.Stop) -> None:
    """Trains one system with one seed in `folder`, and evaluates it on the validation and test splits."""
    config = _with_seed(config, seed)
    if is_finished(folder):
        study.require_same(config, folder)
    elif not train(config, folder, stop).finished:
        return  # stop was requested
    for split in study.SPLITS:
        collect([folder], split)  # caches the result in the folder
