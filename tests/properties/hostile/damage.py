"""Ways to spoil a file: each takes a path and leaves there what somebody, or a disk, may have left."""

import functools
import io
import os
import pathlib
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

Damage = Callable[[pathlib.Path], None]


def remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def write(content: bytes | str) -> Damage:
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content

    def spoil(path: pathlib.Path) -> None:
        remove(path)
        path.write_bytes(content)

    return spoil


def change(function: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(function(path.read_bytes()))


def cut(share: float) -> Damage:
    return change(lambda content: content[: int(len(content) * share)])


def flip(share: float, bits: int = 0x40) -> Damage:
    def spoil(content: bytes) -> bytes:
        at = min(int(len(content) * share), len(content) - 1)
        return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]

    return change(spoil)


def folder(path: pathlib.Path) -> None:
    remove(path)
    path.mkdir()


def fifo(path: pathlib.Path) -> None:
    remove(path)
    os.mkfifo(path)


def link(target: str) -> Damage:
    def spoil(path: pathlib.Path) -> None:
        remove(path)
        path.symlink_to(target)

    return spoil


def loop(path: pathlib.Path) -> None:
    link(path.name)(path)


# What no file may be, whatever it is read for.
NO_FILE: dict[str, Damage] = {
    "missing": remove, "a folder": folder, "a FIFO": fifo, "a link to itself": loop, "/dev/zero": link("/dev/zero"),
    "unreadable": link("/proc/self/mem"), "a link to nothing": link("nothing"), "a terminal": link("/dev/ptmx"),
}
NO_TEXT: dict[str, Damage] = {
    "empty": write(b""), "binary": write(bytes(range(256)) * 8), "zeros": write(bytes(1000)),
    "UTF-16": change(lambda content: content.decode().encode("utf-16")),
}
NO_CSV: dict[str, Damage] = {
    **NO_TEXT, "an open quote": change(lambda content: content + b'"x'), "a blank line": write(b"\n"),
    "a header of 10^6 columns": write(b"filename" + b",x" * 10**6 + b"\n"),
    "a column twice": change(lambda content: b"filename," + content.replace(b"\n", b"\na,")[:-2]),
    "another header": change(lambda content: b"x" + content),
    "a row too short": change(lambda content: content + b"\n\"\"\n"),
    "NUL": change(lambda content: content.replace(b"1", b"\x00", 1)),
    "a field of 200 kB": change(lambda content: content + b"x" * 200_000 + b",1,2,3,4\n"),
}
DEEP = "[" * 100_000 + "]" * 100_000
NO_JSON: dict[str, Damage] = {
    **NO_TEXT, "cut": cut(0.6), "deep nesting": write(DEEP),
    "deep objects": write('{"a":' * 50_000 + "1" + "}" * 50_000),
    "null": write("null"), "a number": write("1"), "text": write('"text"'), "a list": write("[[1, 2], 3]"),
    "NaN": write("NaN"), "two values": write("{} {}"), "a lone surrogate": write('{"\\ud800": 1}'),
    "10^5 digits": write('{"a": ' + "9" * 100_000 + "}"),
}


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def members(path: pathlib.Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path: pathlib.Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def array_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    """An npy file whose header says what it likes."""
    raw = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data


def member(function: Callable[[bytes], bytes], which: int | None = None) -> Damage:
    """Changes the bytes of members of an npz file: of number `which`, or of all."""

    def spoil(path: pathlib.Path) -> None:
        found = members(path)
        write_members(path, {name: function(value) if which in (None, i) else value
                             for i, (name, value) in enumerate(found.items())})

    return spoil


def arrays(function: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Changes all arrays of an npz file."""

    def spoil(path: pathlib.Path) -> None:
        with np.load(path) as archive:
            changed = {name: function(value) for name, value in archive.items()}
        write_members(path, {f"{name}.npy": array_bytes(value, True) for name, value in changed.items()})

    return spoil


def encrypted(path: pathlib.Path) -> None:
    """Says of every member that it takes a password."""
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + at] |= 1
            place = content.find(mark, place + 4)
    path.write_bytes(content)


@functools.cache
def _zeros() -> tuple[bytes, int, int]:
    """128 MB of zeros as an array: packed, their size and their checksum."""
    content = header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({8 << 20}, 4), }}") + bytes(128 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush(), len(content), zlib.crc32(content)


def bomb(path: pathlib.Path) -> None:
    """Every array expands to 128 MB of zeros."""
    packed, size, checksum = _zeros()
    write_members(path, dict.fromkeys(members(path), packed))
    content = bytearray(path.read_bytes())
    for mark, method, sizes in ((b"PK\x03\x04", 8, 14), (b"PK\x01\x02", 10, 16)):
        place = content.find(mark)
        while place >= 0:
            struct.pack_into("<H", content, place + method, zipfile.ZIP_DEFLATED)
            struct.pack_into("<III", content, place + sizes, checksum, len(packed), size)
            place = content.find(mark, place + 4)
    path.write_bytes(content)


def promises(shape: str) -> Damage:
    return member(lambda value: header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}", bytes(64)))


class Touch:
    """A pickle that leaves a file behind when it is read."""

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("unpickled"),))


NO_NPZ: dict[str, Damage] = {
    "empty": write(b""), "text": write("frames, frames"), "binary": write(bytes(range(256)) * 8), "cut": cut(0.7),
    "cut at the end": cut(0.99), "no members": write(b"PK\x05\x06" + bytes(18)),
    "a pickle": write(pickle.dumps(Touch())), "a pickle in every member": member(lambda value: pickle.dumps(Touch())),
    "text in every member": member(lambda value: b"no array"),
    "empty members": member(lambda value: b""),
    "arrays of objects": arrays(lambda value: np.array([Touch(), None], object)),
    "structured arrays": arrays(lambda value: np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "arrays of text": arrays(lambda value: value.astype("U8")),
    "arrays of dates": arrays(lambda value: value.astype(int).astype("M8[s]")),
    "complex arrays": arrays(lambda value: value.astype(np.complex64) + 1j),
    "no rows": arrays(lambda value: value[:0]), "no columns": arrays(lambda value: value[..., :0]),
    "numbers without axes": arrays(lambda value: np.float32(1)),
    "three axes too many": arrays(lambda value: value[None, None, None]),
    "10^12 rows promised": promises("(1000000000000, 16)"), "10^60 rows promised": promises(f"({10**60}, 16)"),
    "negative rows promised": promises("(-1, 16)"), "more promised than there is": promises("(17, 1)"),
    "a shape that is no tuple": promises("'x'"), "a shape of floats": promises("(1.5, 2)"),
    "a nested header": member(lambda value: header("(" * 5000 + ")" * 5000)),
    "a header of 60 kB": member(lambda value: header("{" + " " * 60_000 + "}")),
    "a header that is code": member(lambda value: header("__import__('os').mkdir('ran')")),
    "an unknown version": member(lambda value: value[:6] + b"\x09\x09" + value[8:]),
    "an encrypted archive": encrypted, "a bomb": bomb,
    "flipped data": flip(0.5),
}
NOT_FINITE: dict[str, Damage] = {
    "NaN": arrays(lambda value: np.full(value.shape, np.nan, np.float32)),
    "infinity": arrays(lambda value: np.full(value.shape, np.inf, np.float32)),
    "10^300": arrays(lambda value: np.full(value.shape, 1e300)),
}
