"""`sedjax score`: scores a submission against the ground truth by the challenge's metric (SPEC section 2)."""

import os
from collections.abc import Sequence

from absl import flags

from sedjax.core.errors import UserError, printable
from sedjax.core.files import require_writable, write_json
from sedjax.core.task import MLPC_2025
from sedjax.data.layout import SPLITS, read_layout, read_task
from sedjax.scoring import submission
from sedjax.scoring.metrics import format_score
from sedjax.scoring.submission import read_submission


def define_flags() -> None:
    flags.DEFINE_string("predictions", None, "Submission CSV to score: filename, onset, one 0/1 column per class.")
    flags.DEFINE_string("ground_truth", None, "CSV in the same format with the true labels; without it, only the "
                                              "format of the predictions is checked.")
    flags.DEFINE_string("dataset", None, "Directory in MLPC layout: the predictions must have all segments of its "
                                         "recordings and no others.")
    flags.DEFINE_enum("split", None, SPLITS, "Expect only the recordings of this split of --dataset.")
    flags.DEFINE_string("costs", None, "Costs and class order: {class: {TP, FP, TN, FN}} as JSON. Default: those of "
                                       "--dataset, else of MLPC 2025.")
    flags.DEFINE_string("json", None, "Also write the score to this file: cost, interval, classes.")


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"score: unexpected argument {argv[1]!r}; pass files with --predictions and --ground_truth.")
    if not options.predictions:
        raise UserError("score needs --predictions=FILE.csv.")
    if options.json and not options.ground_truth:
        raise UserError("--json needs --ground_truth: without it there is no score to write.")
    if options.split and not options.dataset:
        raise UserError("--split needs --dataset, the directory that has the splits.")
    if options.json:
        require_writable(options.json)
        for source in (options.predictions, options.ground_truth, options.costs):
            if source and os.path.realpath(source) == os.path.realpath(options.json):
                raise UserError(f"--json={printable(options.json)} is the input {printable(source)}: choose another "
                                "name.")

    task = read_task(options.costs) if options.costs else None
    layout = read_layout(options.dataset, task) if options.dataset else None
    task = task or (layout.task if layout else MLPC_2025)

    predictions = read_submission(options.predictions, task)
    if layout:
        submission.require_same_segments(submission.lengths(predictions),
                                         submission.expected_segments(layout, options.split), options.predictions,
                                         options.dataset, task)
    if not options.ground_truth:
        print(f"{options.predictions} is a valid submission of the task {task.name!r}; "
              f"recordings: {len(predictions):,}, segments: {sum(map(len, predictions.values())):,}.")
        return
    truth = read_submission(options.ground_truth, task)
    score = submission.score_submissions(predictions, truth, task, options.predictions, options.ground_truth)
    if options.json:
        write_json(options.json, score.to_dict())
    print(format_score(score))
