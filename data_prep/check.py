"""Checks a directory in MLPC layout (SPEC section 3) before any other command reads it.

    sedjax check DIR [--features=embeddings,melspectrogram] [--costs=costs.json]
"""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from sedjax.audio import reader
from sedjax.commands import cli
from sedjax.core import errors, grid
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.data.layout import Layout, read_layout, read_splits, read_task
from sedjax.scoring import metrics

from .examination import Contents, Examined, examine, read_contents

Splits = dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Survey:
    """The contents of a directory, and the result of examining each recording."""

    contents: Contents
    recordings: dict[str, Examined]

    @functools.cached_property
    def good(self) -> dict[str, Examined]:
        """The recordings without problems."""
        return {filename: result for filename, result in self.recordings.items()
                if result.frames and not result.problems and not self.contents.problems}


def define_flags() -> None:
    flags.DEFINE_list("features", None, "Keys of the features to check; `audio` means the recordings. Default: those "
                                        "of the first recording, or audio if there are none.")
    flags.DEFINE_string("costs", None, "JSON file of classes and costs, {class: {TP, FP, TN, FN}}, to replace DIR's.")


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError(f"Name one directory: sedjax check DIR (given: {' '.join(argv[1:]) or 'none'}).")
    options = flags.FLAGS
    layout = read_layout(argv[1], read_task(options.costs) if options.costs else None)
    found = survey(layout, tuple(dict.fromkeys(options.features)) if options.features else None)
    splits, problems = {"all": layout.filenames}, []
    if found.contents.labelled or os.path.exists(layout.path / "splits.csv"):
        try:
            splits = read_splits(layout)
        except UserError as error:
            problems.append(str(error))
    problems += problems_of(layout, found, splits)
    for line in problems:
        print(errors.printable(line))
    for line in _notes(layout, found, splits):
        print(errors.printable(f"Note: {line}"))
    print(summary(layout, found, splits))
    if problems:
        sys.stdout.flush()  # so that the error comes last where stdout and stderr are merged
        raise UserError(f"{len(problems):,} problem{'s' * (len(problems) > 1)} in {argv[1]}.")


def survey(layout: Layout, keys: tuple[str, ...] | None = None) -> Survey:
    """Examines every recording; `keys` are the features to read, as in `read_contents`."""
    contents = read_contents(layout, keys)
    return Survey(contents, {filename: examine(filename, layout, contents)[0]
                             for filename in tqdm(layout.filenames, "checking", disable=None, leave=False)})


def problems_of(layout: Layout, found: Survey, splits: Splits) -> list[str]:
    """All problems of a directory, one line each: in its files, and recordings shared between its splits."""
    recordings = [f"{filename}: {' '.join(result.problems)}" for filename, result in found.recordings.items()
                  if result.problems]
    unread = [] if reader.FEATURE in found.contents.keys else _audio_problems(layout)
    return [*found.contents.problems, *recordings, *unread, *_leaks(layout, found, splits)]


def summary(layout: Layout, found: Survey, splits: Splits) -> str:
    """A table for display: size and features of the good recordings, share of each class per split."""
    task, total = layout.task, sum(result.frames for result in found.good.values())
    widths = ", ".join(f"{key} {width}" for key, (width, _) in found.contents.kinds.items()) or "none"
    lines = [f"{len(found.good):,} of {len(layout.filenames):,} recordings are good: "
             f"{total * task.frame_seconds / 3600:.2f} h, {total:,} frames; features: {widths}"]
    good = {split: [found.good[name] for name in names if name in found.good] for split, names in splits.items()}
    titles = ["recordings", "hours", *task.classes, "naive cost"]
    width = max(map(len, titles)) + 2

    def row(title: str, values: Iterable[str]) -> str:
        return f"{title:{width}}" + "".join(f"{value:>12}" for value in values)

    frames = {split: sum(result.frames for result in results) for split, results in good.items()}
    lines += [row("", splits), row("recordings", (f"{len(results):,}" for results in good.values())),
              row("hours", (f"{count * task.frame_seconds / 3600:.2f}" for count in frames.values()))]
    if found.good and found.contents.reads_labels:
        lines.append("active frames, %")
        active = {split: _active_frames(results, task) for split, results in good.items()}
        lines += [row(f"  {label}", (f"{100 * active[split][i] / max(frames[split], 1):.2f}" for split in splits))
                  for i, label in enumerate(task.classes)]
        lines.append(row("naive cost", (f"{all_off_cost(results, task):.2f}" for results in good.values()))
                     + "   per minute, predicting nothing")
    return "\n".join(lines)


def all_off_cost(results: Iterable[Examined], task: Task) -> float:
    """Cost per minute of predicting that no class is ever active in these good, labelled recordings."""
    missed, segments = np.zeros(len(task.classes), np.int64), 0
    for result in results:
        missed += result.active_segments
        segments += grid.num_segments(result.frames, task)
    counts = np.stack([0 * missed, 0 * missed, segments - missed, missed], axis=1)  # TP, FP, TN, FN
    return float(metrics.cost_per_class(counts, task).sum())


def _active_frames(results: Iterable[Examined], task: Task) -> np.ndarray:
    return sum((result.active_frames for result in results), np.zeros(len(task.classes), np.int64))


def _audio_problems(layout: Layout) -> list[str]:
    # A directory may come without audio, but a few missing files mean an incomplete copy.
    sizes = {filename: _size(layout.audio_path(filename)) for filename in layout.filenames}
    present = sum(size is not None for size in sizes.values())
    missing = [f"{filename}: {layout.audio_path(filename)} is missing, but others have audio ({present:,})."
               for filename, size in sizes.items() if size is None and present]
    return missing + [f"{filename}: {layout.audio_path(filename)} is empty."
                      for filename, size in sizes.items() if size == 0]


def _leaks(layout: Layout, found: Survey, splits: Splits) -> list[str]:
    """Recordings shared by two splits, by name or by content, one line each."""
    problems, split_of = [], {}
    for split, filenames in splits.items():
        for filename in filenames:
            if split_of.setdefault(filename, split) != split:
                problems.append(f"{filename}: listed in both splits {split_of[filename]!r} and {split!r}.")

    # Only files of equal size can be identical, so few are read.
    by_size = collections.defaultdict(list)
    for filename in split_of:
        if size := _size(layout.audio_path(filename)):
            by_size[size].append(filename)
    candidates = [filename for names in by_size.values() if len({split_of[name] for name in names}) > 1
                  for filename in names]
    recordings = {filename: _digest(layout.audio_path(filename)) for filename in candidates}
    # Silent recordings of equal length are identical, but not a leak.
    keys = found.contents.keys
    results = {filename: found.recordings[filename] for filename in split_of}
    features = {filename: tuple(result.digests[key] for key in keys) for filename, result in results.items()
                if result.digests.keys() >= set(keys) and len(result.silent) < len(keys)}

    reported = set()
    for content, digests in (("audio", recordings), ("features", features)):
        first: dict[str, str] = {}
        for filename, split in split_of.items():
            if filename not in digests:
                continue
            twin = first.setdefault(digests[filename], filename)
            if split_of[twin] != split and filename not in reported:
                reported.add(filename)
                problems.append(f"{filename}: same {content} as {twin}, but one is in the split {split!r} and the "
                                f"other in {split_of[twin]!r}.")
    return problems


def _notes(layout: Layout, found: Survey, splits: Splits) -> list[str]:
    """Observations that are not problems."""
    notes = [] if found.contents.labelled else [f"{layout.path} has no labels: usable for prediction only."]
    for key in found.contents.keys:
        silent = [filename for filename, result in found.recordings.items() if key in result.silent]
        if silent:
            notes.append(f"{key!r} is all zeros in some recordings ({len(silent):,}), first in {silent[0]}.")
    for path_of in (layout.audio_path, layout.features_path, layout.labels_path):
        expected = {path_of(filename) for filename in layout.filenames}
        folder = next(iter(expected)).parent
        orphans = sorted(path.name for path in set(folder.glob("[!.]*")) - expected) if folder.is_dir() else []
        if orphans:
            notes.append(f"{folder} holds files that belong to no recording in metadata.csv "
                         f"({len(orphans):,}), first {orphans[0]}.")
    notes += [f"The split {split!r} is empty." for split, filenames in splits.items() if not filenames]
    train = [found.good[name] for name in splits.get("train", ()) if name in found.good]
    if train and found.contents.reads_labels:
        notes += [f"{label!r} is never active in the split 'train'."
                  for label, frames in zip(layout.task.classes, _active_frames(train, layout.task)) if not frames]
    return notes


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: pathlib.Path) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None  # None for impossible names too


if __name__ == "__main__":
    define_flags()
    cli.run(main)
