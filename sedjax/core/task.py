"""The task: its classes, the costs of mistakes, and the time grid (SPEC sections 1 and 2)."""

import dataclasses
import hashlib
import json
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from sedjax.core import bounds
from sedjax.core.bounds import parse_json, without_controls
from sedjax.core.errors import Path, UserError, printable

SAMPLE_RATE_HZ = 16_000  # sample rate of all audio after reading
FRAME_SAMPLES = 1920  # samples per frame: 120 ms
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE_HZ
OUTCOMES = ("TP", "FP", "TN", "FN")
RESERVED = {"filename", "onset"}
MAX_CLASSES = 20_000

# Class names become table columns and keys of npz files.
ClassName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(without_controls)]
Cost = Annotated[float, Field(ge=-1e9, le=1e9)]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one class, a row of costs.json."""

    TP: Cost
    FP: Cost
    TN: Cost
    FN: Cost


@dataclasses.dataclass(frozen=True)
class Task:
    """Classes in order, the cost of each outcome per class, and the time grid.

    Attributes:
      name: display name; tasks with the same classes, costs and grid are the same task.
      classes: class names; their order is that of all labels, logits and CSV columns.
      costs: one row per class, with the costs of a true positive, false positive, true negative and false negative.
      frame_seconds: length of a frame.
      frames_per_segment: frames per segment, the unit of scoring.
    """

    name: Annotated[str, Field(max_length=1_000), AfterValidator(without_controls)]
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    costs: tuple[tuple[Cost, Cost, Cost, Cost], ...]
    frame_seconds: Annotated[float, Field(ge=0.001, le=60)] = FRAME_SECONDS
    frames_per_segment: Annotated[int, Field(ge=1, le=10_000)] = 10

    def __post_init__(self):
        try:
            bounds.check(Task, vars(self))
            if repeated := bounds.twice(self.classes):
                raise UserError(f"the class {repeated!r} is listed twice.")
            if reserved := RESERVED & set(self.classes):
                raise UserError(f"the class name {min(reserved)!r} is reserved, as submission files already have "
                                "the columns filename and onset.")
            if len(self.costs) != len(self.classes):
                raise UserError(f"there are {len(self.classes)} classes, but costs for {len(self.costs)}.")
        except UserError as error:
            raise UserError(f"The task {bounds.shown(self.name)} is invalid: {error}") from error

    @property
    def cost_matrix(self) -> np.ndarray:
        """(C, 4) float64, columns in the order of OUTCOMES."""
        return np.array(self.costs, np.float64)

    @property
    def segment_seconds(self) -> float:
        return self.frame_seconds * self.frames_per_segment

    @property
    def segments_per_minute(self) -> float:
        return 60 / self.segment_seconds

    def to_json(self) -> str:
        costs = {name: dict(zip(OUTCOMES, row)) for name, row in zip(self.classes, self.costs)}
        return json.dumps({"name": self.name, "costs": costs, "frame_seconds": self.frame_seconds,
                           "frames_per_segment": self.frames_per_segment}, indent=1)

    @property
    def digest(self) -> str:
        """Digest of everything that `require_same` compares."""
        content = [self.classes, self.cost_matrix.tolist(), float(self.frame_seconds), self.frames_per_segment]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def require_same(self, other: "Task", where: str) -> None:
        """Raises UserError that names the first difference unless `other`, found at `where`, is this task."""
        if self.classes != other.classes:
            missing = [c for c in self.classes if c not in other.classes]
            extra = [c for c in other.classes if c not in self.classes]
            if missing or extra:
                difference = f"missing {missing}, unexpected {extra}"
            else:
                first = next(i for i, (a, b) in enumerate(zip(self.classes, other.classes)) if a != b)
                difference = (f"the same classes in another order, from position {first}: "
                              f"{other.classes[first]!r} instead of {self.classes[first]!r}")
            raise UserError(f"The class list of {where} differs from that of the task {self.name!r}: {difference}.")
        for field in ("costs", "frame_seconds", "frames_per_segment"):
            if getattr(self, field) != getattr(other, field):
                raise UserError(f"The {field} of {where} differ from those of the task {self.name!r}: "
                                f"{getattr(other, field)} instead of {getattr(self, field)}.")


def task_from_json(text: str, name: str, where: Path) -> Task:
    """Parses a task, either the output of Task.to_json or a costs.json {class: {TP, FP, TN, FN}} in class order.

    Raises UserError that names `where` if `text` is neither.
    """
    content = parse_json(text, dict[str, Any], where)
    fields = content if isinstance(content.get("costs"), dict) else {"costs": content}
    try:
        rows = {}
        for label, row in fields["costs"].items():
            if not isinstance(row, dict):
                raise UserError(f'expected {{"Speech": {{"TP": 0, "FP": 1, "TN": 0, "FN": 5}}, ...}}, not '
                                f"{bounds.shown(row)} for {bounds.shown(label)}.")
            rows[label] = tuple(bounds.check(Costs, row, f"class {bounds.shown(label)}: ").values())
        values = {"name": name, **fields, "costs": tuple(rows.values())}
        task = Task(classes=tuple(rows), **bounds.check(Task, values, without=["classes"]))
        json.loads(text, object_pairs_hook=_without_repeats)
        return task
    except UserError as error:
        raise UserError(f"{printable(where)}: {error}") from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Parsers keep the last of two equal keys: a class that is listed twice would vanish silently.
    if repeated := bounds.twice(name for name, _ in pairs):
        raise UserError(f"{bounds.shown(repeated)} is listed twice.")
    return dict(pairs)


MLPC_2025 = Task(
    name="MLPC 2025",
    classes=("Speech", "Shout", "Chainsaw", "Jackhammer", "Lawn Mower", "Power Drill", "Dog Bark", "Rooster Crow",
             "Horn Honk", "Siren"),
    costs=((0, 1, 0, 5), (0, 2, 0, 10), (0, 3, 0, 15), (0, 3, 0, 15), (0, 3, 0, 15), (0, 3, 0, 15), (0, 1, 0, 5),
           (0, 1, 0, 5), (0, 3, 0, 15), (0, 3, 0, 15)),
)


def require_frame_seconds(task: Task) -> None:
    """Raises UserError if the frame length of a task is not that of features computed from recordings."""
    if abs(task.frame_seconds - FRAME_SECONDS) > 1e-9:
        raise UserError(f"The task {task.name!r} has frames of {task.frame_seconds:g} s, but sedjax computes frames of "
                        f"{FRAME_SECONDS:g} s from recordings: use features computed elsewhere, or set frame_seconds "
                        f"in its costs.json to {FRAME_SECONDS:g}.")
