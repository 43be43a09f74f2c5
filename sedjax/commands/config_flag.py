"""The flag --config: a config file, with overrides of its keys on the command line."""

import dataclasses
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
from sedjax.core.config import Config
from sedjax.core.errors import UserError
from sedjax.training.configs import freeze

T = TypeVar("T")
# In an installation inside the package, in the repository next to it.
CONFIGS = next(folder / "configs" for folder in pathlib.Path(__file__).parents[1:3] if (folder / "configs").is_dir())
PACKAGE = "sedjax_configs"  # as which CONFIGS is imported, so that its files can import each other


def define_flag(required: bool = True) -> None:
    """Defines --config, and the flags --config.KEY=VALUE that override its keys."""
    config_flags.DEFINE_config_file("config", None, "Experiment: name of a config, such as embedding_transformer, or a "
                                    "file. Any key can be overridden: --config.optimizer.learning_rate=1e-4.")
    flags.FLAGS["config"].parser = ConfigFile()
    if required:
        flags.mark_flag_as_required("config")


class ConfigFile(flags.ArgumentParser):
    """FILE or FILE:ARGUMENT -> the ConfigDict that the file's get_config() or get_config(ARGUMENT) returns."""

    def parse(self, argument: str) -> ConfigDict:
        path, colon, choice = argument.partition(":")
        if not path:
            raise UserError("--config is given without a value: name one, such as embedding_transformer, or a file.")
        path = _resolve(path)
        text = files.read_text(path, files.MEBIBYTE)
        where = f"The config file {errors.printable(path)}"
        module = types.ModuleType("sedjax_config_file")
        module.__file__ = path
        sys.modules[module.__name__] = module  # where dataclasses in it look for it
        if CONFIGS in (folder := pathlib.Path(path).absolute().parent, folder.parent):
            sys.modules.setdefault(PACKAGE, types.ModuleType(PACKAGE)).__path__ = [str(CONFIGS)]
            module.__package__ = PACKAGE if folder == CONFIGS else f"{PACKAGE}.{folder.name}"
        try:
            exec(compile(text, path, "exec"), module.__dict__)
            if not callable(getattr(module, "get_config", None)):
                raise UserError("it has no function get_config.")
            config = module.get_config(*([choice] if colon else []))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (Exception, SystemExit) as error:  # it is a program, so anything can go wrong
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == path else []
            line = f", line {lines[-1]}," if lines else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(".")
            raise UserError(f"{where}{line} cannot be used: {reason}.") from error
        if not isinstance(config, ConfigDict):
            raise UserError(f"{where}: get_config() must return a ConfigDict, as those in configs/ do, not "
                            f"{bounds.shown(config)}.")
        return config.lock()

    def keys_help(self) -> str:
        """Every key that all configs have, with its default."""
        lines = ["config keys, with the defaults that a config starts from:"]
        for name, value in vars(Config(model={})).items():
            if dataclasses.is_dataclass(value):
                lines += [f"  --config.{name}.{key}={item}" for key, item in vars(value).items()]
            elif name != "model":
                lines.append(f"  --config.{name}={value}")
        return "\n".join([*lines, "  --config.model.*: the fields of the config's model, see sedjax/models/"])


def _resolve(path: str) -> str:
    """The path of a config given as a file or by name, such as "embedding_transformer" or "sweeps/report".

    Raises UserError if it is neither.
    """
    name = path.removeprefix("configs/").removesuffix(".py")
    if os.path.isfile(path) or not re.fullmatch(r"[\w/]+", name):  # a folder may have the name of a config
        return path
    configs = {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in CONFIGS.rglob("*.py")
               if file.stem != "__init__"}
    if name in configs:
        return str(configs[name])
    if path.endswith(".py") or os.path.lexists(path):
        return path
    raise UserError(f"There is no config file {errors.printable(path)}, and no config of that name"
                    f"{bounds.unknown(name, configs)}")


def from_flag(form: Callable[[dict], T] = freeze) -> T:
    """The value of --config, converted from a dict by `form`. Raises UserError with the file's name if that fails."""
    try:
        return form(flags.FLAGS.config.to_dict())
    except UserError as error:
        raise UserError(f"{errors.printable(flags.FLAGS['config'].config_filename)}: {error}") from error
