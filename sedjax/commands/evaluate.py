"""`sedjax evaluate`: cost per minute, detection figures and the field's metrics of each class on one split."""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from sedjax.commands import rule_flags
from sedjax.commands.cli import require_no_arguments
from sedjax.core import files, parallel
from sedjax.core.errors import UserError
from sedjax.scoring import field_metrics, metrics
from sedjax.scoring.metrics import format_score
from sedjax.studies.results import evaluate_workdir


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of the training.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to evaluate.")
    flags.DEFINE_string("data", None, "Records to evaluate on. Default: those of the training.")
    flags.DEFINE_string("checkpoint", "best", "'best' (lowest validation cost), 'last', or a step.")
    flags.DEFINE_list("metrics", [field_metrics.COST], f"Any of {', '.join(field_metrics.METRICS)}; the cost is always "
                                                       "given.")
    flags.DEFINE_string("json", None, "Also write the result to this file.")
    rule_flags.define_flags()
    parallel.define_flags()


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    parallel.start()
    options = flags.FLAGS
    folder = pathlib.Path(options.workdir)
    field_metrics.require(options.metrics)
    if options.json:
        files.require_writable(options.json)
    more = [name for name in options.metrics if name != field_metrics.COST]
    given = [name for name in rule_flags.ONLY_EVENTS if options[name].present]
    if given and not set(field_metrics.FROM_EVENTS) & set(more):
        raise UserError(f"--{given[0]}={options[given[0]].value} is for events: add --metrics="
                        f"{','.join(field_metrics.FROM_EVENTS)}.")
    result = evaluate_workdir(folder, options.split, options.data, options.checkpoint, more, **rule_flags.changes())
    if not parallel.is_process_zero():
        return
    step, recordings = result.pop("step"), len(result.pop("counts"))
    score = metrics.Score(result["cost"], result["interval"], result["classes"])
    print(f"{folder}, checkpoint of step {step}, {options.split} split of {result['records']['path']}, "
          f"{recordings} recordings\n")
    print(format_score(score))
    print("\nFrames:\n" + format_figures(result["frames"]))
    if more:
        print("\nEvents:\n" + field_metrics.format_metrics(result["metrics"]))
    if options.json:
        files.write_json(options.json, result)


def format_figures(frames: dict[str, dict[str, float | None]]) -> str:
    """A table of the figures of each class, and their mean over the classes that have them."""
    names = list(next(iter(frames.values())))
    means = {name: [row[name] for row in frames.values() if row[name] is not None] for name in names}
    rows = {**frames, "mean": {name: float(np.mean(values)) if values else None for name, values in means.items()}}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name.replace('_', ' '):>19}" for name in names)]
    for label, row in rows.items():
        lines.append(f"{label:{width}}" + "".join("                  -" if row[name] is None else f"{row[name]:19.3f}"
                                                  for name in names))
    return "\n".join(lines)
