"""Checks a directory in MLPC layout (SPEC section 3) before anything else reads it.

    sedjax check DIR [--features=embeddings,melspectrogram] [--costs=costs.json]
"""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

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

Splits = dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over all files of a directory found.

    Attributes:
      frames: number of frames of each good recording.
      problems: what is wrong with each other recording.
      general: what is wrong with all of them, said once: not repeated in `problems`. Then no recording is good.
      notes: what is worth knowing but keeps nothing from working.
      keys: features that were read.
      widths: width of each feature.
      active_frames: (C,) frames of each good recording in which a class is active; empty without labels.
      active_segments: the same for segments.
      digests: of the features, and of the labels, of each recording, as `digests_of` gives them.
      silent: recordings whose features are all zero throughout.
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
    silent: frozenset[str]
    labelled: bool


def define_flags() -> None:
    flags.DEFINE_list("features", None, "Features to check, by key; `audio`: the recordings. Default: those of the "
                                        "first recording, or audio where there are none.")
    flags.DEFINE_string("costs", None, "Classes and costs, {class: {TP, FP, TN, FN}} as JSON, instead of DIR's own.")


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError(f"Name one directory: sedjax check DIR, not {' '.join(argv[1:]) or 'none'}.")
    options = flags.FLAGS
    layout = read_layout(argv[1], read_task(options.costs) if options.costs else None)
    found = survey(layout, tuple(dict.fromkeys(options.features)) if options.features else None)
    splits, problems = {"all": layout.filenames}, []
    if found.labelled or os.path.exists(layout.path / "splits.csv"):
        try:
            splits = read_splits(layout)
        except UserError as error:
            problems.append(str(error))
    problems += _all_problems(layout, found, splits)
    for line in problems:
        print(errors.printable(line))
    for line in [*found.notes, *_orphans(layout), *_empty_notes(layout, found, splits)]:
        print(errors.printable(f"Note: {line}"))
    print(summary(layout, found, splits))
    if problems:
        sys.stdout.flush()  # so that the error is the last line wherever the two streams meet
        raise UserError(f"{len(problems):,} problem{'s' * (len(problems) > 1)} in {argv[1]}.")


def check(layout: Layout, feature_keys: tuple[str, ...] | None, splits: Splits) -> list[str]:
    """Everything wrong with a directory, one line each: its files, and what its splits share."""
    return _all_problems(layout, survey(layout, feature_keys), splits)


def survey(layout: Layout, keys: tuple[str, ...] | None = None, over: Callable = map) -> Survey:
    """Reads the features, of which `audio` is the recording itself, and the labels of every recording once.

    Args:
      layout: the directory. Without any labels it is an unlabelled one, which is not a problem.
      keys: features to read; None for all that the first readable features file has, or for audio if no recording has
        such a file.
      over: like `map`; data_prep.beam.over has workers do it.
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
        general.append(f"{layout.path / 'audio_features'}: no recording of metadata.csv has a readable features file.")
        keys = ()
    elif absent := _absent_everywhere(stored, features_paths):
        general += [f"{layout.path / 'audio_features'}: no file has the feature {key!r}." for key in absent]
        keys = tuple(key for key in keys if key not in absent)
    if reader.FEATURE in keys and not has_audio:
        general.append(f"{layout.path / 'audio'}: no recording of metadata.csv is there.")
        keys = tuple(key for key in keys if key != reader.FEATURE)
    if reader.FEATURE in keys:
        task.require_frame_seconds(layout.task)

    labelled = check_labels = any(map(os.path.exists, labels_paths))
    if not labelled:
        notes.append(f"{layout.path} has no labels: good for predictions only.")
    elif absent := _absent_everywhere(layout.task.classes, labels_paths):
        general += [f"{layout.path / 'labels'}: no file has the class {name!r} of the task {layout.task.name!r}."
                    for name in absent]
        check_labels = False

    examine = functools.partial(_examine, layout=layout, keys=keys, check_labels=check_labels)
    seen = dict(zip(layout.filenames, tqdm(over(examine, layout.filenames), "checking", len(layout.filenames),
                                           disable=None, leave=False)))

    usual = {key: collections.Counter(one.kinds[key] for one in seen.values() if key in one.kinds).most_common(1)
             for key in keys}
    for one in seen.values():
        for key, (width, dtype) in one.kinds.items():
            usual_width, usual_dtype = usual[key][0][0]
            if (width, dtype) != (usual_width, usual_dtype):
                one.problems.append(f"{key!r} is {width} wide, {dtype}, but mostly {usual_width} wide, {usual_dtype}.")
    for key in keys:
        silent = [filename for filename, one in seen.items() if key in one.silent]
        if silent:
            notes.append(f"{key!r} is zero throughout in some recordings ({len(silent):,}), first {silent[0]}.")
    good = {filename: one for filename, one in seen.items() if one.frames and not one.problems and not general}
    return Survey(
        frames={filename: one.frames for filename, one in good.items()},
        problems={filename: " ".join(one.problems) for filename, one in seen.items() if one.problems},
        general=general,
        notes=notes,
        keys=keys,
        widths={key: most[0][0][0] for key, most in usual.items() if most},
        active_frames={filename: one.active_frames for filename, one in good.items() if check_labels},
        active_segments={filename: one.active_segments for filename, one in good.items() if check_labels},
        digests={filename: one.digests for filename, one in seen.items()},
        silent=frozenset(filename for filename, one in seen.items() if len(one.silent) == len(one.kinds)),
        labelled=labelled,
    )


def summary(layout: Layout, found: Survey, splits: Splits) -> str:
    """A table for people: size and features of the good recordings, per split the share of each class."""
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
    """What was found in the files of one recording; `frames` is 0 until something tells it."""

    problems: list[str] = dataclasses.field(default_factory=list)
    frames: int = 0
    kinds: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)  # key -> width, dtype
    silent: list[str] = dataclasses.field(default_factory=list)
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    active_frames: np.ndarray | None = None
    active_segments: np.ndarray | None = None


def _examine(filename: str, layout: Layout, keys: tuple[str, ...], check_labels: bool) -> _Examined:
    found = _Examined()
    try:
        features = layout.features(filename, keys) if keys else {}
        found.kinds = {key: (value.shape[1], str(value.dtype)) for key, value in features.items()}
        found.silent = [key for key, value in features.items() if not value.any()]
        found.frames = len(next(iter(features.values()))) if features else 0
        found.digests |= digests_of(features)
    except UserError as error:
        found.problems.append(str(error))
    if check_labels:
        try:
            votes = layout.votes(filename)
            active = votes > 0
            found.digests |= digests_of({}, votes)
            if found.frames not in (0, len(active)):
                found.problems.append(f"{layout.features_path(filename)} has {found.frames} frames and "
                                      f"{layout.labels_path(filename)} has {len(active)}.")
            found.active_frames = active.sum(0)
            found.active_segments = grid.any_frame(grid.pad_to_segments(active, layout.task), layout.task).sum(0)
        except UserError as error:
            found.problems.append(str(error))
    return found


def digests_of(features: dict[str, np.ndarray], votes: np.ndarray | None = None) -> dict[str, str]:
    """The digest of each feature of a recording, and of its labels."""
    return {key: identity.array_digest(value) for key, value in
            (features if votes is None else {**features, identity.LABELS: votes}).items()}


def _all_problems(layout: Layout, found: Survey, splits: Splits) -> list[str]:
    recordings = [f"{filename}: {what}" for filename, what in found.problems.items()]
    unread = [] if reader.FEATURE in found.keys else _audio_problems(layout)
    return [*found.general, *recordings, *unread, *_leaks(layout, found, splits)]


def _audio_problems(layout: Layout) -> list[str]:
    # A directory may come without audio, but a few missing files are a copy that was cut short.
    sizes = {filename: _size(layout.audio_path(filename)) for filename in layout.filenames}
    present = sum(size is not None for size in sizes.values())
    missing = [f"{filename}: there is no file {layout.audio_path(filename)}, though others have theirs ({present:,})."
               for filename, size in sizes.items() if size is None and present]
    return missing + [f"{filename}: {layout.audio_path(filename)} is empty."
                      for filename, size in sizes.items() if size == 0]


def _leaks(layout: Layout, found: Survey, splits: Splits) -> list[str]:
    """Recordings in two splits, by name or by content, one line each."""
    problems, split_of = [], {}
    for split, filenames in splits.items():
        for filename in filenames:
            if split_of.setdefault(filename, split) != split:
                problems.append(f"{filename}: it is in the splits {split_of[filename]!r} and {split!r}.")

    # Only files of one size can be equal, so few are read.
    by_size = collections.defaultdict(list)
    for filename in split_of:
        if size := _size(layout.audio_path(filename)):
            by_size[size].append(filename)
    candidates = [filename for names in by_size.values() if len({split_of[name] for name in names}) > 1
                  for filename in names]
    recordings = {filename: _digest(layout.audio_path(filename)) for filename in candidates}
    # Silent recordings of one length are all the same, and no leak.
    features = {filename: tuple(found.digests[filename][key] for key in found.keys) for filename in split_of
                if filename not in found.silent and found.digests.get(filename, {}).keys() >= set(found.keys)}

    told = set()
    for what, digests in (("audio", recordings), ("features", features)):
        first: dict[str, str] = {}
        for filename, split in split_of.items():
            if filename not in digests:
                continue
            twin = first.setdefault(digests[filename], filename)
            if split_of[twin] != split and filename not in told:
                told.add(filename)
                problems.append(f"{filename}: the same {what} as {twin}, though one is in the split {split!r} and "
                                f"the other in {split_of[twin]!r}.")
    return problems


def _orphans(layout: Layout) -> list[str]:
    notes = []
    for path_of in (layout.audio_path, layout.features_path, layout.labels_path):
        expected = {path_of(filename) for filename in layout.filenames}
        folder = next(iter(expected)).parent
        orphans = sorted(path.name for path in set(folder.glob("[!.]*")) - expected) if folder.is_dir() else []
        if orphans:
            notes.append(f"{folder} holds files of no recording in metadata.csv ({len(orphans):,}), "
                         f"first {orphans[0]}.")
    return notes


def _empty_notes(layout: Layout, found: Survey, splits: Splits) -> list[str]:
    notes = [f"The split {split!r} is empty." for split, filenames in splits.items() if not filenames]
    train = [name for name in splits.get("train", ()) if name in found.active_frames]
    if train:
        active = _sum(found.active_frames, train, layout.task)
        notes += [f"{label!r} is never active in the split 'train'."
                  for label, frames in zip(layout.task.classes, active) if not frames]
    return notes


def _absent_everywhere(names: Iterable[str], paths: Iterable[pathlib.Path]) -> list[str]:
    """Those names that no readable npz file of `paths` holds; stops at the first that holds all, mostly the first."""
    absent, read = dict.fromkeys(names), False
    for path in paths:
        held = _array_names(path)
        read = read or bool(held)
        for name in held:
            absent.pop(name, None)
        if not absent:
            break
    return list(absent) if read else []


def _array_names(path: pathlib.Path) -> tuple[str, ...]:
    """Names of the arrays in an npz file; none if it cannot be read."""
    try:
        return npz.npz_names(path)
    except UserError:
        return ()


def _sum(per_recording: dict[str, np.ndarray], filenames: Iterable[str], task: Task) -> np.ndarray:
    return sum((per_recording[name] for name in filenames), np.zeros(len(task.classes), np.int64))


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: pathlib.Path) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None  # of a name that no file can have too


if __name__ == "__main__":
    define_flags()
    cli.run(main)
