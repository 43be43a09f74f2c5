"""`sedjax labels`: recordings and tables of their events -> a directory in MLPC layout (SPEC section 3).

    sedjax labels --events=TABLE --audio=RECORDINGS --output=DIR [--columns=filename=file,label=class]

TABLE is a CSV or TSV file with a row for each event, or a folder of tables (Audacity labels, Raven selections, CSV or
TSV), each named after its recording. A recording without a row has no events. Likely mistakes are reported as notes.
"""

import contextlib
import csv
import filecmp
import io
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from sedjax.audio import reader
from sedjax.commands import cli
from sedjax.core import bounds, errors, files, grid, npz
from sedjax.core.errors import UserError
from sedjax.core.task import OUTCOMES, SAMPLE_RATE_HZ, Task
from sedjax.data.layout import SPLITS, Layout, read_splits, read_task

from . import event_checks, event_tables
from .event_tables import COLUMNS, Row
from .extract import recordings

COSTS = (0, 1, 0, 5)  # of a class without costs of its own
SPLIT_SEED = 42
METADATA = "metadata.csv"
TABLES = ("costs.json", "splits.csv", METADATA)  # metadata.csv last: nothing reads a directory without it


def define_flags() -> None:
    flags.DEFINE_string("events", None, "Table of events, or folder of tables.", required=True)
    flags.DEFINE_string("audio", None, "Folder of recordings.", required=True)
    flags.DEFINE_string("output", None, "Directory to write, in MLPC layout.", required=True)
    flags.DEFINE_list("columns", [], f"Columns by what they hold, such as filename=file,onset=start: any of "
                                     f"{', '.join(COLUMNS)}.")
    flags.DEFINE_list("classes", None, "Classes in order; default: all labels, sorted.")
    flags.DEFINE_string("costs", None, "JSON file of classes and costs, {class: {TP, FP, TN, FN}}, instead of "
                                       "--classes; by default a miss costs 5 and a false alarm 1.")
    flags.DEFINE_string("splits", None, "CSV of filename and split (train, validation, test); default: a random split.")
    flags.DEFINE_integer("split_seed", SPLIT_SEED, "Seed of the random split.", 0, 2**32 - 1)
    flags.DEFINE_bool("listed_only", False, "Leave out recordings without a row, instead of taking them as silent.")


def main(argv: Sequence[str]) -> None:
    cli.require_no_arguments(argv)
    options = flags.FLAGS
    if options.classes and options.costs:
        raise UserError("--costs has classes of its own: leave out --classes.")
    columns = parse_columns(options.columns)
    explicit = [name for name, given in (("--splits", options.splits), ("--columns=split", "split" in columns),
                                         ("--split_seed", options["split_seed"].present)) if given]
    if len(explicit) > 1:
        raise UserError(f"{explicit[0]} and {explicit[1]} both say how to split: leave one out.")
    with cli.tidy_sigterm():
        bad = write_labels(
            cli.file_path(options.events), cli.file_path(options.audio), cli.file_path(options.output),
            columns=columns, classes=options.classes, costs=options.costs, splits=options.splits,
            split_seed=options.split_seed, listed_only=options.listed_only)
    if bad:
        sys.exit(cli.SOME_BAD_STATUS)


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """The --columns flag as names of columns by key of COLUMNS. Raises UserError."""
    columns: dict[str, str] = {}
    for pair in pairs:
        role, _, name = (part.strip() for part in pair.partition("="))
        if role not in COLUMNS:
            raise UserError(f"--columns: a table has no {bounds.shown(role)}{bounds.unknown(role, COLUMNS)}")
        if not name or columns.setdefault(role, name) != name:
            raise UserError(f"--columns={role}=NAME needs one name.")
    return columns


def write_labels(events: pathlib.Path, audio: pathlib.Path, output: pathlib.Path, *,
                 columns: Mapping[str, str], classes: Sequence[str] | None = None,
                 costs: str | None = None, splits: str | None = None, split_seed: int = SPLIT_SEED,
                 listed_only: bool = False) -> dict[str, str]:
    """Writes labels, splits and costs of the recordings in a folder, and the recordings themselves.

    Everything is read and checked before anything is written. metadata.csv is written last: an interrupted run leaves
    a directory that no other command reads, and running again completes it. Recordings are hard links, or copies if
    the output is on another disk.

    Args:
      events: a table of events or a folder of tables, as event_tables.read_tables takes them.
      audio: folder of recordings.
      output: a new directory, or one that this command wrote; features in it stay, and labels get as many frames.
      columns: names of the columns by key of event_tables.COLUMNS.
      classes: classes in order; None for all labels, sorted.
      costs: a file of classes and costs.
      splits: a CSV of filename and split; by default those of the column `split`, else a random split.
      split_seed: seed of the random split.
      listed_only: leave out recordings without a row.

    Returns:
      Why recordings could not be read, by name; the output lacks them and lists them in bad_recordings.csv.

    Raises:
      UserError: a table, a recording or the task cannot be used, or the output cannot be written.
    """
    found, bad = recordings(audio)
    paths = {path.name: path for path in found}
    rows, notes = event_checks.known_rows(
        event_tables.read_tables(events, columns, event_tables.finder(paths)), events, audio)
    listed = {row.recording for row in rows}
    if listed_only:
        paths = {name: path for name, path in paths.items() if name in listed}
    elif silent := [name for name in paths if name not in listed]:
        notes.append(f"Recordings without a row are taken as silent ({len(silent):,}), first {silent[0]}.")
    task, costs_text = _task(rows, classes, costs)
    notes += event_checks.label_notes(rows, task)
    split_of = _given_splits(rows, splits, paths) if splits or "split" in columns else None
    # The tables in the directory may be inputs, for instance costs that somebody edited: those stay as they are.
    given = {os.path.realpath(path) for path in (events, costs, splits) if path}
    tables = [output / name for name in TABLES if os.path.realpath(output / name) not in given]
    files.require_makeable(output)
    _require_replaceable(Layout(output, tuple(paths), task), paths, tables)

    seconds = _durations(paths, bad)
    if not seconds:
        raise UserError(f"No recording in {audio} can be read, first {next(iter(bad.values()))}")
    layout = Layout(output, tuple(seconds), task)
    events_of, time_notes = event_checks.events_by_recording(rows, seconds, task)
    frames = {name: _num_frames(layout, name, seconds[name]) for name in seconds}
    annotators = _annotators(rows, frames, task)
    if split_of is None and len(seconds) >= len(SPLITS):
        split_of = {name: split for split, names in read_splits(layout, split_seed).items() for name in names}
    content = {"costs.json": costs_text, METADATA: _csv(("filename", "duration"), seconds.items()),
               "splits.csv": split_of and _csv(("filename", "split"), [(name, split_of[name]) for name in seconds])}

    files.remove_output(output / METADATA)
    _link_recordings(layout, paths)
    files.make_folder(output / "labels")
    for name in seconds:
        with files.atomic_output(layout.labels_path(name)) as temporary:
            npz.savez(temporary, marks(events_of[name], annotators[name], frames[name], task), packed=True)
    for path in tables:
        _put(path, content[path.name])
    cli.write_bad(output, bad)
    for note in [*notes, *time_notes]:
        print(errors.printable(f"Note: {note}"))
    print(errors.printable(f"{output} holds {len(seconds):,} recordings with {sum(map(len, events_of.values())):,} "
                           f"events of {len(task.classes):,} classes."))
    return bad


def marks(events: Iterable[Row], annotators: Sequence[str], frames: int, task: Task) -> dict[str, np.ndarray]:
    """Labels of a recording: for each class (frames, annotators) uint8, 1 where an event overlaps the frame."""
    column = {name: i for i, name in enumerate(annotators)}
    labels = {label: np.zeros((frames, len(annotators)), np.uint8) for label in task.classes}
    for row in events:
        labels[row.label][grid.event_frames(row.onset, row.offset, frames, task), column[row.annotator]] = 1
    return labels


def _task(rows: list[Row], classes: Sequence[str] | None, costs: str | None) -> tuple[Task, str]:
    """The task, and the content of its costs.json. Raises UserError."""
    if costs is not None:
        task, text = read_task(costs), files.read_text(costs)
    else:
        if classes is None:
            first = {row.label: row for row in reversed(rows) if row.label}
            for row in first.values():
                try:
                    Task("labels", (row.label,), (COSTS,))
                except UserError as error:
                    raise UserError(f"{row.where}: {error}") from error
            if not first:
                raise UserError("The tables have no events: name the classes with --classes.")
            classes = sorted(first)
        task = Task("labels", tuple(classes), (COSTS,) * len(classes))
        text = json.dumps({label: dict(zip(OUTCOMES, COSTS)) for label in classes}, indent=1)
    labels = sorted({row.label for row in rows if row.label})
    if labels and not set(labels) & set(task.classes):
        raise UserError(f"No event is of one of the classes, {bounds.shown(list(task.classes))}: the labels are "
                        f"{bounds.shown(labels)}.")
    return task, text


def _given_splits(rows: list[Row], splits: str | None, paths: Iterable[str]) -> dict[str, str]:
    """The split of each recording, from the file `splits` or else from the tables. Raises UserError."""
    if splits is not None:
        table = [(row["filename"], row["split"], f"{errors.printable(splits)}, line {line}")
                 for line, row in files.read_csv(splits, ("filename", "split")).items()]
    else:
        table = [(row.recording, row.split, row.where) for row in rows if row.split]
    split_of: dict[str, str] = {}
    for name, split, where in table:
        if split not in SPLITS:
            raise UserError(f"{where}: split {bounds.shown(split)} is not one of {', '.join(SPLITS)}.")
        if split_of.setdefault(name, split) != split:
            raise UserError(f"{where}: {name!r} is already in {split_of[name]!r}; a recording may be in only one "
                            "split.")
    if missing := [name for name in paths if name not in split_of]:
        raise UserError(f"{len(missing):,} recordings have no split, first {missing[0]!r}: give --splits=FILE for all "
                        "of them, or leave those without a row out with --listed_only.")
    return split_of


def _durations(paths: Mapping[str, pathlib.Path], bad: dict[str, str]) -> dict[str, float]:
    """Seconds of each recording; adds to `bad` why others cannot be read."""
    seconds = {}
    for name, path in tqdm(paths.items(), unit="recording", disable=None):
        try:
            seconds[name] = sum(map(len, reader.blocks(path))) / SAMPLE_RATE_HZ
        except UserError as error:
            bad[name] = str(error)
    return seconds


def _num_frames(layout: Layout, name: str, seconds: float) -> int:
    """Frames of a recording: those of its features, if it has any, which may round its length differently."""
    frames, path = grid.num_frames(seconds, layout.task), layout.features_path(name)
    stored = layout.num_frames(name, npz.npz_names(path)) if os.path.exists(path) else frames
    return stored if abs(stored - frames) <= 1 else frames


def _annotators(rows: Iterable[Row], frames: Mapping[str, int], task: Task) -> dict[str, list[str]]:
    """Those who are known to have listened to each recording, at least one. Raises UserError for too large labels."""
    names: dict[str, set[str]] = {name: set() for name in frames}
    for row in rows:
        if row.recording in names and row.annotator is not None:
            names[row.recording].add(row.annotator)
    annotators = {name: sorted(of) or [""] for name, of in names.items()}
    for name, of in annotators.items():
        size = frames[name] * len(of) * len(task.classes)
        if size > npz.ARRAY_BYTES:
            raise UserError(f"The labels of {name} would take {size:,} bytes ({len(of):,} annotators, "
                            f"{len(task.classes):,} classes), but may take {npz.ARRAY_BYTES:,}: cut it into shorter "
                            "recordings.")
    return annotators


def _require_replaceable(layout: Layout, paths: Mapping[str, pathlib.Path], tables: Iterable[pathlib.Path]) -> None:
    """Raises UserError if the directory holds a file of these names that this command did not write."""
    for name, path in paths.items():
        files.require_replaceable(layout.labels_path(name))
        _is_there(path, layout.audio_path(name))
    for path in (*tables, layout.path / cli.BAD_LIST):
        files.require_replaceable(path)


def _is_there(recording: pathlib.Path, target: pathlib.Path) -> bool:
    """Whether a recording is in the directory already. Raises UserError if something else is."""
    if not os.path.lexists(target):
        return False
    if os.path.isfile(target) and (os.path.samefile(recording, target) or filecmp.cmp(recording, target, False)):
        return True
    raise UserError(f"{errors.printable(target)} already exists and is not {errors.printable(recording)}: choose "
                    "another --output, or move it away.")


def _link_recordings(layout: Layout, paths: Mapping[str, pathlib.Path]) -> None:
    files.make_folder(layout.path / "audio")
    for name in layout.filenames:
        target = layout.audio_path(name)
        if _is_there(paths[name], target):
            continue
        with files.atomic_output(target, ours=True) as temporary:
            temporary.unlink()
            source = os.path.realpath(paths[name])  # a link to a symbolic link would break with it
            with contextlib.suppress(OSError):  # another disk, or a file of somebody else
                os.link(source, temporary)
            if not temporary.exists():
                shutil.copy2(source, temporary)


def _csv(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _put(path: pathlib.Path, text: str | None) -> None:
    """Writes a table; None removes that of an earlier run."""
    if text is None:
        files.remove_output(path)
        return
    with files.atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
