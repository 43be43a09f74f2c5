"""Random damages of files: of their bytes, of what they are, and of what is in them."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable

import numpy as np

from hostile import damage

VALUES = (None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"), 2**31,
          2**63, 10**30,
          10**400, "", "x", "0", "nan", "\0", "\n", "\x1b[31m", "../x", "/etc/passwd", "\ud800", "é" * 300, [], {},
          [[]], [None],
          {"": 0}, [1] * 1000, "9" * 10_000)
TEXTS = ("", " ", "0", "-1", "1", "nan", "inf", "1e999", "x", "../x", "a/b", "/etc/passwd", "\0", "\x1b[31m", "\n", '"',
         ",", "é" * 200,
         "9" * 5000, "train", "test", "0.0", "1.2", "=1+1", "\ufeff", "\r")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """What was done to a file.

    Attributes:
      what: in words.
      damage: it is what a disk or a broken copy does, not what an editor does: whatever is read then is as it was, or
        an error.
    """

    what: str
    damage: bool


def mutate(path: pathlib.Path, rng: random.Random, others: list[pathlib.Path]) -> Mutation:
    """Changes a file at random. `others` are files that it may be exchanged with."""
    kinds = [flip] * 6 + [cut] * 3 + [insert] * 2 + [duplicate] * 2 + [zero] * 2 + [delete, special, empty]
    if others:
        kinds += [exchange, exchange]
    if path.suffix in (".json", ".jsonl") or path.name in ("metrics", "metadata"):
        kinds += [json_value] * 12
    if path.suffix in (".csv", ".tsv"):
        kinds += [csv_cell] * 12
    if path.suffix == ".npz":
        kinds += [npz_member] * 8
    kind = rng.choice(kinds)
    try:
        return kind(path, rng, others)
    except Exception:  # mutated before, so that it is not what it was
        return flip(path, rng, others) if path.is_file() and path.stat().st_size else empty(path, rng, others)


def flip(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    content = bytearray(path.read_bytes())
    places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return Mutation(f"bits flipped at {places}", True)


def cut(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    content = path.read_bytes()
    size = rng.choice((rng.randrange(len(content)), len(content) - 1, max(len(content) - rng.randrange(1, 200), 0)))
    path.write_bytes(content[:size])
    return Mutation(f"cut to {size:,} of {len(content):,} bytes", True)


def insert(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    content = path.read_bytes()
    place = rng.randrange(len(content) + 1)
    more = rng.choice((rng.randbytes(rng.choice((1, 10, 4096))), bytes(4096), b"\n", b'"', b"\x00", b"\xff"))
    path.write_bytes(content[:place] + more + content[place:])
    return Mutation(f"{len(more):,} bytes inserted at {place:,}", True)


def duplicate(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    content = path.read_bytes()
    start = rng.randrange(len(content))
    end = rng.randrange(start, len(content)) + 1
    path.write_bytes(content[:end] + content[start:])
    return Mutation(f"bytes {start:,} to {end:,} are there twice", True)


def zero(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    content = path.read_bytes()
    start = rng.randrange(len(content))
    size = min(rng.choice((1, 16, 512, 4096)), len(content) - start)
    path.write_bytes(content[:start] + bytes(size) + content[start + size :])
    return Mutation(f"{size:,} bytes of zeros at {start:,}", True)


def delete(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    damage.remove(path)
    return Mutation("deleted", True)


def empty(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    damage.remove(path)
    path.write_bytes(b"")
    return Mutation("emptied", True)


def special(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    what = rng.choice([name for name in damage.NO_FILE if name != "a terminal"])
    damage.NO_FILE[what](path)
    return Mutation(f"it is {what}", True)


def exchange(path: pathlib.Path, rng: random.Random, others: list[pathlib.Path]) -> Mutation:
    other = rng.choice(others)
    if rng.random() < 0.5:
        shutil.copyfile(other, path)
        return Mutation(f"a copy of {other.name} in {other.parent.name}", True)
    content, swapped = path.read_bytes(), other.read_bytes()
    path.write_bytes(swapped)
    other.write_bytes(content)
    return Mutation(f"exchanged with {other.name} in {other.parent.name}", True)


def json_value(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    holder = [json.loads(lines[number])]
    places: list[tuple] = [(holder, 0)]
    for tree, key in places:
        value = tree[key]
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        places += [(value, name) for name, _ in list(children)[:50]]
    tree, key = rng.choice(places[1:] or places)
    what = rng.choice(("replace", "replace", "replace", "remove", "add", "deep", "twice"))
    value = rng.choice(VALUES)
    if what == "remove" and tree is not holder:
        del tree[key]
    elif what == "add" and isinstance(tree, dict):
        tree[rng.choice(("x", "", "\n", "é" * 300))] = value
    else:
        tree[key] = value
    text = json.dumps(holder[0])
    if what == "deep":
        text = text.replace(json.dumps(value), damage.DEEP, 1)
    if what == "twice" and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]
    lines[number] = text
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return Mutation(f"{what} {key!r} by {str(value)[:40]!r}", False)


def csv_cell(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    what, row = rng.choice(("cell", "cell", "cell", "header", "drop row", "twice", "column",
                            "drop cell")), rng.randrange(len(table))
    text = rng.choice(TEXTS)
    if what in ("cell", "header"):
        row = 0 if what == "header" else row
        table[row][rng.randrange(len(table[row]))] = text
    elif what == "drop row":
        del table[row]
    elif what == "twice":
        table.append(table[row])
    elif what == "column":
        for line in table:
            line.append(line[0])
    else:
        table[row].pop()
    file = io.StringIO()
    csv.writer(file).writerows(table)
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    return Mutation(f"{what} in row {row}: {text[:40]!r}", False)


def npz_member(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    def random_header(content: bytes) -> bytes:
        place = rng.randrange(10, 80)
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]

    kinds: dict[str, Callable] = {**damage.NO_NPZ, **damage.NOT_FINITE,
                                  "a header changed": damage.member(random_header),
                                  "rows cut": damage.arrays(lambda value: value[: rng.randrange(len(value) + 1)]),
                                  "rows repeated": damage.arrays(lambda value: np.repeat(value, 2, axis=0)),
                                  "other types": damage.arrays(lambda value: value.astype(rng.choice(("f8", "i8", "?",
                                                                                                      ">f4", "c8"))))}
    what = rng.choice([name for name in kinds if name != "a bomb" or rng.random() < 0.1])
    kinds[what](path)
    return Mutation(what, False)


def source_text(path: pathlib.Path, rng: random.Random, others) -> Mutation:
    """A line of a config file removed, repeated, or with a hostile value."""
    lines = path.read_text(errors="replace").splitlines() or [""]
    row, what = rng.randrange(len(lines)), rng.choice(("remove", "repeat", "value"))
    if what == "value":
        lines[row] = lines[row].split("=")[0] + "= " + repr(rng.choice(VALUES))
    lines[row : row + 1] = {"remove": [], "repeat": [lines[row]] * 2, "value": [lines[row]]}[what]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return Mutation(f"{what} line {row}", False)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The regular files below a folder, in a fixed order."""
    return sorted(pathlib.Path(place) / name for place, _, names in os.walk(folder) for name in names
                  if (pathlib.Path(place) / name).is_file())
