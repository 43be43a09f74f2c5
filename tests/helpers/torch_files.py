"""Writes PyTorch checkpoints by hand: what torch.save writes, and what it never would."""

import pathlib
import struct
import zipfile

import numpy as np

DTYPES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long", "int32": "Int", "uint8": "Byte",
          "bool": "Bool"}
END = b"."


class Raw(bytes):
    """Opcodes, as they are."""


def name(module: str, attribute: str) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


ORDERED_DICT = Raw(name("collections", "OrderedDict") + b")R")


def pickled(value) -> bytes:
    """The opcodes of a value, without an end."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(key) + pickled(entry) for key, entry in value.items()) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    return b"K" + bytes([value]) if 0 <= value < 256 else b"\x8a\x08" + struct.pack("<q", value)


def tensor(key: str, shape: tuple, strides: tuple | None = None, offset: int = 0, count: int | None = None,
           kind: str = "Float") -> Raw:
    """A tensor whose values are the part `data/key` of the file."""
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))) if strides is None else strides
    count = int(np.prod(shape)) if count is None else count
    storage = Raw(pickled(("storage", name("torch", f"{kind}Storage"), key, "cpu", count)) + b"Q")
    arguments = (storage, offset, shape, strides, False, ORDERED_DICT)
    return Raw(name("torch._utils", "_rebuild_tensor_v2") + pickled(arguments) + b"R")


def write_parts(path: pathlib.Path, content, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Writes a file with the pickle of `content` and other parts."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled(content) + END)
        for part, data in {"byteorder": b"little", "version": b"3\n", **parts}.items():
            archive.writestr(f"archive/{part}", data)


def save_torch(path: pathlib.Path, tensors: dict[str, np.ndarray], **others) -> None:
    """Writes a state dict; with other values, which are pickled too, it is under `state_dict` as Lightning has it."""
    arrays = {str(i): np.ascontiguousarray(value) for i, value in enumerate(tensors.values())}
    content = {key: tensor(i, tensors[key].shape, kind=DTYPES[arrays[i].dtype.name]) for key, i in zip(tensors, arrays)}
    # A state dict is an ordered dict with the versions of the modules.
    content = Raw(ORDERED_DICT + pickled(content)[1:] + pickled({"_metadata": ORDERED_DICT}) + b"b")
    write_parts(path, {"state_dict": content, **others} if others else content,
                {f"data/{i}": value.tobytes() for i, value in arrays.items()})
