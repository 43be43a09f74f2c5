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
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from sedjax.audio import reader
from sedjax.commands import cli
from sedjax.core import errors, grid, npz, task
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.data import identity
from sedjax.data.layout import Layout, read_layout, read_splits, read_task
from sedjax.scoring import metrics

from .statistics import Sums, column_sums

Splits = dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Survey:
    """Result of one pass over all files of a directory.

    Attributes:
      frames: number of frames of each good recording.
      problems: description of the problems of each bad recording.
      general: problems that all recordings share, not repeated in `problems`; if there are any, no recording is good.
      notes: observations that are not problems.
      keys: keys of the features that were read.
      widths: width of each feature.
      active_frames: (C,) number of active frames per class for each good recording; empty without labels.
      active_segments: (C,) number of active segments, likewise.
      digests: digests of the features and labels of each recording, from `digests_of`.
      sums: sums over the features (except audio) and labels of each good recording in `sums_of`.
      silent: recordings whose features are all zero.
      labelled: whether any recording has labels.
    """

    frames: dict[str, int]
    problems: dict[str, str]
    general: list[str]
    notes: list[str]
    keys: tuple[str, ...]
    widths: dict[str, int]
    active_frames: dict[str, np.ndarray]
    active_segments: dict[str, np.ndarray]
    digests: dict[str, dict[str, str]]
    sums: dict[str, dict[str, Sums]]
    silent: frozenset[str]
    labelled: bool


def define_flags() -> None:
    flags.DEFINE_list("features", None, "Keys of the features to check; `audio` means the recordings. Default: those "
                                        "of the first recording, or audio if there are none.")
    flags.DEFINE_string("costs", None, "JSON file of classes and costs, {class: {TP, FP, TN, FN}}, to replace DIR's.")


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError(f"Name one directory: sedjax check DIR (given: {' '.join(argv[1:]) or 'none'}).")
    options = flags.FLAGS
    layout = read_layout(argv[1], read_task(options.costs) if options.costs else None)
    result = survey(layout, tuple(dict.fromkeys(options.features)) if options.features else None)
    splits, problems = {"all": layout.filenames}, []
    if result.labelled or os.path.exists(layout.path / "splits.csv"):
        try:
            splits = read_splits(layout)
        except UserError as error:
            problems.append(str(error))
    problems += _all_problems(layout, result, splits)
    for line in problems:
        print(errors.printable(line))
    for line in [*result.notes, *_orphans(layout), *_empty_notes(layout, result, splits)]:
        print(errors.printable(f"Note: {line}"))
    print(summary(layout, result, splits))
    if problems:
        sys.stdout.flush()  # so that the error comes last where stdout and stderr are merged
        raise UserError(f"{len(problems):,} problem{'s' * (len(problems) > 1)} in {argv[1]}.")


def check(layout: Layout, feature_keys: tuple[str, ...] | None, splits: Splits) -> list[str]:
    """All problems of a directory, one line each: in its files, and recordings shared between its splits."""
    return _all_problems(layout, survey(layout, feature_keys), splits)


def survey(layout: Layout, keys: tuple[str, ...] | None = None, over: Callable = map,
           sums_of: Collection[str] = ()) -> Survey:
    """Reads the features (`audio` is the recording itself) and labels of every recording once.

    Args:
      layout: the directory; having no labels at all is not a problem.
      keys: features to read; None for all keys of the first readable features file, or for audio if no recording has
        a features file.
      over: a function like `map`; data_prep.beam.over runs on workers.
      sums_of: recordings whose sums for statistics are needed.
    """
    general, notes = [], []
    features_paths = [layout.features_path(filename) for filename in layout.filenames]
    labels_paths = [layout.labels_path(filename) for filename in layout.filenames]
    has_features = any(map(os.path.exists, features_paths))
    has_audio = any(os.path.exists(layout.audio_path(filename)) for filename in layout.filenames)
    if keys is None and has_audio and not has_features:
        keys = (reader.FEATURE,)
    elif keys is None:
        keys = next((names for names in map(_array_names, features_paths) if names), ())
    stored = tuple(key for key in keys if key != reader.FEATURE)
    if not keys or (stored and not has_features):
        general.append(f"{layout.path / 'audio_features'}: no recording in metadata.csv has a readable features file.")
        keys = ()
    elif absent := _absent_everywhere(stored, features_paths):
        general += [f"{layout.path / 'audio_features'}: no file has the feature {key!r}." for key in absent]
        keys = tuple(key for key in keys if key not in absent)
    if reader.FEATURE in keys and not has_audio:
        general.append(f"{layout.path / 'audio'}: no audio file for any recording in metadata.csv.")
        keys = tuple(key for key in keys if key != reader.FEATURE)
    if reader.FEATURE in keys:
        task.require_frame_seconds(layout.task)

    labelled = check_labels = any(map(os.path.exists, labels_paths))
    if not labelled:
        notes.append(f"{layout.path} has no labels: usable for prediction only.")
    elif absent := _absent_everywhere(layout.task.classes, labels_paths):
        general += [f"{layout.path / 'labels'}: no file has the class {name!r} of the task {layout.task.name!r}."
                    for name in absent]
        check_labels = False

    examine = functools.partial(_examine, layout=layout, keys=keys, check_labels=check_labels,
                                sums_of=frozenset(sums_of))
    examined = dict(zip(layout.filenames, tqdm(over(examine, layout.filenames), "checking", len(layout.filenames),
                                               disable=None, leave=False)))

    usual = {key: collections.Counter(entry.kinds[key] for entry in examined.values()
                                      if key in entry.kinds).most_common(1) for key in keys}
    for entry in examined.values():
        for key, (width, dtype) in entry.kinds.items():
            usual_width, usual_dtype = usual[key][0][0]
            if (width, dtype) != (usual_width, usual_dtype):
                entry.problems.append(f"{key!r} has width {width} and type {dtype}, but "
                                      f"usually {usual_width} and {usual_dtype}.")
    for key in keys:
        silent = [filename for filename, entry in examined.items() if key in entry.silent]
        if silent:
            notes.append(f"{key!r} is all zeros in some recordings ({len(silent):,}), first in {silent[0]}.")
    good = {filename: entry for filename, entry in examined.items()
            if entry.frames and not entry.problems and not general}
    return Survey(
        frames={filename: entry.frames for filename, entry in good.items()},
        problems={filename: " ".join(entry.problems) for filename, entry in examined.items() if entry.problems},
        general=general,
        notes=notes,
        keys=keys,
        widths={key: most[0][0][0] for key, most in usual.items() if most},
        active_frames={filename: entry.active_frames for filename, entry in good.items() if check_labels},
        active_segments={filename: entry.active_segments for filename, entry in good.items() if check_labels},
        digests={filename: entry.digests for filename, entry in examined.items()},
        sums={filename: entry.sums for filename, entry in good.items()},
        silent=frozenset(filename for filename, entry in examined.items() if len(entry.silent) == len(entry.kinds)),
        labelled=labelled,
    )


def summary(layout: Layout, found: Survey, splits: Splits) -> str:
    """A table for display: size and features of the good recordings, share of each class per split."""
    task, total = layout.task, sum(found.frames.values())
    widths = ", ".join(f"{key} {width}" for key, width in found.widths.items()) or "none"
    lines = [f"{len(found.frames):,} of {len(layout.filenames):,} recordings are good: "
             f"{total * task.frame_seconds / 3600:.2f} h, {total:,} frames; features: {widths}"]
    good = {split: [name for name in names if name in found.frames] for split, names in splits.items()}
    titles = ["recordings", "hours", *task.classes, "naive cost"]
    width = max(map(len, titles)) + 2

    def row(title: str, values: Iterable[str]) -> str:
        return f"{title:{width}}" + "".join(f"{value:>12}" for value in values)

    frames = {split: sum(found.frames[name] for name in names) for split, names in good.items()}
    lines += [row("", splits), row("recordings", (f"{len(names):,}" for names in good.values())),
              row("hours", (f"{count * task.frame_seconds / 3600:.2f}" for count in frames.values()))]
    if found.active_frames:
        lines.append("active frames, %")
        active = {split: _sum(found.active_frames, names, task) for split, names in good.items()}
        lines += [row(f"  {label}", (f"{100 * active[split][i] / max(frames[split], 1):.2f}" for split in splits))
                  for i, label in enumerate(task.classes)]
        lines.append(row("naive cost", (f"{all_off_cost(found, names, task):.2f}" for names in good.values()))
                     + "   per minute, predicting nothing")
    return "\n".join(lines)


def all_off_cost(found: Survey, filenames: Iterable[str], task: Task) -> float:
    """Cost per minute of predicting that no class is ever active in these good, labelled recordings."""
    filenames = list(filenames)
    missed = _sum(found.active_segments, filenames, task)
    segments = sum(grid.num_segments(found.frames[name], task) for name in filenames)
    counts = np.stack([0 * missed, 0 * missed, segments - missed, missed], axis=1)  # TP, FP, TN, FN
    return float(metrics.cost_per_class(counts, task).sum())


@dataclasses.dataclass
class _Examined:
    """Result of examining the files of one recording; `frames` is 0 while unknown."""

    problems: list[str] = dataclasses.field(default_factory=list)
    frames: int = 0
    kinds: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)  # key -> width, dtype
    silent: list[str] = dataclasses.field(default_factory=list)
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    sums: dict[str, Sums] = dataclasses.field(default_factory=dict)
    active_frames: np.ndarray | None = None
    active_segments: np.ndarray | None = None


def _examine(filename: str, layout: Layout, keys: tuple[str, ...], check_labels: bool,
             sums_of: Collection[str]) -> _Examined:
    result = _Examined()
    try:
        features = layout.features(filename, keys) if keys else {}
        result.kinds = {key: (value.shape[1], str(value.dtype)) for key, value in features.items()}
        result.silent = [key for key, value in features.items() if not value.any()]
        result.frames = len(next(iter(features.values()))) if features else 0
        result.digests |= digests_of(features)
        if filename in sums_of:
            result.sums |= {key: column_sums(value) for key, value in features.items() if key != reader.FEATURE}
    except UserError as error:
        result.problems.append(str(error))
    if check_labels:
        try:
            votes = layout.votes(filename)
            active = votes > 0
            result.digests |= digests_of({}, votes)
            if filename in sums_of:
                result.sums[identity.LABELS] = column_sums(active)
            if result.frames not in (0, len(active)):
                result.problems.append(f"{layout.features_path(filename)} has {result.frames} frames and "
                                       f"{layout.labels_path(filename)} has {len(active)}.")
            result.active_frames = active.sum(0)
            result.active_segments = grid.any_frame(grid.pad_to_segments(active, layout.task), layout.task).sum(0)
        except UserError as error:
            result.problems.append(str(error))
    return result


def digests_of(features: dict[str, np.ndarray], votes: np.ndarray | None = None) -> dict[str, str]:
    """Digests of the features of a recording, and of its labels if given, by key."""
    return {key: identity.array_digest(value) for key, value in
            (features if votes is None else {**features, identity.LABELS: votes}).items()}


def _all_problems(layout: Layout, result: Survey, splits: Splits) -> list[str]:
    recordings = [f"{filename}: {problem}" for filename, problem in result.problems.items()]
    unread = [] if reader.FEATURE in result.keys else _audio_problems(layout)
    return [*result.general, *recordings, *unread, *_leaks(layout, result, splits)]


def _audio_problems(layout: Layout) -> list[str]:
    # A directory may come without audio, but a few missing files mean an incomplete copy.
    sizes = {filename: _size(layout.audio_path(filename)) for filename in layout.filenames}
    present = sum(size is not None for size in sizes.values())
    missing = [f"{filename}: {layout.audio_path(filename)} is missing, but others have audio ({present:,})."
               for filename, size in sizes.items() if size is None and present]
    return missing + [f"{filename}: {layout.audio_path(filename)} is empty."
                      for filename, size in sizes.items() if size == 0]


def _leaks(layout: Layout, result: Survey, splits: Splits) -> list[str]:
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
    features = {filename: tuple(result.digests[filename][key] for key in result.keys) for filename in split_of
                if filename not in result.silent and result.digests.get(filename, {}).keys() >= set(result.keys)}

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


def _orphans(layout: Layout) -> list[str]:
    notes = []
    for path_of in (layout.audio_path, layout.features_path, layout.labels_path):
        expected = {path_of(filename) for filename in layout.filenames}
        folder = next(iter(expected)).parent
        orphans = sorted(path.name for path in set(folder.glob("[!.]*")) - expected) if folder.is_dir() else []
        if orphans:
            notes.append(f"{folder} holds files that belong to no recording in metadata.csv "
                         f"({len(orphans):,}), first {orphans[0]}.")
    return notes


def _empty_notes(layout: Layout, result: Survey, splits: Splits) -> list[str]:
    notes = [f"The split {split!r} is empty." for split, filenames in splits.items() if not filenames]
    train = [name for name in splits.get("train", ()) if name in result.active_frames]
    if train:
        active = _sum(result.active_frames, train, layout.task)
        notes += [f"{label!r} is never active in the split 'train'."
                  for label, frames in zip(layout.task.classes, active) if not frames]
    return notes


def _absent_everywhere(names: Iterable[str], paths: Iterable[pathlib.Path]) -> list[str]:
    """The names that no readable npz file in `paths` holds; stops reading once every name has occurred."""
    absent, read = dict.fromkeys(names), False
    for path in paths:
        names_in_file = _array_names(path)
        read = read or bool(names_in_file)
        for name in names_in_file:
            absent.pop(name, None)
        if not absent:
            break
    return list(absent) if read else []


def _array_names(path: pathlib.Path) -> tuple[str, ...]:
    """Names of the arrays in an npz file; empty if it is unreadable."""
    try:
        return tuple(npz.npz_sums(path)[0])
    except UserError:
        return ()


def _sum(per_recording: dict[str, np.ndarray], filenames: Iterable[str], task: Task) -> np.ndarray:
    return sum((per_recording[name] for name in filenames), np.zeros(len(task.classes), np.int64))


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: pathlib.Path) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None  # None for impossible names too


if __name__ == "__main__":
    define_flags()
    cli.run(main)
