"""Files: what a person can edit or damage is read within bounds; outputs are whole or absent, and replace only our own.

Everything that sedjax reads as JSON, npz or CSV comes through here, so a missing, damaged or hostile file ends in one
UserError with its path. Everything that it writes as a single file goes through `atomic_output`, so no command can
overwrite what sedjax did not write.
"""

import collections
import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import secrets
import stat
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pydantic

from sedjax.core.bounds import parse_json
from sedjax.core.errors import Path, UserError, printable

MEBIBYTE = 1 << 20
JSON_BYTES = 256 * MEBIBYTE
TABLE_BYTES = 256 * MEBIBYTE  # of a CSV file whose rows are all in memory at once
OUTPUTS = ".sedjax_outputs"  # in each folder of outputs: name and digest of what sedjax wrote there
TEMPORARY = ".sedjax-"
NAME_BYTES = 255  # that a file system takes


# Reading


@contextlib.contextmanager
def open_file(path: Path, most_bytes: float = math.inf) -> Iterator[io.BufferedReader]:
    """A regular file, open for reading in binary.

    Raises UserError, also for what goes wrong inside the block, if it is missing, unreadable, or larger than
    `most_bytes`, or is a folder, a pipe or a device.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{printable(path)} is not a regular file.")
        if status.st_size > most_bytes:
            raise UserError(f"{printable(path)} has {status.st_size:,} bytes, but a file of its kind may have "
                            f"{int(most_bytes):,} at most.")
        with open(path, "rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"There is no file {printable(path)}.") from error
    except OSError as error:
        raise UserError(f"Cannot read {printable(path)}: {error.strerror or error}.") from error
    except ValueError as error:  # a zero byte in the path
        raise UserError(f"Cannot read {printable(path)}: {error}.") from error


def read_text(path: Path, most_bytes: float = JSON_BYTES) -> str:
    """The text of a UTF-8 file. Raises UserError."""
    with open_file(path, most_bytes) as file:
        content = file.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)} is damaged: it is not UTF-8 text.") from error


def read_json(path: Path, form: Any = Any) -> Any:
    """The value that a JSON file holds, of the type `form`. Raises UserError."""
    return parse_json(read_text(path), form, path)


def read_json_lines(path: Path, form: Any = dict[str, Any]) -> list:
    """The values of a file of JSON lines, in order, without lines that are incomplete, damaged or of another form.

    A file that is not there has none. Raises UserError if it cannot be read.
    """
    if not os.path.lexists(path):
        return []
    adapter, values = pydantic.TypeAdapter(form), []
    with open_file(path, JSON_BYTES) as file:
        for line in file.read().splitlines():
            with contextlib.suppress(pydantic.ValidationError):
                values.append(adapter.validate_json(line, strict=True))
    return values


def read_csv(path: Path, required: Iterable[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file with a header. Raises UserError if it cannot be read, or lacks a column."""
    rows = csv_rows(path, TABLE_BYTES)
    line, header = next(rows, (1, []))
    if missing := [column for column in required if column not in header]:
        raise UserError(f"{printable(path)}, line {line}: the column {missing[0]!r} is missing.")
    if len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise UserError(f"{printable(path)}, line {line}: the column {twice!r} is there twice.")
    table = []
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{printable(path)}, line {line}: the number of columns is not that of the header.")
        table.append(dict(zip(header, row)))
    return table


def csv_rows(path: Path, most_bytes: float = math.inf) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file that are not blank, each with the number of its line. Raises UserError."""
    with open_file(path, most_bytes) as file:
        # newline="": the csv module tells the ends of lines itself, of which a quoted field may hold some.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, strict=True)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise UserError(f"{printable(path)}, line {_undecodable_line(path)}: not UTF-8 text.") from error
        except csv.Error as error:
            raise UserError(f"{printable(path)}, line {reader.line_num}: not a row of a CSV file ({error}).") from error
        finally:
            text.detach()


def _undecodable_line(path: Path) -> int:
    # Text is decoded in blocks ahead of the rows, so only a second look tells the line.
    with open_file(path) as file:
        for line, raw in enumerate(file, start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1


# Writing


@contextlib.contextmanager
def atomic_output(path: Path, ours: bool = False, durable: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` and renames it to `path` when the block ends well.

    Args:
      path: a file that is not there, or one that sedjax wrote and nobody has changed since (`require_replaceable`).
      ours: the caller knows that this file is sedjax's, by the folder that it is in: a workdir, for example.
      durable: the file is on the disk, not only in the system's memory, before it has its name.

    Raises:
      UserError: the folder is missing, read-only or full, or the file is not ours; nothing half-written stays.
    """
    path = pathlib.Path(path)
    if not ours:
        require_replaceable(path)
    # The suffix decides what numpy and matplotlib write. The name is known before the file is there, so that Ctrl-C at
    # any moment leaves none.
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}{path.suffix[:16]}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        if not ours:
            require_replaceable(path)
            _note(path, _digest(temporary))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {printable(path)}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def require_replaceable(path: Path) -> None:
    """Raises UserError if there is a file that sedjax did not write, or that has changed since, unless it is empty.

    Or if no file can have that name.
    """
    path = pathlib.Path(path)
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise UserError(f"Cannot write {printable(path)}: a name may have {NAME_BYTES} bytes at most.")
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise UserError(f"{printable(path)} is there already and is not a regular file: choose another name.")
    if path.stat().st_size and not _is_ours(path):
        raise UserError(f"{printable(path)} is there already and is not as sedjax wrote it: choose another name, or "
                        "move it away.")


def require_writable(path: Path) -> None:
    """Raises UserError if a file at `path` could not be written, because of its folder or as `require_replaceable`."""
    path = pathlib.Path(path)
    if not os.path.isdir(path.parent):
        raise UserError(f"Cannot write {printable(path)}: there is no folder {printable(path.parent)}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write {printable(path)}: the folder {printable(path.parent)} is read-only.")
    require_replaceable(path)


def remove_output(path: Path) -> None:
    """Deletes an output of an earlier run, if there is one. Raises UserError if it is not as sedjax wrote it."""
    path = pathlib.Path(path)
    require_replaceable(path)
    path.unlink(missing_ok=True)


def write_json(path: Path, value: Any, ours: bool = False, durable: bool = False) -> None:
    """Writes a value that JSON can hold, without NaN and infinity. Raises UserError as `atomic_output`."""
    with atomic_output(path, ours, durable) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def make_folder(path: Path) -> pathlib.Path:
    """The folder at `path`, made with its parents if it is not there. Raises UserError if it cannot be."""
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = {errno.EEXIST: "there is a file of that name"}.get(getattr(error, "errno", None)) or (
            getattr(error, "strerror", None) or error)
        raise UserError(f"Cannot make the folder {printable(path)}: {reason}.") from error
    return path


def require_makeable(folder: Path) -> None:
    """Raises UserError if there is no such folder and it cannot be made; leaves none that was not there."""
    folder = pathlib.Path(folder)
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        make_folder(folder)
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _digest(path: pathlib.Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class _Output(pydantic.BaseModel):
    name: str
    digest: str


def _is_ours(path: pathlib.Path) -> bool:
    digests = _outputs(path.parent).get(_key(path))
    return bool(digests) and _digest(path) in digests


# By folder: what tells whether its OUTPUTS is still as this process read or wrote it, and what it says. A run writes
# thousands of files into a folder.
_KNOWN: dict[str, tuple[tuple[int, ...] | None, dict[str, set[str]]]] = {}


def _outputs(folder: pathlib.Path) -> dict[str, set[str]]:
    """Digests of what sedjax wrote into a folder, by `_key`."""
    path, place = folder / OUTPUTS, os.path.abspath(folder)
    state = _state(path)
    if place not in _KNOWN or _KNOWN[place][0] != state:
        digests: dict[str, set[str]] = {}
        for line in read_json_lines(path, _Output):
            digests.setdefault(line.name, set()).add(line.digest)
        _KNOWN[place] = state, digests
    return _KNOWN[place][1]


def _state(path: pathlib.Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _key(path: pathlib.Path) -> str:
    """The name of a file as JSON can hold it, whatever its bytes are."""
    return urllib.parse.quote(os.fsencode(path.name))


def _note(path: pathlib.Path, digest: str) -> None:
    """Notes what is about to be written; a line that a kill leaves without its file does no harm."""
    digests, place = _outputs(path.parent), os.path.abspath(path.parent)
    if digest in digests.get(_key(path), ()):
        return
    # It begins on a line of its own, whatever a full disk or a kill left of the one before.
    line = "\n" + json.dumps({"name": _key(path), "digest": digest}) + "\n"
    with open(path.parent / OUTPUTS, "a", encoding="utf-8") as file:
        file.write(line)
    before, after = _KNOWN[place][0], _state(path.parent / OUTPUTS)
    if after and after[2] == (before[2] if before else 0) + len(line):  # no other process wrote to it meanwhile
        digests.setdefault(_key(path), set()).add(digest)
        _KNOWN[place] = after, digests


def distinct_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The last part of each path, or as many as tell them apart, `printable`.

    Raises UserError if a path comes twice, or two cannot be told apart in print.
    """
    real: set[str] = set()
    for path in paths:
        place = os.path.realpath(path)
        if place in real:
            raise UserError(f"{path} is given twice.")
        real.add(place)
    parts = [pathlib.Path(printable(os.path.abspath(path))).parts for path in paths]
    if alike := [part for part, count in collections.Counter(parts).items() if count > 1]:
        raise UserError(f"Two files have a name that is printed as {pathlib.PurePath(*alike[0])}: rename one.")
    depth = next(n for n in itertools.count(1) if len({part[-n:] for part in parts}) == len(parts))
    return [str(pathlib.PurePath(*part[-depth:])) for part in parts]
