"""The config files, for data of the widths of MLPC 2025."""

import functools
import importlib
import pathlib

from sedjax.core.config import Config
from sedjax.training.configs import changed, freeze

CHOICES = {"demo": ("naive", "conv_transformer", "embedding_transformer")}  # what get_config takes


def make(name: str, *choice: str, deep: bool = True) -> Config:
    """A config without the records and weights that it names; with one layer in place of many unless it is `deep`."""
    config = importlib.import_module(f"configs.{name}").get_config(*choice)
    layers = {f"model__{key}": 1 for key in ("layers", "atst_layers") if key in config.model and not deep}
    return freeze(changed(config, data__path="", train__initial_weights="", **layers).to_dict())


NAMES = sorted(path.stem for path in (pathlib.Path(__file__).parents[2] / "configs").glob("[a-z]*.py"))
CONFIGS = {":".join((name, choice)) if choice else name: functools.partial(make, name, *([choice] if choice else []))
           for name in NAMES for choice in CHOICES.get(name, ("",))}
