"""PyTorch's checkpoints: the same tensors as PyTorch reads, and nothing from a file that is anything else."""

import contextlib
import os
import zipfile

import numpy as np
import pytest
from torch_files import ORDERED_DICT, Raw, name, pickled, save_torch, tensor, write_parts

from sedjax.core.errors import UserError
from sedjax.core.torch_file import read_state_dict

RNG = np.random.default_rng(0)
TENSORS = {"a.weight": RNG.normal(size=(3, 4)).astype(np.float32), "a.counter": np.array(7, np.int64),
           "half": RNG.normal(size=5).astype(np.float16), "double": RNG.normal(size=(2, 1)), "none": np.zeros((0, 3)),
           "mask": np.array([True, False])}
VALUES = {"data/0": np.arange(12, dtype=np.float32).tobytes()}


def require_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        np.testing.assert_array_equal(actual[key], value)


def test_a_state_dict_and_a_lightning_checkpoint(tmp_path):
    save_torch(tmp_path / "a.pt", TENSORS)
    require_same(read_state_dict(tmp_path / "a.pt"), TENSORS)
    save_torch(tmp_path / "b.ckpt", TENSORS, epoch=16, loops=[{"done": True}, 0.5, None, (300, "text")],
               moments={"a": tensor("0", (3, 4))})
    require_same(read_state_dict(tmp_path / "b.ckpt"), TENSORS)


def test_views_of_one_storage(tmp_path):
    arguments = (tensor("0", (12,)), True, ORDERED_DICT)
    content = {"transposed": tensor("0", (4, 3), (1, 4)), "part": tensor("0", (2,), offset=10, count=12),
               "parameter": Raw(name("torch._utils", "_rebuild_parameter") + pickled(arguments) + b"R")}
    write_parts(tmp_path / "a.pt", content, VALUES)
    values = np.arange(12, dtype=np.float32)
    require_same(read_state_dict(tmp_path / "a.pt"),
                 {"transposed": values.reshape(3, 4).T, "part": values[10:], "parameter": values})


def test_what_pytorch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(value) for key, value in TENSORS.items()}
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    tensors["parameter"] = torch.nn.Parameter(torch.ones(3))
    torch.save(tensors, tmp_path / "a.pt")
    require_same(read_state_dict(tmp_path / "a.pt"), {key: value.detach().numpy() for key, value in tensors.items()})
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save({"state_dict": module.state_dict(), "optimizer": torch.optim.AdamW(module.parameters()).state_dict(),
                "epoch": 16}, tmp_path / "b.ckpt")
    require_same(read_state_dict(tmp_path / "b.ckpt"),
                 {key: value.numpy() for key, value in module.state_dict().items()})


# A call of os.system that creates a file next to the checkpoint, in two ways.
CODE = b"X\x0c\x00\x00\x00touch ran.txt"
DEEP = Raw(b")" + b"\x85" * 50_000)


@pytest.mark.parametrize(("content", "words"), [
    ({"a": Raw(name("os", "system") + b"(" + CODE + b"tR")}, "'os system'"),
    ({"a": Raw(b"(" + CODE + b"ios\nsystem\n")}, "INST"),
    ({"a": Raw(name("builtins", "print"))}, "'builtins print'"),
    ({"a": Raw(name("torch", "FloatStorage") + b")R")}, "'torch FloatStorage'"),
    ({"a": Raw(name("collections", "OrderedDict") + pickled(([],)) + b"R")}, "OrderedDict"),
    ({"a": Raw(name("collections", "OrderedDict") + b")\x81")}, "NEWOBJ"),
    ({"a": Raw(name("collections", "OrderedDict") + b"}b")}, "damaged"),
    ({"a": Raw(b"X\x02\x00\x00\x00os\x8c\x06system\x93")}, "STACK_GLOBAL"),
    ({"a": Raw(b"Pkey\n")}, "PERSID"),
    ({"a": Raw(pickled(("module", name("torch", "FloatStorage"), "0", "cpu", 1)) + b"Q")}, "storage"),
    ({"a": Raw(b"\xff")}, "opcode"),
    ({"a": Raw(b"X\xff\xff\xff\x7f")}, "expected"),
    ({"a": Raw(b"j\x00\x00\x00\x40")}, "damaged"),
    ({"a": Raw(b"000")}, "POP"),
    ({"a": Raw(b"tttt")}, "damaged"),
    ({DEEP: 1}, "damaged"),
    ({"a": DEEP}, "other than tensors"),
    ({"a": 1}, "other than tensors"),
    ({7: tensor("0", (12,))}, "other than tensors"),
    ([tensor("0", (12,))], "other than tensors"),
    ({"state_dict": 5}, "other than tensors"),
    ({"a": tensor("1", (12,))}, "'data/1' .*missing"),
    ({"a": tensor("../../data.pkl", (12,))}, "missing"),
    ({"a": tensor("0", (13,))}, "13 values"),
    ({"a": tensor("0", (12,), kind="Double")}, "12 values"),
    ({"a": tensor("0", (12,), kind="Quantized")}, "QuantizedStorage"),
    ({"a": tensor("0", (12,), offset=1, count=12)}, "beyond"),
    ({"a": tensor("0", (2, 2), (11, 1), count=12)}, "beyond"),
    ({"a": tensor("0", (1 << 40, 1), (0, 0), count=12)}, "beyond"),
    ({"a": tensor("0", (2,), (-1,), 5, 12)}, "impossible size"),
    ({"a": tensor("0", (2,), (1,), -1, 12)}, "impossible size"),
    ({"a": tensor("0", (3, 4), (4,))}, "axes"),
    ({"a": tensor("0", (1,) * 40, count=12)}, "axes"),
    ({"a": tensor("0", ("x",), (1,), count=12)}, "damaged"),
])
def test_nothing_runs_and_nothing_is_read(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    write_parts(tmp_path / "a.pt", content, VALUES)
    with pytest.raises(UserError, match=rf"a\.pt is damaged or not a PyTorch checkpoint.*: .*({words})") as caught:
        read_state_dict("a.pt")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize(("parts", "words"), [
    ({"byteorder": b"big"}, "byte order"), ({"more/data.pkl": b"."}, "2 parts"),
    ({"data/0": VALUES["data/0"][:-1]}, "47 bytes, not 12 values")])
def test_parts_that_do_not_belong(tmp_path, parts, words):
    write_parts(tmp_path / "a.pt", {"a": tensor("0", (12,))}, VALUES | parts)
    with pytest.raises(UserError, match=words):
        read_state_dict(tmp_path / "a.pt")


def test_files_that_expand_and_pickles_that_are_too_long(tmp_path):
    write_parts(tmp_path / "a.pt", {"a": tensor("0", (12,))}, VALUES, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_state_dict(tmp_path / "a.pt")
    write_parts(tmp_path / "a.pt", {"a": "x" * (5 << 20)}, {})
    with pytest.raises(UserError, match="more than a state dict"):
        read_state_dict(tmp_path / "a.pt")


def test_any_damage_is_an_error_or_harmless(tmp_path):
    save_torch(tmp_path / "a.pt", TENSORS)
    whole = (tmp_path / "a.pt").read_bytes()
    for length in range(0, len(whole) - 1, 97):
        (tmp_path / "b.pt").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"b\.pt is damaged"):
            read_state_dict(tmp_path / "b.pt")
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        (tmp_path / "b.pt").write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_state_dict(tmp_path / "b.pt")


def test_a_damaged_pickle_with_a_right_checksum(tmp_path):
    body = pickled({key: tensor("0", (3, 4)) for key in "abc"})
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(body)
        damaged[rng.integers(len(body))] = rng.integers(256)
        write_parts(tmp_path / "b.pt", Raw(damaged), VALUES)
        with contextlib.suppress(UserError):
            assert all(value.size <= 12 for value in read_state_dict(tmp_path / "b.pt").values())
