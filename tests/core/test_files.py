"""Files: hostile input ends in one sentence with the path, and no output replaces what sedjax did not write."""

import json
import os
import zipfile

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sedjax.core import errors, files, npz
from sedjax.core.errors import UserError
from sedjax.data import provenance
from sedjax.data.identity import Extractor


@given(array=arrays.arrays(st.sampled_from([np.float32, np.float16, np.uint8, np.int64, np.bool_, "<U3"]),
                           arrays.array_shapes(min_side=0)), fortran=st.booleans(), packed=st.booleans())
def test_arrays_are_those_of_numpy(tmp_path_factory, array, fortran, packed):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    (np.savez_compressed if packed else np.savez)(path, x=np.asfortranarray(array) if fortran else array)
    found = npz.read_npz(path, ["x"])["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert npz.npz_shapes(path) == {"x": array.shape}


def test_a_key_is_not_a_file_name(tmp_path):
    """numpy reads `foo` where `foo.npy` is asked for."""
    np.savez(tmp_path / "a.npz", **{"foo": np.zeros(2), "foo.npy": np.ones(2)})
    found = npz.read_npz(tmp_path / "a.npz", ["foo", "foo.npy"])
    assert found["foo"].tolist() == [0, 0]
    assert found["foo.npy"].tolist() == [1, 1]


def member(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize("content", [
    b"", b"hello", b"\x80\x04N.", member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
    member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + 60 * b"0" + b",), }\n"),
    member(b"(" * 5000 + b")" * 4000), member(b"[" * 9000),
    member(b"{'descr': '|O', 'fortran_order': False, 'shape': ()}"),
    member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
    member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(7)),
    member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(9)),
    member(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", bytes(4))])
def test_members_that_are_not_arrays(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for read in (npz.read_npz, npz.npz_shapes):
        with pytest.raises(UserError, match=r"a\.npz"):
            read(tmp_path / "a.npz")


def test_a_bomb_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000_000, np.uint8))
    with pytest.raises(UserError, match=r"a\.npz would expand .* to 100,000,"):
        npz.read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"a": [1, "b"]}', "1" * 5000, '{"a": 1}', "null", ""])
def test_json_of_another_form(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json", dict[str, list[int]])


def test_numbers_that_json_has_not(tmp_path):
    (tmp_path / "a.json").write_text('{"a": NaN}')
    with pytest.raises(UserError, match=r"a\.json.*: a: "):
        files.read_json(tmp_path / "a.json", dict[str, pydantic.FiniteFloat])
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_damaged_json_lines_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n\xff\n[' + b"[" * 9999 + b'\n{"a": 2}\n{"b": 3')
    assert files.read_json_lines(tmp_path / "a.jsonl", dict[str, int]) == [{"a": 1}, {"a": 2}]
    assert files.read_json_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("name", ["fifo", "folder", "folder/none", "file/none", "none", "x" * 300, "zero\0byte",
                                  "link"])
def test_what_is_not_a_file(tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/dev/zero")
    for read in (files.read_text, npz.read_npz, files.read_csv, files.read_json):
        with pytest.raises(UserError):
            read(str(tmp_path / name))


def test_files_that_are_too_large(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    for read in (files.read_text, files.read_csv, files.read_json):
        with pytest.raises(UserError, match="1,099,511,627,776 bytes"):
            read(tmp_path / "a")


def test_only_what_sedjax_wrote_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    files.write_json(path, 2)
    files.write_json(path, 3)
    path.write_text("edited")
    for write in (lambda: files.write_json(path, 4), lambda: files.remove_output(path)):
        with pytest.raises(UserError, match=r"a\.json already exists"):
            write()
    assert path.read_text() == "edited"
    path.unlink()
    files.write_json(path, 5)
    files.remove_output(path)
    files.remove_output(path)
    path.symlink_to("/dev/null")
    with pytest.raises(UserError, match="not a regular file"):
        files.write_json(path, 6)
    assert os.path.exists("/dev/null")


def test_what_was_written_is_read_once_for_many_files_and_again_if_others_write(tmp_path, monkeypatch):
    read = []
    read_json_lines = files.read_json_lines
    monkeypatch.setattr(files, "read_json_lines", lambda *more: read.append(more) or read_json_lines(*more))
    for _ in range(2):
        for number in range(20):
            files.write_json(tmp_path / f"{number}.json", number)
    assert len(read) == 1
    assert len((tmp_path / files.OUTPUTS).read_text().split()) == 4 * 20, "each once"
    with open(tmp_path / files.OUTPUTS, "a") as file:
        file.write('{"name": "19.js')  # a full disk
    files.write_json(tmp_path / "new.json", 1)
    files._KNOWN.clear()
    files.write_json(tmp_path / "new.json", 2)
    os.remove(tmp_path / files.OUTPUTS)
    with pytest.raises(UserError, match=r"new\.json already exists"):
        files.write_json(tmp_path / "new.json", 3)


def test_the_provenance_of_arrays(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"file": np.arange(3), "allow_pickle": np.ones((2, 2)), "mine.npy": np.zeros(1)}
    origin, recording = Extractor(parameters="1", path="p"), provenance.Recording(bytes=1, mtime_ns=2, seconds=3)
    provenance.write(path, arrays, {"file": origin, "mine.npy": None}, recording)
    keys, recorded = provenance.read(path)
    assert keys == set(arrays)
    assert recorded.sums.keys() == {"file", "mine.npy"}
    assert (recorded.origins, recorded.recording) == ({"file": origin}, recording)
    for key, value in npz.read_npz(path).items():
        np.testing.assert_array_equal(value, arrays[key])
    with np.load(path) as archive:
        assert sorted(archive) == ["allow_pickle", "file", "mine.npy"]
    older = json.dumps(recorded.sums).encode()
    with zipfile.ZipFile(path, "a") as archive:
        current, archive.comment = archive.comment, older
    assert provenance.read(path) == (keys, provenance.Provenance(sums=recorded.sums))
    for comment in (current, older):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("file.npy", b"other")
            archive.comment = comment
        assert not provenance.read(path)[1].sums, "it was changed since"
    for comment in (b"by hand", b'{"file": "x"}', b"[" * 9999, b'{"sums": {"file": -1}, "recording": {"bytes": "x"}}'):
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = comment
        assert provenance.read(path) == ({"file"}, provenance.Provenance())


def test_a_file_of_the_user_that_comes_while_ours_is_made_stays(tmp_path):
    def write():
        with files.atomic_output(tmp_path / "a.csv") as temporary:
            temporary.write_text("ours")
            (tmp_path / "a.csv").write_text("theirs")

    with pytest.raises(UserError, match=r"a\.csv already exists"):
        write()
    assert (tmp_path / "a.csv").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_names_of_any_bytes_and_length(tmp_path):
    for name in (b"\xe9\xff.json", b"n" * 250 + b".json", b"\x1b[31m.json"):
        path = os.path.join(os.fsencode(tmp_path), name)
        files.write_json(os.fsdecode(path), 1)
        files.write_json(os.fsdecode(path), 2)
        assert files.read_json(os.fsdecode(path)) == 2
    assert errors.printable("a\x1b[31m\udce9é\u202e\n") == "a\\x1b[31m\\udce9é\\u202e\\n"
