"""`sedjax score`: scores predictions against the ground truth by the challenge's cost or the field's metrics.

    sedjax score --predictions=PREDICTIONS.csv --ground_truth=TRUTH.csv
    sedjax score --predictions=EVENTS.tsv --ground_truth=TRUTH.tsv --metrics=segment_f1,event_f1
    sedjax score --predictions=FOLDER --ground_truth=TRUTH.tsv --metrics=segment_f1,event_f1,psds,map

The cost (SPEC section 2) takes submissions, F1 takes event tables in DCASE format, as predict and truth write them.
PSDS and mean average precision take frame scores: the folder of `predict --frames`, or one with a tsv file of each
recording as sed_scores_eval writes them. Of a folder of `predict`, the cost reads predictions.csv, F1 events.tsv.
"""

import os
from collections.abc import Collection, Sequence

from absl import flags

from sedjax.core.errors import UserError, printable
from sedjax.core.files import require_writable, write_json
from sedjax.core.task import MLPC_2025, Task
from sedjax.data.layout import SPLITS, read_layout, read_splits, read_task
from sedjax.scoring import field_metrics, submission
from sedjax.scoring.events import Events, read_events
from sedjax.scoring.field_metrics import COST, FROM_EVENTS, FROM_SCORES, Metric
from sedjax.scoring.frame_scores import read_frame_scores
from sedjax.scoring.metrics import format_score
from sedjax.scoring.submission import read_submission


def define_flags() -> None:
    flags.DEFINE_string("predictions", None, "Submission CSV to score: filename, onset, one 0/1 column per class. For "
                                             "other metrics than the cost: an event table, or a folder.")
    flags.DEFINE_string("ground_truth", None, "CSV in the same format with the true labels; without it, only the "
                                              "format of the predictions is checked. For other metrics than the "
                                              "cost: an event table.")
    flags.DEFINE_list("metrics", [COST], f"Any of {', '.join(field_metrics.METRICS)}.")
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
    field_metrics.require(options.metrics)
    if others := [name for name in options.metrics if name != COST]:
        if COST in options.metrics:
            raise UserError(f"The cost takes submissions and {others[0]!r} takes event tables as ground truth: run "
                            "score once for each.")
        if not options.ground_truth:
            raise UserError(f"The metric {others[0]!r} needs --ground_truth, an event table.")
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

    if others:
        recordings = (read_splits(layout)[options.split] if options.split else layout.filenames) if layout else ()
        truth = read_truth(options.ground_truth, task, recordings, options.dataset)
        metrics = score_events(others, options.predictions, truth, task, options.ground_truth)
        if options.json:
            write_json(options.json, {"metrics": metrics})
        print(field_metrics.format_metrics(metrics))
        return
    predictions = read_submission(_in_folder(options.predictions, "predictions.csv"), task)
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


def read_truth(path: str, task: Task, recordings: Collection[str], where_recordings: str | None) -> Events:
    """The events of an event table, and no events for the other `recordings`.

    Raises UserError if the table cannot be read, or names a recording that is not among `recordings`, unless those are
    none.
    """
    truth = read_events(path, task)
    if recordings:
        _require_among(truth, recordings, path, where_recordings)
    return {name: truth.get(name, []) for name in recordings or truth}


def score_events(names: Collection[str], predictions: str, truth: Events, task: Task,
                 where_truth: str) -> dict[str, Metric]:
    """The given metrics of FROM_EVENTS and FROM_SCORES from an event table, or a folder of frame scores and events.tsv.

    Raises UserError if a file is missing or damaged, or belongs to a recording that `truth` lacks.
    """
    predicted = scores = None
    if set(FROM_EVENTS) & set(names):
        path = _in_folder(predictions, "events.tsv")
        predicted = read_events(path, task)
        _require_among(predicted, truth, path, where_truth)
    if set(FROM_SCORES) & set(names):
        from sedjax.inference import outputs  # slow to import

        scores = read_frame_scores(predictions, dict(zip(truth, outputs.stems(list(truth)))), task)
    return field_metrics.compute(names, truth, task, predicted, scores)


def _require_among(names: Collection[str], expected: Collection[str], where: str, where_expected: str) -> None:
    expected = set(expected)
    if unknown := [name for name in names if name not in expected]:
        raise UserError(f"{printable(where)} names {len(unknown):,} recordings that {printable(where_expected)} lacks, "
                        f"first {unknown[0]!r}: a recording without events is a row with only its filename.")


def _in_folder(path: str, name: str) -> str:
    return os.path.join(path, name) if os.path.isdir(path) else path
