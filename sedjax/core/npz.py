"""npz files: bounded reads without unpickling; writes with checksums of the arrays that sedjax computed."""

import contextlib
import io
import lzma
import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from sedjax.core.errors import Path, UserError, printable
from sedjax.core.files import MEBIBYTE, open_file

ARRAY_BYTES = 64 * MEBIBYTE  # size that any npz file may expand to, however well it is compressed
ARRAY_EXPANSION = 100  # largest expansion factor of larger files; deflate reaches 1000 on zeros
# numpy parses array headers with ast.parse, which occasionally raises SystemError in CPython 3.11 when two threads use
# it at once (https://github.com/python/cpython/issues/106905).
_ONE_PARSER = threading.Lock()


def read_npz(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an npz file by key; all of them if `keys` is None. Nothing is unpickled.

    Raises UserError if the file is damaged, lacks a key, or would expand too far for its size.
    """
    with _open_npz(path, keys) as (archive, members):
        expanded = sum(member.file_size for member in members.values())
        compressed = sum(member.compress_size for member in members.values())
        if expanded > ARRAY_BYTES + ARRAY_EXPANSION * compressed:
            raise UserError(f"{printable(path)} would expand from {compressed:,} to {expanded:,} bytes, more than "
                            "features or labels do.")
        return {key: _read_array(archive, member) for key, member in members.items()}


def npz_shapes(path: Path, keys: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in an npz file by key, from their headers alone. Raises UserError as `read_npz` does."""
    return {key: shape for key, (shape, _) in npz_headers(path, keys).items()}


def npz_headers(path: Path, keys: Iterable[str] | None = None) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and types of the arrays in an npz file by key. Raises UserError as `read_npz` does."""
    with _open_npz(path, keys) as (archive, members):
        headers = {}
        for key, member in members.items():
            with archive.open(member) as file:
                shape, _, dtype = _read_header(file, member)
                headers[key] = shape, dtype
        return headers


def npz_names(path: Path) -> tuple[str, ...]:
    """Keys of an npz file, whose arrays may be damaged. Raises UserError as `read_npz` does."""
    with _open_npz(path, None) as (_, members):
        return tuple(members)


def npz_sums(path: Path) -> tuple[dict[str, int], bytes]:
    """Checksum of each array of an npz file by key, and the comment of the file. Raises UserError as `read_npz`."""
    with _open_npz(path, None) as (archive, members):
        return {key: member.CRC for key, member in members.items()}, archive.comment


@contextlib.contextmanager
def open_zip(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file of a kind, such as "an npz file". Raises UserError, also for errors in the block."""
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, LookupError, RuntimeError,
                struct.error, MemoryError) as error:  # RuntimeError: encrypted, or an unknown compression
            reason = str(error).rstrip(".").partition("\n")[0] or type(error).__name__
            raise UserError(f"{printable(path)} is damaged or not {kind}: {printable(reason)}.") from error


@contextlib.contextmanager
def _open_npz(path: Path, keys: Iterable[str] | None) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Opens an npz file; yields it and its members for `keys` (None: all). Raises UserError if it is damaged."""
    with open_zip(path, "an npz file") as archive:
        # A key is not a file name: `foo.npy` is stored as foo.npy.npy. numpy confuses the two.
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its arrays have the same name")
        if keys is not None:
            _require_keys(path, keys, members)
            members = {key: members[key] for key in keys}
        yield archive, members


def _require_keys(path: Path, keys: Iterable[str], members: dict[str, zipfile.ZipInfo]) -> None:
    if missing := [key for key in keys if key not in members]:
        names = sorted(members)
        shown = f"{names[:20]} and {len(names) - 20:,} more" if len(names) > 20 else f"{names}"
        raise UserError(f"{printable(path)}: {missing[0]!r} is missing; the file holds {shown}.")


def _read_header(file: io.BufferedIOBase, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype from the header of a member, which must hold exactly that array."""
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
        raise ValueError(f"{member.filename} promises {promised:,} bytes but holds {stored:,}")
    return shape, fortran_order, dtype


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        shape, fortran_order, dtype = _read_header(file, member)
        array = np.empty(math.prod(shape), dtype)
        read_into(array, file)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def read_into(array: np.ndarray, file: io.BufferedIOBase) -> None:
    """Fills a contiguous array with the rest of a member of a zip file, of the same size."""
    target, filled = memoryview(array.view(np.uint8)) if array.nbytes else memoryview(b""), 0
    while chunk := file.read(MEBIBYTE):  # to the end, where zipfile verifies the checksum
        target[filled : filled + len(chunk)] = chunk
        filled += len(chunk)


def savez(file: Path, arrays: Mapping[str, np.ndarray], packed: bool = False) -> None:
    """Writes arrays like np.savez, but with any keys; np.savez treats some, such as `file`, as its own parameters.

    Raises UserError for a key that an npz file cannot hold.
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


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], comment: Callable[[dict[str, int]], bytes]) -> None:
    """As `savez`, with a comment that is a function of the checksums of the arrays by key."""
    savez(path, arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment({info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()})
