"""Folders that are made beside their place and put there whole, so that a kill at any moment loses nothing."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

PREFIX = ".sedjax-folder-"
MARK, NEW, OLD = ".sedjax_staging", "new", "old"


@contextlib.contextmanager
def staging(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A hidden folder beside `output` whose `new` is to become it; it is removed at the end, whatever is in it.

    What a killed process left of the same output is removed first; if it was killed while it replaced the output, the
    old one is back in its place.

    Raises OSError.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    for remains in output.parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), open(remains / MARK, "r+b") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
            if mark.read() == _name(output) and {path.name for path in remains.iterdir()} <= {MARK, NEW, OLD}:
                _clear(remains, output)
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


def put(folder: pathlib.Path, new: pathlib.Path, output: pathlib.Path,
        require_ours: Callable[[pathlib.Path], None]) -> None:
    """Puts `new`, in a staging folder, in the place of `output`.

    Raises OSError, and whatever `require_ours` raises of an old output that must not be replaced.
    """
    for path in new.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if os.path.lexists(output):
        output.rename(folder / OLD)  # `staging` puts it back if anything goes wrong from here
        require_ours(folder / OLD)
    new.rename(output)


def _clear(folder: pathlib.Path, output: pathlib.Path) -> None:
    if os.path.lexists(folder / OLD) and not os.path.lexists(output):
        (folder / OLD).rename(output)
    shutil.rmtree(folder, ignore_errors=True)


def _name(output: pathlib.Path) -> bytes:
    return os.fsencode(output.name)
