"""`sedjax predict`: detects events in recordings with a trained model, or with a pretrained one.

    sedjax predict --workdir=W street.mp3 FOLDER --output=OUT
    sedjax predict --model=frame_mn10_strong street.mp3 FOLDER --output=OUT
    sedjax predict --workdir=W --source=DIR --output=PREDICTIONS.csv

The first two forms take audio files and folders of them, compute the features that the model needs, and write to the
folder OUT: predictions.csv (segments of all recordings, in submission format), events.tsv (events of all recordings, in
DCASE format) and files for each recording. Unreadable recordings are listed in bad_recordings.csv. Files of an earlier
run in OUT are replaced if they have the same names and kept otherwise; files that sedjax did not write are never
replaced. The third form takes the features in a directory in MLPC layout, and writes only the submission.
"""

import contextlib
import dataclasses
import datetime
import functools
import logging
import os
import pathlib
import sys
from collections.abc import Collection, Iterable, Sequence

from absl import flags
from tqdm import tqdm

from sedjax.audio import reader
from sedjax.audio.clips import Unreadable, ahead, recut
from sedjax.audio.start_time import parse_start
from sedjax.commands import rule_flags
from sedjax.commands.cli import BAD_LIST, SOME_BAD_STATUS, tidy_sigterm, write_bad
from sedjax.core import parallel
from sedjax.core.errors import UserError, printable
from sedjax.core.files import distinct_names, make_folder, require_replaceable, require_writable, write_csv
from sedjax.data import identity
from sedjax.data.layout import SPLITS, read_layout, read_splits
from sedjax.data.records import directory_clips
from sedjax.inference import outputs, page, pretrained, summary
from sedjax.inference.detection import Detection
from sedjax.inference.detector import Detector, detections, load, warn_of_other_features
from sedjax.inference.trained import TrainedModel, load_model
from sedjax.scoring import submission
from sedjax.scoring.event_rules import EventRules, changed, default_rules

log = logging.getLogger("sedjax")

FORMATS = {"csv": "predictions.csv", "tsv": "events.tsv", "audacity": "labels", "json": "everything but frames",
           "png": "picture", "html": "page that plays and corrects them", "hourly": "events by hour and class"}
DEFAULT_FORMATS = ("csv", "tsv", "json")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of the training.")
    flags.DEFINE_enum("model", None, list(pretrained.FILES), "Pretrained detector of the classes of AudioSet Strong, "
                      "instead of --workdir; its weights are fetched once.")
    flags.DEFINE_string("weights", None, "File of the weights of --model, instead of fetching it.")
    flags.DEFINE_list("classes", None, "Classes of --model to detect; names with commas in quotes. Default: all 447.")
    flags.DEFINE_string("map", None, "Table that groups the classes of --model into others: mlpc, for those of MLPC "
                        "2025, or a .json or .csv file.")
    flags.DEFINE_string("output", None, "Folder for the detections; with --source, the submission CSV.",
                        required=True)
    flags.DEFINE_list("formats", None, "What to write for recordings: any of "
                      + ", ".join(f"{name} ({text})" for name, text in FORMATS.items())
                      + f". Default: {','.join(DEFAULT_FORMATS)}.")
    flags.DEFINE_bool("frames", False, "Also write the frame probabilities of each recording (npz).")
    flags.DEFINE_string("embeddings_from", None, "Extractor of the embeddings that the model takes, if the workdir "
                        "does not name it or it has moved: a workdir, or the npz file of an ATST-Frame.")
    flags.DEFINE_string("source", None, "Directory in MLPC layout, with or without labels, instead of recordings.")
    flags.DEFINE_enum("split", None, SPLITS, "Only the recordings of this split of --source. Default: all.")
    flags.DEFINE_string("checkpoint", "best", "'best' (lowest validation cost), 'last', or a step.")
    flags.DEFINE_string("start", None, "For the format hourly: when a recording began whose name does not say it, like "
                        "2024-01-31T05:30.")
    rule_flags.define_flags()
    parallel.define_flags()


def main(argv: Sequence[str]) -> None:
    options, arguments = flags.FLAGS, argv[1:]
    if bool(options.source) == bool(arguments):
        raise UserError("Give either recordings and folders of them, or --source=DIR, a directory in MLPC layout.")
    of_recordings_only = "formats", "frames", "embeddings_from", "model", "start", *rule_flags.ONLY_EVENTS
    for flag in of_recordings_only if options.source else ("split",):
        if options[flag].present:
            raise UserError(f"--{flag} is for {'recordings, not for --source' if options.source else '--source'}.")
    if bool(options.workdir) == bool(options.model):
        raise UserError("Give either --workdir=FOLDER, a trained model, or --model=NAME, a pretrained one.")
    for flag in ("checkpoint", "embeddings_from") if options.model else ("weights", "classes", "map"):
        if options[flag].present:
            raise UserError(f"--{flag} is for {'--workdir' if options.model else '--model'}.")
    formats = tuple(options.formats or DEFAULT_FORMATS)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--formats takes any of {', '.join(FORMATS)}, not {unknown[0]!r}.")
    if options.start and "hourly" not in formats:
        raise UserError("--start is for --formats=hourly.")
    start, changes = parse_start(options.start) if options.start else None, rule_flags.changes()
    parallel.start()
    with tidy_sigterm():
        if options.source:
            parallel.on_process_zero(lambda: require_writable(options.output))
            model = load_model(options.workdir, options.checkpoint)
            rules = changed(default_rules(model.thresholds), model.task, **changes)
            of_directory(model, options.source, options.split, options.output, rules)
            return
        with parallel.all_or_none():
            paths = reader.find(arguments)
        detector = (pretrained.load_pretrained(options.model, options.weights, options.classes, options.map)
                    if options.model else load(options.workdir, options.checkpoint, options.embeddings_from))
        detector = detector.with_rules(**changes)
        kinds = (*formats, *["frames"] * options.frames)
        bad = of_recordings(detector, paths, pathlib.Path(options.output), kinds, start)
    if bad:
        sys.exit(SOME_BAD_STATUS)


def of_recordings(detector: Detector, paths: Sequence[pathlib.Path], folder: pathlib.Path,
                  kinds: Iterable[str], start: datetime.datetime | None = None) -> dict[str, str]:
    """Writes the detections in recordings to a folder.

    Args:
      detector: from `load`.
      paths: distinct files.
      folder: output folder, created if missing.
      kinds: keys of outputs.TABLES and outputs.FILES.
      start: when a recording began whose name does not say so, for the hourly table.

    Returns:
      The reason why a recording cannot be read, by its name.

    Raises:
      UserError: the model takes features that cannot be computed, or an output cannot be written.
    """
    with parallel.all_or_none():
        names = dict(zip(map(str, paths), distinct_names(paths)))
        stems = dict(zip(names, outputs.stems(list(names.values()))))
        kinds = set(kinds)
        starts = summary.starts_of(names.values(), start) if "hourly" in kinds else {}
    bad, active, events, seconds, pages = {}, {}, {}, {}, []
    results = detector.detect(paths, keep=("melspectrogram",) if kinds & {"png", "html"} else ())
    parallel.on_process_zero(lambda: _prepare(detector, folder, paths, stems.values(), kinds))

    def write(name: str, result: Detection) -> None:
        outputs.write_files(folder, stems[result.recording], result, detector.model,
                            [kind for kind in outputs.FILES if kind in kinds])
        for add in pages:
            add(name, result, result.recording)

    with (contextlib.closing(results), contextlib.ExitStack() as stack,
          tqdm(total=len(paths), unit="recording", disable=None if parallel.is_process_zero() else True) as progress):
        if "html" in kinds:
            parallel.on_process_zero(lambda: pages.append(stack.enter_context(page.new_page(
                folder / outputs.TABLES["html"], detector.task, detector.rules))))
        for result in results:
            name = names[result.recording]
            if isinstance(result, Unreadable):
                bad[name] = str(result.error)
            else:
                active[name], events[name], seconds[name] = result.active, result.events, result.seconds
                parallel.on_process_zero(functools.partial(write, name, result))
            progress.update()
        parallel.on_process_zero(stack.close)

    def finish() -> None:
        outputs.write_tables(folder, detector.task, active, events, kinds)
        if "hourly" in kinds:
            write_csv(folder / outputs.TABLES["hourly"],
                      [summary.HOURLY_COLUMNS, *summary.hourly(events, seconds, starts)])
        write_bad(folder, bad)
        unreadable = f"; {len(bad):,} cannot be read, listed in {folder / BAD_LIST}" if bad else ""
        print(printable(f"Found {sum(map(len, events.values())):,} events in {len(active):,} recordings, written to "
                        f"{folder}{unreadable}."))
        if by_class := summary.text(events):
            print(by_class)

    parallel.on_process_zero(finish)
    return bad


def _prepare(detector: Detector, folder: pathlib.Path, paths: Sequence[pathlib.Path], stems: Iterable[str],
             kinds: Collection[str]) -> None:
    warn_of_other_features(detector)
    make_folder(folder)
    outputs.require_writable(folder, stems, kinds, paths)
    require_replaceable(folder / BAD_LIST)
    for kind, name in outputs.TABLES.items():
        if kind not in kinds and os.path.lexists(folder / name):
            log.info("%s is from an earlier run and is left unchanged.", printable(folder / name))


def of_directory(model: TrainedModel, source: str, split: str | None, output: str, rules: EventRules) -> None:
    """Writes the submission for the recordings of a directory in MLPC layout."""
    active = {name: detection.active for name, detection in predict_directory(model, source, split, rules).items()}
    parallel.on_process_zero(lambda: submission.write_submission(output, model.task, active))
    if parallel.is_process_zero():
        segments = sum(map(len, active.values()))
        print(printable(f"Wrote {len(active):,} recordings, {segments:,} segments, to {output}."))


def predict_directory(model: TrainedModel, path: str | os.PathLike, split: str | None = None,
                      rules: EventRules | None = None) -> dict[str, Detection]:
    """The detections in the recordings of a directory in MLPC layout, by filename.

    Args:
      model: from `load_model`.
      path: directory with the features that the model needs, with or without labels.
      split: split whose recordings to use; all if None.
      rules: how probabilities become events; the defaults if None.

    Raises:
      UserError: the directory is damaged, or its task, feature widths or extractors are not the model's.
    """
    with parallel.all_or_none():
        layout = read_layout(path)
        if (layout.path / "costs.json").exists():
            model.task.require_same(layout.task, where=str(layout.path / "costs.json"))
        identity.require_same_extractors(
            model.features, {key: {"extractor": layout.extractor(key)} for key in model.inputs}, str(layout.path),
            str(model.workdir))
        if split:
            layout = dataclasses.replace(layout, filenames=read_splits(layout)[split])
    clips = ahead(recut(directory_clips(layout, model.inputs, model.widths), model.max_frames))
    return {detection.recording: detection for detection in detections(model, clips, rules or default_rules(
        model.thresholds))}
