"""Configs of experiments: defaults of each model, checks against the model, and reading from JSON."""

import dataclasses
import functools
import logging
from typing import Any

from ml_collections import ConfigDict

from sedjax.core import bounds, errors
from sedjax.core.config import Config, LossConfig, OptimizerConfig, TrainConfig
from sedjax.core.errors import UserError
from sedjax.models import registry

log = logging.getLogger("sedjax")


def base_config(model: str) -> ConfigDict:
    """The ConfigDict of a model with all defaults; a config file changes the keys that define its experiment."""
    fields = dataclasses.asdict(Config(model={"name": model, **registry.default_fields(model)}))
    config = ConfigDict(fields)
    config.loss.class_factors = ConfigDict(fields["loss"]["class_factors"])
    return config.lock()


def changed(config: ConfigDict, **changes) -> ConfigDict:
    """A copy of a config with new values for some keys, written with `__` instead of the dot."""
    config = config.copy_and_resolve_references()
    for key, value in changes.items():
        *path, name = key.split("__")
        functools.reduce(getattr, path, config)[name] = value
    return config


def freeze(fields: dict) -> Config:
    """The checked, immutable config. Raises UserError that names the first key that is unknown or has a bad value."""
    config = Config(**bounds.check(Config, fields))
    if "name" not in config.model:
        raise UserError("The config lacks model.name.")
    model = registry.check_fields(config.model)
    config = dataclasses.replace(config, model=model)
    registry.build(model, num_classes=1)
    data, train, optimizer = config.data, config.train, config.optimizer
    if data.batch_size % optimizer.accumulate:
        raise UserError(f"data.batch_size = {data.batch_size} cannot be split into optimizer.accumulate = "
                        f"{optimizer.accumulate} equal parts.")
    if train.steps_per_call > 1 and data.placement != "device":
        raise UserError(f"train.steps_per_call = {train.steps_per_call} needs data.placement = 'device'.")
    if data.crop_frames > data.max_frames:
        raise UserError(f"data.crop_frames = {data.crop_frames} must be from 1 to data.max_frames = "
                        f"{data.max_frames}, or 0 for no crops.")
    if data.crop_frames and data.placement == "device":
        raise UserError(f"data.crop_frames = {data.crop_frames} needs data.placement = 'host': clips that stay on the "
                        "device are fixed.")
    if not registry.has_pretrained_encoder(model["name"]):
        for key, default in (("layer_decay", 1.0), ("frozen", "0 steps")):
            if (value := getattr(optimizer, key)) != default:
                raise UserError(f"optimizer.{key} = {value!r} applies only to models with an ATST-Frame encoder, which "
                                f"{model['name']!r} lacks.")
    return config


def from_json(text: str, where: errors.Path = "config.json") -> Config:
    """Reads the config that Config.to_json wrote.

    Training values that only earlier versions accepted, such as a negative patience, are replaced by their defaults
    with a warning, so that the trained model can still be used. Raises UserError that names `where`.
    """
    fields = bounds.parse_json(text, dict[str, Any], where)
    for section, kind in (("loss", LossConfig), ("optimizer", OptimizerConfig), ("train", TrainConfig)):
        values = fields.get(section)
        for key in bounds.out_of_bounds(kind, values) if isinstance(values, dict) else ():
            log.warning("%s: %s.%s = %s is no longer supported; using the default.", errors.printable(where),
                        section, key, bounds.shown(values.pop(key)))
    try:
        return freeze(fields)
    except UserError as error:
        raise UserError(f"{errors.printable(where)}: {error}") from error
