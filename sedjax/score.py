"""The command `score`: a submission file against the ground truth, as the challenge counts it (SPEC section 2)."""

import itertools
import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from sedjax import grid, metrics
from sedjax.errors import UserError
from sedjax.files import printable, require_writable, write_json
from sedjax.layout import SPLITS, Layout, read_layout, read_splits
from sedjax.submission import Segments, read_submission, require_same_segments
from sedjax.task import MLPC_2025, OUTCOMES, Task, read_task

RECORDINGS_AT_ONCE = 10_000  # whose segments are counted together


def define_flags() -> None:
    flags.DEFINE_string("predictions", None, "Submission CSV to score: filename, onset, one 0/1 column per class.")
    flags.DEFINE_string("ground_truth", None, "CSV of the same form with what is true; without it, only the format of "
                                              "the predictions is checked.")
    flags.DEFINE_string("dataset", None, "Directory in MLPC layout: the predictions must have all segments of its "
                                         "recordings and no others.")
    flags.DEFINE_enum("split", None, SPLITS, "Expect the recordings of this split of --dataset only.")
    flags.DEFINE_string("costs", None, "Costs and class order: {class: {TP, FP, TN, FN}} as JSON. Default: those of "
                                       "--dataset, else of MLPC 2025.")
    flags.DEFINE_string("json", None, "Also write the score to this file: cost, interval, classes.")


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"score knows no argument {argv[1]!r}; files are given as --predictions and --ground_truth.")
    if not options.predictions:
        raise UserError("score needs --predictions=FILE.csv.")
    if options.json and not options.ground_truth:
        raise UserError("--json needs --ground_truth: without it there is no score to write.")
    if options.split and not options.dataset:
        raise UserError("--split needs --dataset, the directory that is split.")
    if options.json:
        _require_output(options.json, (options.predictions, options.ground_truth, options.costs))

    task = read_task(options.costs) if options.costs else None
    layout = read_layout(options.dataset, task) if options.dataset else None
    task = task or (layout.task if layout else MLPC_2025)

    predictions = read_submission(options.predictions, task)
    if layout:
        require_same_segments(_lengths(predictions), expected_segments(layout, options.split), options.predictions,
                              options.dataset, task)
    if not options.ground_truth:
        print(f"{options.predictions} is a valid submission of the task {task.name!r}; "
              f"recordings: {len(predictions):,}, segments: {sum(_lengths(predictions).values()):,}.")
        return
    truth = read_submission(options.ground_truth, task)
    score = score_submissions(predictions, truth, task, options.predictions, options.ground_truth)
    if options.json:
        write_json(options.json, score.to_dict())
    print(format_score(score))


def score_submissions(predictions: Segments, truth: Segments, task: Task, where_predictions: str = "the prediction",
                      where_truth: str = "the ground truth") -> metrics.Score:
    """The score of (S, C) bool segments per recording against the true ones, matched by filename.

    Raises UserError, with the names of both sides, unless they have the same recordings and numbers of segments.
    """
    require_same_segments(_lengths(predictions), _lengths(truth), where_predictions, where_truth, task)
    counts = np.empty((len(truth), len(task.classes), len(OUTCOMES)), np.int32)
    filenames = iter(truth)
    for first in range(0, len(truth), RECORDINGS_AT_ONCE):
        block = list(itertools.islice(filenames, RECORDINGS_AT_ONCE))
        predicted, actual = ([side[filename] for filename in block] for side in (predictions, truth))
        starts = np.cumsum([0, *map(len, actual[:-1])])
        counts[first : first + len(block)] = metrics.recording_counts(
            np.concatenate(predicted), np.concatenate(actual), starts)
    return metrics.score(counts, task)


def format_score(score: metrics.Score) -> str:
    """A table for people: per class the cost and the outcomes per minute, then the total and its interval."""
    width = max(len("class"), *map(len, score.classes))
    lines = [f"{'class':{width}}" + "".join(f"{title:>10}" for title in ("cost", *OUTCOMES)) + "   per minute"]
    for name, figures in score.classes.items():
        lines.append(f"{name:{width}}" + "".join(f"{figures[key]:10.4f}" for key in ("cost", *OUTCOMES)))
    low, high = score.interval
    lines.append(f"{'total':{width}}{score.cost:10.4f}   95 % interval {low:.2f} to {high:.2f} (over recordings)")
    return "\n".join(lines)


def expected_segments(layout: Layout, split: str | None = None) -> dict[str, int]:
    """Number of segments of each recording of a directory, or of one of its splits.

    It comes from the headers of the features files, or of the labels files where there are no features.
    Raises UserError that names a recording with neither, or a damaged file.
    """
    filenames = read_splits(layout)[split] if split else layout.filenames
    return {filename: grid.num_segments(layout.num_frames(filename), layout.task) for filename in filenames}


def _require_output(path: str, inputs: Sequence[str | None]) -> None:
    """Raises UserError if a file cannot be written at `path`, or is one of the inputs."""
    require_writable(path)
    for given in inputs:
        if given and os.path.exists(path) and os.path.exists(given) and os.path.samefile(path, given):
            raise UserError(f"--json={printable(path)} is the input {printable(given)}: choose another name.")


def _lengths(segments: Segments) -> dict[str, int]:
    return {filename: len(values) for filename, values in segments.items()}
