"""Memory traffic and collectives of a compiled step, from XLA's text of it.

XLA's own count, `bytes accessed` of cost_analysis, is too high for TPUs: it treats memory on the chip as main memory,
counts a prefetch in four slices as four reads of the entire array, and also counts the join of the slices, which moves
nothing.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

SHAPE = re.compile(r"\b(pred|[a-z]+[0-9]+)(?:[a-z][a-z0-9]*)?\[([0-9,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
GPU_LIBRARY = re.compile(r'custom_call_target="__cu')
ON_CHIP = re.compile(r"S\([1-9]")  # memory spaces other than 0, the main memory
NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota",
              "replica-id", "opt-barrier", "while", "conditional", "call", "domain", "add-dependency"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
               "collective-broadcast", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a compiled program: `kind` is XLA's name of the operation, `attributes` the text after its operands."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    attributes: str


Program = dict[str, list[Instruction]]  # by computation; the entry computation comes last


def parse(text: str) -> Program:
    """The computations of a compiled program, from jax.stages.Compiled.as_text()."""
    program: Program = {}
    entry, instructions = "", []
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            instructions = program.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif match := INSTRUCTION.match(line):
            end = _closing(match[4])
            operands = tuple(re.findall(r"%([\w.\-]+)", match[4][:end]))
            instructions.append(Instruction(match[1], match[2], match[3], operands, match[4][end:]))
    return {**{name: body for name, body in program.items() if name != entry}, entry: program[entry]}


def executed(program: Program, computation: str | None = None) -> Iterator[tuple[Instruction, dict[str, str], int]]:
    """Every instruction that runs, the shapes of its computation by name, and how often it runs.

    Conditionals take the branch with the most traffic; loops with an unknown trip count run once.
    """
    body = program[computation or list(program)[-1]]
    shapes = {instruction.name: instruction.shape for instruction in body}
    for instruction in body:
        yield instruction, shapes, 1
        called = CALLED.findall(instruction.attributes) if instruction.kind in ("while", "call", "conditional",
                                                                                "async-start") else []
        if match := BRANCHES.search(instruction.attributes):
            called += re.findall(r"[\w.\-]+", match[1])
        called = [name for name in called if name in program]
        if instruction.kind == "conditional" and called:
            called = [max(called, key=lambda name: traffic(program, name))]
        times = int(match[1]) if (match := TRIPS.search(instruction.attributes)) else 1
        for name in called:
            yield from ((inner, inner_shapes, times * count)
                       for inner, inner_shapes, count in executed(program, name))


def traffic(program: Program, computation: str | None = None) -> int:
    """Bytes that a run reads from and writes to main memory, without fused values and those on the chip."""
    return sum(_moved(instruction, shapes) * times for instruction, shapes, times in executed(program, computation))


def collectives(program: Program) -> dict[str, tuple[int, int]]:
    """Number of collectives in a run and bytes exchanged, by kind."""
    counted: dict[str, tuple[int, int]] = {}
    for instruction, shapes, times in executed(program):
        kind = instruction.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            size = sum(sum(_bytes(shapes.get(name, ""))) for name in instruction.operands)
            count, total = counted.get(kind, (0, 0))
            counted[kind] = (count + times, total + times * size)
    return counted


def _moved(instruction: Instruction, shapes: dict[str, str]) -> int:
    kind = instruction.kind
    if kind in NO_TRAFFIC or kind.endswith("-done") or '"ConcatBitcast"' in instruction.attributes:
        return 0
    shapes_out = [part[0] for part in re.finditer(SHAPE, instruction.shape)]
    if GPU_LIBRARY.search(instruction.attributes):
        shapes_out = [shape for shape in shapes_out if not shape.startswith(("s8[", "u8["))]  # workspace
    results = [_bytes(shape) for shape in shapes_out]
    if kind in ("copy-start", "slice-start", "async-start") and len(results) > 1:
        source, target = results[:2]
        size = min(sum(source), sum(target))
        return size * sum(bool(main) for main, _ in (source, target))
    read = sum(_bytes(shapes.get(name, ""))[0] for name in instruction.operands)
    if kind.endswith("-start"):  # its shape includes the operands
        return 2 * read
    return read + sum(main for main, _ in results)


def _bytes(shape: str) -> tuple[int, int]:
    """Bytes of all arrays of a shape, as (in main memory, on the chip)."""
    main = on_chip = 0
    for kind, sizes, layout in SHAPE.findall(shape):
        size = math.prod(int(n) for n in sizes.split(",") if n) * _bits(kind) // 8
        if layout and ON_CHIP.search(layout):
            on_chip += size
        else:
            main += size
    return main, on_chip


def _bits(kind: str) -> int:
    return 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])


def _closing(text: str) -> int:
    """Index of the parenthesis that closes one opened before the text."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return i
    return len(text)
