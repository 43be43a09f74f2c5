"""Notes what computed the features in a directory, for models that are trained on them to compute them again."""

import json
import pathlib
from collections.abc import Iterable

from sedjax.files import atomic_output
from sedjax.layout import EXTRACTORS


def note(directory: pathlib.Path, origins: dict[str, dict]) -> None:
    """Notes that all features of these keys in a directory are of one origin; what is noted of others stays.

    Args:
      directory: in MLPC layout.
      origins: by key; `parameters` are what the numbers depend on, of embeddings from `of_extractor`.
    """
    _write(directory, _read(directory) | origins)


def of_extractor(path: str, parameters: str, **options) -> dict:
    """The origin of embeddings: where the sedjax.extractors.Extractor lies, its parameters, and how it was made."""
    return {"path": str(pathlib.Path(path).absolute()), "parameters": parameters, **options}


def forget(directory: pathlib.Path, keys: Iterable[str]) -> None:
    """Notes that nothing is known of these features: they may now be of several origins."""
    known = _read(directory)
    if known.keys() & set(keys):
        _write(directory, {key: value for key, value in known.items() if key not in set(keys)})


def _read(directory: pathlib.Path) -> dict[str, dict]:
    try:
        found = json.loads((directory / EXTRACTORS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a damaged one is written anew
        return {}
    return found if isinstance(found, dict) else {}


def _write(directory: pathlib.Path, origins: dict[str, dict]) -> None:
    if not origins:
        (directory / EXTRACTORS).unlink(missing_ok=True)
        return
    with atomic_output(directory / EXTRACTORS, ours=True) as temporary:
        temporary.write_text(json.dumps(origins, indent=1), encoding="utf-8")
