"""PyTorch's checkpoints without PyTorch: the tensors of a state dict, by an interpreter that can do nothing else.

A checkpoint is a zip file of a pickle and the raw values of its tensors. Unpickling calls what the pickle names. Here
pickletools splits the pickle into opcodes, and the few that a state dict consists of only build dicts, lists, tuples,
numbers and text; names are compared with the list below and never looked up, and nothing is imported or called.
"""

import dataclasses
import math
import os
import pickletools
import zipfile
from typing import Any

import numpy as np

from sedjax.core.errors import Path
from sedjax.core.files import MEBIBYTE
from sedjax.core.npz import open_zip, read_into, read_npz

KIND = "a PyTorch checkpoint of tensors (of PyTorch 1.6 or newer)"
PICKLE_BYTES = 4 * MEBIBYTE  # 10 kB for a hundred tensors; opcodes need up to a hundred times their size in memory
MOST_AXES = 32
SHOWN = 80  # characters of a name in an error

ORDERED_DICT, TENSOR, PARAMETER = (
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
STORAGES = {"torch FloatStorage": "<f4", "torch DoubleStorage": "<f8", "torch HalfStorage": "<f2",
            "torch LongStorage": "<i8", "torch IntStorage": "<i4", "torch ShortStorage": "<i2",
            "torch CharStorage": "i1", "torch ByteStorage": "u1", "torch BoolStorage": "?"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True, eq=False)
class _Name:
    """The name of a function or class, `module name`; only a name."""

    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """Where the values of tensors are: key of a member of the zip file, dtype, and number of values."""

    key: str
    dtype: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """A view of a storage: offset, shape and strides in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by key, from PyTorch's file or as npz. Runs no code.

    Those of a Lightning checkpoint are under `state_dict`. Arrays may be read-only and share memory.

    Raises UserError if the file is damaged, or holds anything but tensors and plain values.
    """
    if os.fspath(path).endswith(".npz"):
        return read_npz(path)
    with open_zip(path, KIND) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its parts have the same name")
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"it has {len(roots)} parts called data.pkl instead of 1")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("parts of it are compressed")
        if sum(info.file_size for info in members.values()) > os.stat(path).st_size:
            raise ValueError("its parts are larger than the file")
        own = {name.removeprefix(roots[0]): info for name, info in members.items() if name.startswith(roots[0])}
        if "byteorder" in own and own["byteorder"].file_size < 10 and archive.read(own["byteorder"]) != b"little":
            raise ValueError("its numbers are not in little-endian byte order")
        if own["data.pkl"].file_size > PICKLE_BYTES:
            raise ValueError(f"its data.pkl has {own['data.pkl'].file_size:,} bytes, more than a state dict does")
        content = _content(archive.read(own["data.pkl"]))
        if isinstance(content, dict):
            content = content.get("state_dict", content)
        if not isinstance(content, dict) or not all(
                isinstance(key, str) and isinstance(value, _Tensor) for key, value in content.items()):
            raise ValueError("it holds something other than tensors by name")
        stored: dict[str, np.ndarray] = {}
        return {key: _array(tensor, archive, own, stored) for key, tensor in content.items()}


def _content(pickled: bytes) -> Any:
    """The value of a pickle. Raises ValueError for any opcode or name that a checkpoint of tensors does not need."""
    stack, marks, memo = [], [], {}
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            if name == "STOP":
                (content,) = stack
                return content
            _step(name, argument, stack, marks, memo)
    except (IndexError, KeyError, TypeError, AttributeError) as error:  # operands that the opcode does not take
        raise ValueError("its pickle is damaged") from error
    raise ValueError("its pickle has no end")


def _step(name: str, argument: Any, stack: list, marks: list[int], memo: dict[int, Any]) -> None:
    """Applies an opcode to the stack."""
    if name in VALUES:
        stack.append(argument)
    elif name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in TUPLES:
        values = [stack.pop() for _ in range(TUPLES[name])]
        stack.append(tuple(reversed(values)))
    elif name == "TUPLE":
        stack.append(tuple(_popped(stack, marks.pop())))
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "MARK":
        marks.append(len(stack))
    elif name in ("SETITEM", "SETITEMS"):
        if name == "SETITEM":
            marks.append(len(stack) - 2)
        values = _popped(stack, marks.pop())
        # Other keys, such as deep tuples, could exhaust Python's own stack.
        _require(stack[-1], dict).update((_require(key, str | int), value)
                                         for key, value in zip(values[::2], values[1::2], strict=True))
    elif name in ("APPEND", "APPENDS"):
        if name == "APPEND":
            marks.append(len(stack) - 1)
        values = _popped(stack, marks.pop())
        _require(stack[-1], list).extend(values)
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        if argument not in (ORDERED_DICT, TENSOR, PARAMETER, *STORAGES):
            raise ValueError(f"it names {argument[:SHOWN]!r}, which is no part of tensors")
        stack.append(_Name(argument))
    elif name == "BINPERSID":
        stack.append(_storage(*stack.pop()))
    elif name == "REDUCE":
        arguments = _require(stack.pop(), tuple)
        stack.append(_made(_require(stack.pop(), _Name).text, arguments))
    elif name == "BUILD":  # versions of the modules, as an attribute of a state dict
        stack.pop()
        _require(stack[-1], dict)
    elif name != "PROTO":
        raise ValueError(f"its pickle has the opcode {name}, which a state dict does not need")


def _popped(stack: list, start: int) -> list:
    """The values from `start` on, taken off the stack."""
    values = stack[start:]
    del stack[start:]
    return values


def _require(value: Any, kind) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} in place of {kind}")
    return value


def _storage(tag: str, kind: _Name, key: str, location: str, count: int) -> _Storage:
    if tag != "storage":
        raise ValueError("it refers to something other than a storage")
    return _Storage(_require(key, str), STORAGES[_require(kind, _Name).text], _size(count))


def _made(name: str, arguments: tuple) -> dict | _Tensor:
    """What a call in the pickle stands for."""
    if name == ORDERED_DICT and not arguments:
        return {}
    if name == PARAMETER:
        return _require(arguments[0], _Tensor)
    if name == TENSOR:
        storage, offset, shape, strides = arguments[:4]
        shape, strides = (tuple(map(_size, _require(sizes, tuple))) for sizes in (shape, strides))
        if len(shape) != len(strides) or len(shape) > MOST_AXES:
            raise ValueError("a tensor has impossible axes")
        return _Tensor(_require(storage, _Storage), _size(offset), shape, strides)
    raise ValueError(f"it calls {name!r} as tensors do not")


def _size(value: Any) -> int:
    if not 0 <= _require(value, int) < 2**48:
        raise ValueError("a tensor has an impossible size")
    return value


def _array(tensor: _Tensor, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo],
           stored: dict[str, np.ndarray]) -> np.ndarray:
    """The values of a tensor; `stored` caches the bytes of each storage by key."""
    name, dtype = f"data/{tensor.storage.key}", np.dtype(tensor.storage.dtype)
    if name not in members:
        raise ValueError(f"the values {name[:SHOWN]!r} of a tensor are missing")
    if members[name].file_size != tensor.storage.count * dtype.itemsize:
        raise ValueError(f"{name!r} has {members[name].file_size:,} bytes, not {tensor.storage.count:,} values")
    if name not in stored:
        stored[name] = np.empty(members[name].file_size, np.uint8)
        with archive.open(members[name]) as file:
            read_into(stored[name], file)
    values, size = stored[name].view(dtype), math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides))
    if size > len(values) or (size and last >= len(values)):
        raise ValueError(f"a tensor reaches beyond its values {name!r}")
    if not size:
        return np.zeros(tensor.shape, dtype)
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape,
                                           [stride * dtype.itemsize for stride in tensor.strides], writeable=False)
