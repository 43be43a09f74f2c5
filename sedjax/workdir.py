"""The folder of a run: what it holds besides checkpoints, and that it belongs to one experiment."""

import json
import os
import pathlib

from sedjax import config as config_lib
from sedjax import identity
from sedjax.errors import UserError
from sedjax.files import atomic_output
from sedjax.task import Task, read_task

# What may change between two starts of one training: how it runs, not what it computes. Only precision changes
# numbers; a training may move between a machine that is fast in bfloat16 and one that is not.
FREE = {"data.eval_batch_size", "data.path", "data.placement", "parallel", "precision", "train.log_every",
        "train.save_every", "train.steps_per_call"}


def prepare(workdir: pathlib.Path, config: config_lib.Config, task: Task, features: dict[str, dict]) -> None:
    """Writes config.json, task.json and features.json into a new workdir, or checks that an old one has the same.

    Raises UserError if the folder cannot be written or holds a training of something else.
    """
    if (workdir / "config.json").exists():
        resume(workdir, config, task, features)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the workdir {workdir}: {error.strerror}.") from error
    # config.json comes last: a folder that has it has the others.
    for name, text in (("features.json", json.dumps(features)), ("task.json", task.to_json()),
                       ("config.json", config.to_json())):
        with atomic_output(workdir / name, ours=True, durable=True) as path:
            path.write_text(text)


def resume(workdir: pathlib.Path, config: config_lib.Config, task: Task, features: dict[str, dict]) -> None:
    """Writes what is FREE into config.json, so that the records are found where they are now.

    Raises UserError if the workdir holds a training with another config, or on other records.
    """
    old_config, old_task, old_features = read(workdir)
    task.require_same(old_task, where=f"the workdir {workdir}")
    require_same_config(workdir, config)
    identity.require_same_extractors(old_features, features, config.data.path, str(workdir))
    if differing := identity.difference(old_features, features):
        raise UserError(f"The workdir {workdir} holds a training on other records than those in {config.data.path}: "
                        f"the {differing} differ; use another --workdir, or the old records.")
    if config != old_config:
        with atomic_output(workdir / "config.json", ours=True, durable=True) as path:
            path.write_text(config.to_json())


def require_same_config(workdir: pathlib.Path, config: config_lib.Config) -> None:
    """Raises UserError if the training in a workdir has another config, other than in FREE."""
    # Read as a config, what an older version wrote gets the defaults of keys that it did not know.
    old, new = (_flat(json.loads(each.to_json())) for each in (read(workdir)[0], config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in FREE)
    if changed:
        raise UserError(f"The workdir {workdir} holds a training with another config: {changed[0]} is "
                        f"{old.get(changed[0])!r} there and {new.get(changed[0])!r} now; use another --workdir.")


def read(workdir: str | os.PathLike) -> tuple[config_lib.Config, Task, dict[str, dict]]:
    """Config, task and feature statistics of a workdir. Raises UserError if it is none."""
    workdir = pathlib.Path(workdir)
    try:
        config = config_lib.from_json((workdir / "config.json").read_text())
        features = identity.read_entries(workdir / "features.json")
    except FileNotFoundError as error:
        raise UserError(f"{workdir} is not the workdir of a training: there is no {error.filename}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir}/config.json or features.json is damaged: {error}.") from error
    return config, read_task(workdir / "task.json"), features


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
