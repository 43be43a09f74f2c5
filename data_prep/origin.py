"""Notes what computed the features in a directory, for models that are trained on them to compute them again."""

import os
import pathlib
from collections.abc import Iterable

import pydantic

from sedjax.core import files
from sedjax.data.layout import EXTRACTORS

Origin = dict[str, str | int | pydantic.FiniteFloat]


def note(directory: pathlib.Path, origins: dict[str, Origin]) -> None:
    """Notes that all features of these keys in a directory are of one origin; what is noted of others stays.

    Args:
      directory: in MLPC layout.
      origins: by key; `parameters` are what the numbers depend on, of embeddings from `of_extractor`.
    """
    _write(directory, _read(directory) | origins)


def of_extractor(path: str, parameters: str, **options) -> Origin:
    """The origin of embeddings: where the extractor lies, its parameters, and how it was made."""
    return {"path": str(pathlib.Path(path).absolute()), "parameters": parameters, **options}


def forget(directory: pathlib.Path, keys: Iterable[str]) -> None:
    """Notes that nothing is known of these features: they may now be of several origins.

    Raises UserError if the file that notes it is damaged, or is another program's.
    """
    known = _read(directory)
    if known.keys() & set(keys):
        _write(directory, {key: value for key, value in known.items() if key not in set(keys)})


def _read(directory: pathlib.Path) -> dict[str, Origin]:
    path = directory / EXTRACTORS
    return files.read_json(path, dict[str, Origin]) if os.path.lexists(path) else {}


def _write(directory: pathlib.Path, origins: dict[str, Origin]) -> None:
    if origins:
        files.write_json(directory / EXTRACTORS, origins, ours=True)
    else:
        (directory / EXTRACTORS).unlink(missing_ok=True)
