"""Files: what a person can edit or damage is read within bounds; outputs are whole or absent, and replace only our own.

Everything that sedjax reads as JSON, npz or CSV comes through here, so a missing, damaged or hostile file ends in one
UserError with its path. Everything that it writes as a single file goes through `atomic_output`, so no command can
overwrite what sedjax did not write.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import lzma
import math
import os
import pathlib
import secrets
import stat
import struct
import threading
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pydantic

from sedjax.errors import UserError

Path = str | os.PathLike

MEBIBYTE = 1 << 20
JSON_BYTES = 256 * MEBIBYTE
TABLE_BYTES = 256 * MEBIBYTE  # of a CSV file whose rows are all in memory at once
ARRAY_BYTES = 64 * MEBIBYTE  # that any npz file may expand to, however well it is compressed
ARRAY_EXPANSION = 100  # that a larger one may expand by; deflate reaches 1000 on zeros
OUTPUTS = ".sedjax_outputs"  # in each folder of outputs: name and digest of what sedjax wrote there
TEMPORARY = ".sedjax-"
NAME_BYTES = 255  # that a file system takes

# numpy parses array headers with ast.parse, which raises SystemError now and then when two threads of CPython 3.11 use
# it at once (https://github.com/python/cpython/issues/106905).
_ONE_PARSER = threading.Lock()


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


def parse_json(text: str | bytes, form: Any, where: Path) -> Any:
    """The value that JSON `text` holds, checked against the type `form`, such as dict[str, list[int]].

    Raises UserError that names `where`, and the place in it, if the text is no JSON (too deeply nested, for example)
    or has another form.
    """
    try:
        return pydantic.TypeAdapter(form).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise UserError(f"{printable(where)} is damaged: {problem(error)}.") from error


def problem(error: pydantic.ValidationError) -> str:
    """The first thing that pydantic found wrong, as part of a sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"][:1].lower() + first["msg"][1:]
    return printable(f"{place}: {message}" if place else message).rstrip(".")


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


def read_npz(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an npz file by key; all of them if no `keys` are given. Nothing is unpickled.

    Raises UserError if the file is damaged, lacks a key, or promises more than a file of its size can hold.
    """
    with _open_npz(path, keys) as (archive, members):
        whole = sum(member.file_size for member in members.values())
        packed = sum(member.compress_size for member in members.values())
        if whole > ARRAY_BYTES + ARRAY_EXPANSION * packed:
            raise UserError(f"{printable(path)} would expand from {packed:,} to {whole:,} bytes, more than features or "
                            "labels do.")
        return {key: _read_array(archive, member) for key, member in members.items()}


def npz_names(path: Path) -> tuple[str, ...]:
    """Keys of an npz file; what they name may be damaged. Raises UserError as `read_npz`."""
    with _open_npz(path, None) as (_, members):
        return tuple(members)


def npz_shapes(path: Path, keys: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of arrays of an npz file by key, from their headers alone. Raises UserError as `read_npz`."""
    with _open_npz(path, keys) as (archive, members):
        shapes = {}
        for key, member in members.items():
            with archive.open(member) as file:
                shapes[key] = _read_header(file, member)[0]
        return shapes


def npz_keys(path: Path) -> dict[str, bool]:
    """Keys of the arrays of an npz file: whether sedjax made the array, and nobody has changed it since.

    Raises UserError as `read_npz`.
    """
    with _open_npz(path, None) as (archive, members):
        try:
            made = pydantic.TypeAdapter(dict[str, int]).validate_json(archive.comment, strict=True)
        except pydantic.ValidationError:  # by another program, which has no use for comments, or one of its own
            made = {}
        return {key: made.get(key) == member.CRC for key, member in members.items()}


def npz_checksum(path: Path) -> int:
    """A number that tells the arrays of an npz file from others, without reading them. Raises UserError."""
    with _open_npz(path, None) as (_, members):
        return zlib.crc32(json.dumps({key: member.CRC for key, member in members.items()}).encode())


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


@contextlib.contextmanager
def _open_npz(path: Path, keys: Iterable[str] | None) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An npz file, and its members by key: the given ones, or all. Raises UserError for whatever is wrong inside."""
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                # A key is not a file name: `foo.npy` is stored as foo.npy.npy. numpy takes one for the other.
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                if len(members) < len(archive.infolist()):
                    raise ValueError("two of its arrays have one name")
                if keys is not None:
                    _require_keys(path, keys, members)
                    members = {key: members[key] for key in keys}
                yield archive, members
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, LookupError, RuntimeError,
                struct.error, MemoryError) as error:  # RuntimeError: encrypted, or packed in an unknown way
            reason = str(error).rstrip(".").partition("\n")[0] or type(error).__name__
            raise UserError(f"{printable(path)} is damaged or not an npz file: {printable(reason)}.") from error


def _require_keys(path: Path, keys: Iterable[str], members: dict[str, zipfile.ZipInfo]) -> None:
    if missing := [key for key in keys if key not in members]:
        names = sorted(members)
        shown = f"{names[:20]} and {len(names) - 20:,} more" if len(names) > 20 else f"{names}"
        raise UserError(f"{printable(path)}: {missing[0]!r} is missing; the file holds {shown}.")


def _read_header(file: io.BufferedIOBase, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of the array at the beginning of a member, which holds exactly that array."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with _ONE_PARSER:
            shape, fortran_order, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # numpy tokenises and parses the header as Python, which raises many kinds
        raise ValueError(f"{member.filename} is not an array") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"{member.filename} has the shape {shape}")
    if dtype.hasobject or dtype.names:
        raise ValueError(f"{member.filename} holds {dtype}, not numbers or text")
    promised, stored = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if promised != stored:
        raise ValueError(f"{member.filename} promises {promised:,} bytes and holds {stored:,}")
    return shape, fortran_order, dtype


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        shape, fortran_order, dtype = _read_header(file, member)
        array = np.empty(math.prod(shape), dtype)
        target, filled = memoryview(array.view(np.uint8)) if array.nbytes else memoryview(b""), 0
        while chunk := file.read(MEBIBYTE):  # to the end, where the checksum is compared
            target[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


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


def savez(file: Path, arrays: Mapping[str, np.ndarray], packed: bool = False) -> None:
    """Writes arrays as np.savez does, whatever their keys are; that takes some, such as `file`, for its parameters.

    Raises UserError for a key that no npz file can hold.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for key, value in arrays.items():
            name = f"{key}.npy"
            try:
                if zipfile.ZipInfo(name).filename != name or len(name.encode()) > 0xFFFF:
                    raise ValueError
            except ValueError as error:  # UnicodeEncodeError too
                raise UserError(f"Cannot write {printable(file)}: it cannot hold an array called "
                                f"{printable(key[:100])!r}.") from error
            with archive.open(name, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)


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


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], made: Iterable[str]) -> None:
    """As `savez`, with a comment that gives the checksums of the arrays `made` by sedjax, for `npz_keys`."""
    savez(path, arrays)
    with zipfile.ZipFile(path, "a") as archive:
        sums = {info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()}
        archive.comment = json.dumps({key: sums[key] for key in made}).encode("ascii")


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


def printable(text: Path) -> str:
    """The same text with an escape for each control character, and for each byte that is not UTF-8."""
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if text.isprintable() else "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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
