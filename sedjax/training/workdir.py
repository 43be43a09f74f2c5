"""The workdir: its files besides checkpoints, and the check that it belongs to one experiment."""

import json
import os
import pathlib

from sedjax.core import config as config_lib
from sedjax.core.errors import UserError
from sedjax.core.files import atomic_output, make_folder, read_text, require_makeable
from sedjax.core.task import Task
from sedjax.data import identity
from sedjax.data.layout import read_task
from sedjax.training.configs import from_json

# Keys that may change when a run resumes: they affect how it runs, not what it computes. Only precision changes
# numbers; a run may move between a machine that is fast in bfloat16 and one that is not.
MAY_CHANGE_ON_RESUME = {"data.eval_batch_size", "data.path", "data.placement", "model.remat", "parallel", "precision",
        "train.log_every", "train.save_every", "train.steps_per_call"}

# Files and folders that training writes into its workdir. A folder that has one of them but no config.json is not ours.
FILES = ("config.json", "features.json", "metrics.jsonl", "parameters.txt", "task.json")
FOLDERS = ("checkpoints", "damaged", "report")


def require_usable(workdir: pathlib.Path, config: config_lib.Config, task: Task, features: dict[str, dict]) -> None:
    """Checks, without writing anything, that a folder is the workdir of this run or can become it.

    Raises UserError if it holds a different run, or files that training would overwrite.
    """
    if os.path.exists(workdir / "config.json"):
        require_same(workdir, config, task, features)
        return
    require_makeable(workdir)
    texts = _texts(config, task, features)
    for name in (*FILES, *FOLDERS):
        path = workdir / name
        if not os.path.lexists(path) or (name in FOLDERS and path.is_dir() and not any(path.iterdir())):
            continue
        if not (name in texts and path.is_file() and path.read_bytes() == texts[name].encode()):  # a killed start
            raise UserError(f"{workdir} is not a workdir, but contains {name}, which training would overwrite: choose "
                            "another --workdir.")


def prepare(workdir: pathlib.Path, config: config_lib.Config, task: Task, features: dict[str, dict]) -> None:
    """Writes config.json, task.json and features.json into a new workdir, or checks that an existing one matches.

    Raises UserError if the folder is not writable, or for the reasons of `require_usable`.
    """
    require_usable(workdir, config, task, features)
    if os.path.exists(workdir / "config.json"):
        update(workdir, config)
        return
    make_folder(workdir)
    for name, text in _texts(config, task, features).items():
        with atomic_output(workdir / name, ours=True, durable=True) as path:
            path.write_text(text, encoding="utf-8")


def _texts(config: config_lib.Config, task: Task, features: dict[str, dict]) -> dict[str, str]:
    """The files of a new workdir. config.json comes last: a folder that has it has the others."""
    return {"features.json": json.dumps(features), "task.json": task.to_json(), "config.json": config.to_json()}


def require_same(workdir: pathlib.Path, config: config_lib.Config, task: Task, features: dict[str, dict]) -> None:
    """Raises UserError if the run in a workdir used other records, or for the reasons of require_same_config."""
    _, old_task, old_features = read(workdir)
    task.require_same(old_task, where=f"the workdir {workdir}")
    require_same_config(workdir, config)
    identity.require_same_extractors(old_features, features, config.data.path, str(workdir))
    if differing := identity.difference(old_features, features):
        raise UserError(f"The workdir {workdir} belongs to a run on other records than those in {config.data.path}: "
                        f"the {differing} differ; use another --workdir, or the old records.")


def update(workdir: pathlib.Path, config: config_lib.Config) -> None:
    """Writes changed keys of MAY_CHANGE_ON_RESUME into the config of a workdir, so that data.path stays valid."""
    if config != read(workdir)[0]:
        with atomic_output(workdir / "config.json", ours=True, durable=True) as path:
            path.write_text(config.to_json(), encoding="utf-8")


def require_same_config(workdir: pathlib.Path, config: config_lib.Config) -> None:
    """Raises UserError if the config of a workdir differs in more than MAY_CHANGE_ON_RESUME."""
    # Reading gives the config of an older version the defaults of keys that it did not know.
    old, new = (_flat(json.loads(version.to_json())) for version in (read(workdir)[0], config))
    changed = sorted(key for key in (old.keys() | new.keys()) - MAY_CHANGE_ON_RESUME if old.get(key) != new.get(key))
    if changed:
        raise UserError(f"The workdir {workdir} belongs to a run with another config: {changed[0]} is "
                        f"{old.get(changed[0])!r} there and {new.get(changed[0])!r} now; use another --workdir.")


def read(workdir: str | os.PathLike) -> tuple[config_lib.Config, Task, dict[str, dict]]:
    """Config, task and feature statistics of a workdir. Raises UserError if it is not a workdir, or is damaged."""
    path = pathlib.Path(workdir) / "config.json"
    if not os.path.exists(path):
        raise UserError(f"{workdir} is not the workdir of a training run: {path} does not exist.")
    config = from_json(read_text(path), path)
    return config, read_task(path.with_name("task.json")), identity.read_entries(path.with_name("features.json"))


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
