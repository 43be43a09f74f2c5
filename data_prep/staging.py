"""Folders that are built next to their destination and moved there when complete, so that a kill loses nothing."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from sedjax.core.errors import UserError

PREFIX = ".sedjax-folder-"
MARK, NEW, OLD = ".sedjax_staging", "new", "old"


@contextlib.contextmanager
def staging(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a hidden folder next to `output`, for building `new`, its replacement; removes the folder at the end.

    Leftovers of a killed process for the same output are removed first; if it was killed while replacing the output,
    the old output is restored.

    Raises UserError for any OSError, also inside the block: the output cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for leftover in output.parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError), open(leftover / MARK, "r+b") as mark:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process is alive
                if mark.read() == _name(output) and {path.name for path in leftover.iterdir()} <= {MARK, NEW, OLD}:
                    _clear(leftover, output)
        folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=output.parent))
        try:
            with open(folder / MARK, "xb") as mark:
                fcntl.flock(mark, fcntl.LOCK_EX)
                mark.write(_name(output))
                mark.flush()
                (folder / NEW).mkdir()
                yield folder
        finally:
            _clear(folder, output)
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error


def require_empty(folder: pathlib.Path) -> None:
    """Raises UserError if `folder` is anything but an empty folder."""
    if not folder.is_dir() or any(folder.iterdir()):
        raise UserError("The output was filled with something else meanwhile: choose another one.")


def put(folder: pathlib.Path, output: pathlib.Path,
        require_ours: Callable[[pathlib.Path], None] = require_empty) -> None:
    """Replaces `output` with `new` of a staging folder.

    Raises OSError, and the errors of `require_ours` for an old output that must not be replaced.
    """
    for path in (folder / NEW).rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if os.path.lexists(output):
        output.rename(folder / OLD)  # `staging` puts it back if anything goes wrong from here
        require_ours(folder / OLD)
    (folder / NEW).rename(output)


def _clear(folder: pathlib.Path, output: pathlib.Path) -> None:
    if os.path.lexists(folder / OLD) and not os.path.lexists(output):
        (folder / OLD).rename(output)
    shutil.rmtree(folder, ignore_errors=True)


def _name(output: pathlib.Path) -> bytes:
    return os.fsencode(output.name)
