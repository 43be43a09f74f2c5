"""The flag --config: a config file, and changes of its keys on the command line."""

import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable
from typing import TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from sedjax.core import bounds, errors, files
from sedjax.core.errors import UserError
from sedjax.training.configs import freeze

T = TypeVar("T")
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def define_flag(required: bool = True) -> None:
    """Defines --config: a config, any of whose keys the command line can change."""
    config_flags.DEFINE_config_file("config", None, "Experiment: name of a config, such as embedding_transformer, or a "
                                    "file. Any key can be changed: --config.optimizer.learning_rate=1e-4.")
    flags.FLAGS["config"].parser = ConfigFile()
    if required:
        flags.mark_flag_as_required("config")


class ConfigFile(flags.ArgumentParser):
    """FILE or FILE:ARGUMENT -> the ConfigDict that the file's get_config() or get_config(ARGUMENT) returns."""

    def parse(self, argument: str) -> ConfigDict:
        path, colon, choice = argument.partition(":")
        if not path:
            raise UserError("--config is given without a value: name one, such as embedding_transformer, or a file.")
        path = _place_of(path)
        text = files.read_text(path, files.MEBIBYTE)
        where = f"The config file {errors.printable(path)}"
        module = types.ModuleType("sedjax_config_file")
        module.__file__ = path
        sys.modules[module.__name__] = module  # where dataclasses in it look for it
        try:
            exec(compile(text, path, "exec"), module.__dict__)
            if not callable(getattr(module, "get_config", None)):
                raise UserError("there is no function get_config in it.")
            config = module.get_config(*([choice] if colon else []))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (Exception, SystemExit) as error:  # it is a program: whatever can go wrong in one
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == path else []
            place = f", line {lines[-1]}," if lines else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(".")
            raise UserError(f"{where}{place} cannot be used: {reason}.") from error
        if not isinstance(config, ConfigDict):
            raise UserError(f"{where}: get_config() must return a ConfigDict, as those in configs/ do, not "
                            f"{bounds.shown(config)}.")
        return config.lock()

    def flag_type(self) -> str:
        return "config file"


def _place_of(path: str) -> str:
    """The path of a config that is given as a file, or by name: "embedding_transformer", "sweeps/report".

    Raises UserError if it is neither.
    """
    name = path.removeprefix("configs/").removesuffix(".py")
    if os.path.lexists(path) or not re.fullmatch(r"[\w/]+", name):
        return path
    ours = {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in CONFIGS.rglob("*.py")
            if file.stem != "__init__"}
    if name in ours:
        return str(ours[name])
    if path.endswith(".py"):
        return path
    raise UserError(f"There is no config file {errors.printable(path)}, and no config of that name"
                    f"{bounds.unknown(name, ours)}")


def from_flag(form: Callable[[dict], T] = freeze) -> T:
    """What --config holds, as `form` makes it of a dict. Raises UserError with the file's name if it cannot be used."""
    try:
        return form(flags.FLAGS.config.to_dict())
    except UserError as error:
        raise UserError(f"{errors.printable(flags.FLAGS['config'].config_filename)}: {error}") from error
