"""Files: bounded reads of files that users can edit or damage; atomic outputs that replace only what sedjax wrote.

All JSON, npz and CSV files are read through this module, so a missing, damaged or hostile file raises one UserError
with its path. All single-file outputs go through `atomic_output`, so no command can overwrite a file that sedjax did
not write.
"""

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

from sedjax.core.bounds import parse_json, twice
from sedjax.core.errors import Path, UserError, printable

MEBIBYTE = 1 << 20
JSON_BYTES = 256 * MEBIBYTE
TABLE_BYTES = 256 * MEBIBYTE  # largest CSV file that is read into memory at once
OUTPUTS = ".sedjax_outputs"  # in each output folder: names and digests of the files sedjax wrote
TEMPORARY = ".sedjax-"
NAME_BYTES = 255  # longest file name on common file systems


# Reading


@contextlib.contextmanager
def open_file(path: Path, most_bytes: float = math.inf) -> Iterator[io.BufferedReader]:
    """Opens a regular file for reading in binary mode.

    Raises UserError, also for errors inside the block, if the file is missing, unreadable or larger than `most_bytes`,
    or is a folder, a pipe or a device.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{printable(path)} is not a regular file.")
        if status.st_size > most_bytes:
            raise UserError(f"{printable(path)} has {status.st_size:,} bytes, but files of this kind may have "
                            f"at most {int(most_bytes):,} bytes.")
        with open(path, "rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"There is no file {printable(path)}.") from error
    except OSError as error:
        raise UserError(f"Cannot read {printable(path)}: {error.strerror or error}.") from error
    except ValueError as error:  # a zero byte in the path
        raise UserError(f"Cannot read {printable(path)}: {error}.") from error


def read_text(path: Path, most_bytes: float = JSON_BYTES) -> str:
    """Returns the text of a UTF-8 file. Raises UserError."""
    with open_file(path, most_bytes) as file:
        content = file.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)} is damaged: it is not UTF-8 text.") from error


def read_json(path: Path, form: Any = Any) -> Any:
    """Returns the value in a JSON file, validated against the type `form`. Raises UserError."""
    return parse_json(read_text(path), form, path)


def read_json_lines(path: Path, form: Any = dict[str, Any]) -> list:
    """Values of a JSON lines file, in order; lines that are incomplete, damaged or do not match `form` are skipped.

    A missing file has no values. Raises UserError if the file cannot be read.
    """
    if not os.path.lexists(path):
        return []
    adapter, values = pydantic.TypeAdapter(form), []
    with open_file(path, JSON_BYTES) as file:
        for line in file.read().splitlines():
            with contextlib.suppress(pydantic.ValidationError):
                values.append(adapter.validate_json(line, strict=True))
    return values


def read_csv(path: Path, required: Iterable[str] = ()) -> dict[int, dict[str, str]]:
    """Rows of a CSV file with a header, by line number. Raises UserError if it cannot be read, or lacks a column."""
    rows = csv_rows(path, TABLE_BYTES)
    line, header = next(rows, (1, []))
    if missing := [column for column in required if column not in header]:
        raise UserError(f"{printable(path)}, line {line}: the column {missing[0]!r} is missing.")
    if (repeated := twice(header)) is not None:
        raise UserError(f"{printable(path)}, line {line}: the column {repeated!r} appears twice.")
    table = {}
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{printable(path)}, line {line}: the number of columns differs from the header.")
        table[line] = dict(zip(header, row))
    return table


def csv_rows(path: Path, most_bytes: float = math.inf, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Non-blank rows of a CSV file with their line numbers. Raises UserError."""
    with open_file(path, most_bytes) as file:
        # newline="": the csv module splits lines itself, since a quoted field may contain line breaks.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
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
    # Text is decoded in blocks ahead of the rows, so finding the line takes a second pass.
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
    """Yields a temporary path next to `path` and renames it to `path` if the block succeeds.

    Args:
      path: a new file, or one that sedjax wrote and nobody has changed since (`require_replaceable`).
      ours: the caller knows that the file belongs to sedjax, because it is in a workdir, for example.
      durable: flush the file to disk before renaming it.

    Raises:
      UserError: the folder is missing, read-only or full, or the file is not ours; no partial file is left behind.
    """
    path = pathlib.Path(path)
    if not ours:
        require_replaceable(path)
    # The suffix tells numpy and matplotlib the format. The name is chosen before the file exists, so that Ctrl-C at any
    # moment leaves no file behind.
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}{path.suffix[:16]}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        if not ours:
            require_replaceable(path)
            _record(path, _digest(temporary))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {printable(path)}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def require_replaceable(path: Path) -> None:
    """Raises UserError if `path` is a non-empty file that sedjax did not write or that has changed since.

    Also if the name is too long for a file.
    """
    path = pathlib.Path(path)
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise UserError(f"Cannot write {printable(path)}: its name is longer than {NAME_BYTES} bytes.")
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise UserError(f"{printable(path)} already exists and is not a regular file: choose another name.")
    if path.stat().st_size and not _is_ours(path):
        raise UserError(f"{printable(path)} already exists and sedjax did not write it, or it has been changed since: "
                        "choose another name, or move it away.")


def require_writable(path: Path) -> None:
    """Raises UserError if `path` cannot be written, because of its folder or as in `require_replaceable`."""
    path = pathlib.Path(path)
    if not os.path.isdir(path.parent):
        raise UserError(f"Cannot write {printable(path)}: there is no folder {printable(path.parent)}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write {printable(path)}: the folder {printable(path.parent)} is read-only.")
    require_replaceable(path)


def remove_output(path: Path) -> None:
    """Deletes the output of an earlier run, if any. Raises UserError as `require_replaceable` does."""
    path = pathlib.Path(path)
    require_replaceable(path)
    path.unlink(missing_ok=True)


def write_json(path: Path, value: Any, ours: bool = False, durable: bool = False) -> None:
    """Writes a JSON value without NaN or infinity. Raises UserError as `atomic_output` does."""
    with atomic_output(path, ours, durable) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Iterable], delimiter: str = ",") -> None:
    """Writes the rows of a CSV file, header first. Raises UserError as `atomic_output` does."""
    with atomic_output(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def make_folder(path: Path) -> pathlib.Path:
    """Returns the folder `path`, created with its parents if missing. Raises UserError if that fails."""
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = {errno.EEXIST: "a file of that name exists"}.get(getattr(error, "errno", None)) or (
            getattr(error, "strerror", None) or error)
        raise UserError(f"Cannot create the folder {printable(path)}: {reason}.") from error
    return path


def require_makeable(folder: Path) -> None:
    """Raises UserError if the folder does not exist and cannot be created; leaves no new folder behind."""
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


# By folder: the state of its OUTPUTS file when this process last read or wrote it, and the digests in it. Cached, as a
# run writes thousands of files into a folder.
_KNOWN: dict[str, tuple[tuple[int, ...] | None, dict[str, set[str]]]] = {}


def _outputs(folder: pathlib.Path) -> dict[str, set[str]]:
    """Digests of the files that sedjax wrote into a folder, by `_key`."""
    path, absolute = folder / OUTPUTS, os.path.abspath(folder)
    state = _state(path)
    if absolute not in _KNOWN or _KNOWN[absolute][0] != state:
        digests: dict[str, set[str]] = {}
        for line in read_json_lines(path, _Output):
            digests.setdefault(line.name, set()).add(line.digest)
        _KNOWN[absolute] = state, digests
    return _KNOWN[absolute][1]


def _state(path: pathlib.Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _key(path: pathlib.Path) -> str:
    """The file name, quoted so that JSON can hold any bytes."""
    return urllib.parse.quote(os.fsencode(path.name))


def _record(path: pathlib.Path, digest: str) -> None:
    """Records a file that is about to be written; a line whose file is missing after a kill does no harm."""
    digests, absolute = _outputs(path.parent), os.path.abspath(path.parent)
    if digest in digests.get(_key(path), ()):
        return
    # The leading newline ends a line that a full disk or a kill left incomplete.
    line = "\n" + json.dumps({"name": _key(path), "digest": digest}) + "\n"
    with open(path.parent / OUTPUTS, "a", encoding="utf-8") as file:
        file.write(line)
    before, after = _KNOWN[absolute][0], _state(path.parent / OUTPUTS)
    if after and after[2] == (before[2] if before else 0) + len(line):  # no other process has written to it
        digests.setdefault(_key(path), set()).add(digest)
        _KNOWN[absolute] = after, digests


def distinct_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The shortest path endings that are all distinct, as `printable` text.

    Raises UserError if a path is given twice, or two paths look the same when printed.
    """
    real = [os.path.realpath(path) for path in paths]
    if repeated := twice(real):
        raise UserError(f"{paths[real.index(repeated)]} is given twice.")
    parts = [pathlib.Path(printable(os.path.abspath(path))).parts for path in paths]
    if same := twice(parts):
        raise UserError(f"The names of two files are both printed as {pathlib.PurePath(*same)}: rename one.")
    depth = next(n for n in itertools.count(1) if len({part[-n:] for part in parts}) == len(parts))
    return [str(pathlib.PurePath(*part[-depth:])) for part in parts]
