"""The task: which classes there are, what mistakes cost, and how time is divided (SPEC sections 1 and 2)."""

import dataclasses
import json
import os

import numpy as np

from sedjax import files
from sedjax.errors import UserError

OUTCOMES = ("TP", "FP", "TN", "FN")


@dataclasses.dataclass(frozen=True)
class Task:
    """Classes in order, the cost of each outcome per class, and the time grid.

    Attributes:
      name: for people; two tasks with the same classes, costs and grid are the same task.
      classes: class names; their order is the order of every label, logit and CSV column.
      costs: one row per class: the cost of a true positive, false positive, true negative and false negative.
      frame_seconds: length of a frame.
      frames_per_segment: frames in one segment, the unit that is scored.
    """

    name: str
    classes: tuple[str, ...]
    costs: tuple[tuple[float, float, float, float], ...]
    frame_seconds: float = 0.12
    frames_per_segment: int = 10

    def __post_init__(self):
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise UserError(f"The task {self.name!r} needs at least one class and no class twice, "
                            f"not {list(self.classes)}.")
        if reserved := {"", "filename", "onset"} & set(self.classes):
            raise UserError(f"The task {self.name!r} has a class called {min(reserved)!r}, which a submission file "
                            "cannot have beside its columns filename and onset.")
        if odd := [name for name in self.classes if not name.isprintable()]:
            raise UserError(f"The task {self.name!r} has a class called {odd[0]!r}, whose name has characters that "
                            "cannot be printed.")
        if len(self.costs) != len(self.classes) or any(len(row) != len(OUTCOMES) for row in self.costs):
            raise UserError(f"The task {self.name!r} needs one cost for each of {OUTCOMES} per class.")
        if not np.all(np.isfinite(self.cost_matrix)):
            raise UserError(f"The task {self.name!r} has a cost that is not a finite number.")
        if not 0 < self.frame_seconds < float("inf") or self.frames_per_segment < 1:
            raise UserError(f"The task {self.name!r} needs a positive frame length and at least one frame per segment.")

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
            raise UserError(f"The class list of {where} is not that of the task {self.name!r}: {difference}.")
        for field in ("costs", "frame_seconds", "frames_per_segment"):
            if getattr(self, field) != getattr(other, field):
                raise UserError(f"The {field} of {where} differ from those of the task {self.name!r}: "
                                f"{getattr(other, field)} instead of {getattr(self, field)}.")


def task_from_json(text: str, name: str, where: str) -> Task:
    """The task in `text`: either what Task.to_json writes, or a costs.json {class: {TP, FP, TN, FN}} in class order.

    Raises UserError that names `where` if it is neither.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
        fields = content if isinstance(content.get("costs"), dict) else {"costs": content}
        costs = fields["costs"]
        for label, row in costs.items():
            if set(row) != set(OUTCOMES):
                raise UserError(f"{where}: class {label!r} needs exactly the costs {list(OUTCOMES)}, not {list(row)}.")
        return Task(
            name=str(fields.get("name", name)),
            classes=tuple(costs),
            costs=tuple(tuple(float(row[outcome]) for outcome in OUTCOMES) for row in costs.values()),
            frame_seconds=float(fields.get("frame_seconds", Task.frame_seconds)),
            frames_per_segment=int(fields.get("frames_per_segment", Task.frames_per_segment)),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} is not a task: expected JSON of the form "
                        f'{{"Speech": {{"TP": 0, "FP": 1, "TN": 0, "FN": 5}}, ...}} ({error}).') from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # json keeps the last of two equal keys: a class that is listed twice would vanish without a word.
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return dict(pairs)


def read_task(path: str | os.PathLike) -> Task:
    """The task in a task.json or costs.json file. Raises UserError if it cannot be read."""
    path = os.fspath(path)
    text = files.read_text(path)
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return task_from_json(text, name=folder, where=path)


MLPC_2025 = Task(
    name="MLPC 2025",
    classes=("Speech", "Shout", "Chainsaw", "Jackhammer", "Lawn Mower", "Power Drill", "Dog Bark", "Rooster Crow",
             "Horn Honk", "Siren"),
    costs=((0, 1, 0, 5), (0, 2, 0, 10), (0, 3, 0, 15), (0, 3, 0, 15), (0, 3, 0, 15), (0, 3, 0, 15), (0, 1, 0, 5),
           (0, 1, 0, 5), (0, 3, 0, 15), (0, 3, 0, 15)),
)
