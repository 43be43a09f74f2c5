"""Notes which extractor computed the embeddings in a directory, for models that are trained on them to name it."""

import json
import pathlib

from sedjax.commands import atomic_output
from sedjax.layout import EXTRACTORS


def note(directory: pathlib.Path, path: str, parameters: str, **options) -> None:
    """Notes that all embeddings in a directory are of one extractor.

    Args:
      directory: in MLPC layout.
      path: of the extractor.
      parameters: those of the sedjax.extractors.Extractor, by which it is known again.
      options: with which it was made.
    """
    entry = {"path": str(pathlib.Path(path).absolute()), "parameters": parameters, **options}
    with atomic_output(directory / EXTRACTORS) as temporary:
        temporary.write_text(json.dumps({"embeddings": entry}, indent=1), encoding="utf-8")


def forget(directory: pathlib.Path) -> None:
    """Notes that nothing is known: embeddings may now be of several."""
    (directory / EXTRACTORS).unlink(missing_ok=True)
