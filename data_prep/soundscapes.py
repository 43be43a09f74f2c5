"""The built-in data set: synthesised soundscapes with exact strong labels, in MLPC layout (SPEC section 3).

    sedjax soundscapes --output=/data/soundscapes

Nothing is downloaded: each of the ten MLPC 2025 classes is a small physical model with random parameters, mixed over
background noise. A recording depends only on the parameters and its index, never on the number of workers.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
from absl import flags
from tqdm import tqdm

from sedjax.audio.clips import Unreadable
from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.commands import cli
from sedjax.core import files, grid, interrupts, npz
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, OUTCOMES, SAMPLE_RATE_HZ
from sedjax.data import provenance
from sedjax.data.identity import Extractor
from sedjax.data.layout import SPLITS

from . import staging
from .synthesis import MILLISECOND_SAMPLES, SOURCES, Rng, render, render_background

TASK = MLPC_2025
FORMAT_VERSION = 3  # increment it whenever the same parameters produce different files
MANIFEST = "soundscapes.json"
FEATURES = ("melspectrogram", "mfcc")
EVENT_COUNT_ODDS = (0.06, 0.16, 0.24, 0.26, 0.17, 0.11)  # of 0, 1, ... 5 events in a recording
MAXIMUM_EVENT_SHARE = 0.6  # of a recording


@dataclasses.dataclass(frozen=True)
class Parameters:
    """All parameters of the data set; recordings last `seconds_min` to `seconds_max`."""

    recordings: int = 240
    seconds_min: float = 8.0
    seconds_max: float = 12.0
    seed: int = 0

    def __post_init__(self):
        if not 10 <= self.recordings <= 99999:
            raise UserError(f"recordings must be 10 to 99999, not {self.recordings}.")
        if not 2 <= self.seconds_min <= self.seconds_max <= 600:
            raise UserError("seconds_min and seconds_max must be 2 to 600 and in this order, "
                            f"not {self.seconds_min} and {self.seconds_max}.")
        if self.seed < 0:
            raise UserError(f"seed must not be negative: {self.seed}.")


def compose(rng: Rng, parameters: Parameters, required: Sequence[str]) -> tuple[np.ndarray, list[tuple]]:
    """Synthesises a recording with at least one event of each `required` class.

    Returns:
      (samples,) float64 in [-1, 1], and its events as (label, onset, offset, SNR in dB).
    """
    seconds = round(rng.uniform(parameters.seconds_min, parameters.seconds_max), 2)
    background_db = rng.uniform(-54, -40)
    audio = render_background(rng, seconds) * 10 ** (background_db / 20)
    odds = np.array([SOURCES[label][1] for label in TASK.classes])
    drawn = rng.choice(TASK.classes, rng.choice(len(EVENT_COUNT_ODDS), p=EVENT_COUNT_ODDS), p=odds / odds.sum())
    events = []
    for label in [*required, *map(str, drawn[len(required) :])]:
        _, _, length_range, gain_db = SOURCES[label]
        sound = render(label, rng, rng.uniform(*np.minimum(length_range, MAXIMUM_EVENT_SHARE * seconds)))
        onset = MILLISECOND_SAMPLES * int(rng.integers((len(audio) - len(sound)) // MILLISECOND_SAMPLES + 1))
        offset, snr_db = onset + len(sound), rng.uniform(0, 24) + gain_db
        audio[onset:offset] += sound * 10 ** ((background_db + snr_db) / 20)
        events.append((label, onset / SAMPLE_RATE_HZ, offset / SAMPLE_RATE_HZ, snr_db))
    return audio / max(1, np.abs(audio).max() / 0.98), events


def annotate(rng: Rng, events: Sequence[tuple], seconds: float) -> tuple[int, list[tuple]]:
    """Simulates one to three annotators: the first is exact; others are off by about 0.1 s and miss faint events.

    Returns:
      Number of annotators, and rows (annotator, onset, offset, label) sorted by annotator, then onset.
    """
    annotators = int(rng.integers(1, 4))
    rows = [(0, onset, offset, label) for label, onset, offset, _ in events]
    for annotator in range(1, annotators):
        for label, onset, offset, snr_db in events:
            marked_onset = np.clip(onset + rng.normal(0, 0.08), 0, seconds - 0.1)
            marked_offset = np.clip(offset + rng.normal(0, 0.12), marked_onset + 0.1, seconds)
            if rng.random() > (0.25 if snr_db < 6 else 0.05):
                rows.append((annotator, round(float(marked_onset), 3), round(float(marked_offset), 3), label))
    return annotators, sorted(rows)


def write_recording(folder: pathlib.Path, parameters: Parameters, index: int, required: Sequence[str]) -> tuple:
    """Writes audio and labels of a recording; returns its row of metadata.csv and rows of annotations.csv."""
    rng = np.random.default_rng([parameters.seed, index])
    audio, events = compose(rng, parameters, required)
    pcm = np.round(audio * 32767).astype(np.int16)
    seconds = len(pcm) / SAMPLE_RATE_HZ
    frames = grid.num_frames(seconds, TASK)
    annotators, rows = annotate(rng, events, seconds)
    labels = {label: np.zeros((frames, annotators), np.uint8) for label in TASK.classes}
    for annotator, onset, offset, label in rows:
        labels[label][grid.event_frames(onset, offset, frames, TASK), annotator] = 1
    stem = f"{index:05d}"
    try:
        soundfile.write(folder / "audio" / f"{stem}.flac", pcm, SAMPLE_RATE_HZ, subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from error
    npz.savez(folder / "labels" / f"{stem}_labels.npz", labels, packed=True)
    return (f"{stem}.flac", seconds), [(f"{stem}.flac", *row) for row in rows]


def write_features(folder: pathlib.Path, filenames: Sequence[str]) -> None:
    """Writes the features of recordings that were written before."""
    from sedjax.audio import spectral  # starts JAX, which the workers must not

    origins = dict.fromkeys(FEATURES, Extractor(parameters=SPECTRAL_VERSION))
    clips = spectral.clips([folder / "audio" / filename for filename in filenames], FEATURES)
    for clip in tqdm(clips, "features", len(filenames), unit="recording", disable=None):
        if isinstance(clip, Unreadable):
            raise clip.error
        path = folder / "audio_features" / f"{pathlib.PurePath(clip.recording).stem}.npz"
        provenance.write(path, clip.features, origins, None)


def plan(parameters: Parameters) -> tuple[list[str], list[list[str]]]:
    """The split of each recording (60 / 20 / 20), and the classes it must contain so that no split lacks a class."""
    count = parameters.recordings
    bounds = (0, round(0.6 * count), round(0.8 * count), count)
    # [seed, count]: a random stream of this seed that no recording uses.
    order = np.random.default_rng([parameters.seed, count]).permutation(count)
    splits, required = [""] * count, [[] for _ in range(count)]
    for split, first, last in zip(SPLITS, bounds, bounds[1:]):
        for index in order[first:last]:
            splits[index] = split
        for position, label in enumerate(TASK.classes):
            required[order[first + position % (last - first)]].append(label)
    return splits, required


def is_up_to_date(output: pathlib.Path, parameters: Parameters) -> bool:
    """Whether `output` holds exactly this data set. Raises UserError if it holds anything else."""
    try:
        if not os.path.lexists(output) or not any(output.iterdir()):
            return False
        manifest = files.read_json(output / MANIFEST, dict[str, Any])
    except (OSError, UserError) as error:
        raise UserError(f"{output} exists and is not a built-in data set: choose another --output.") from error
    differing = [f"{key} {manifest.get(key)!r} instead of {value!r}"
                 for key, value in _manifest(parameters).items() if manifest.get(key) != value]
    if differing:
        raise UserError(f"{output} was created with {', '.join(differing)}; choose another --output, or delete it.")
    return True


def write_soundscapes(output: str | os.PathLike, parameters: Parameters, workers: int = 1) -> bool:
    """Writes the data set to `output`, completely or not at all, with `workers` processes.

    Returns whether anything was written; False if `output` already holds exactly this data set.
    Raises UserError if `output` holds something else or cannot be written.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}.")
    output = pathlib.Path(os.path.realpath(output))
    if is_up_to_date(output, parameters):
        return False
    with staging.staging(output) as folder:
        _write_all(folder / staging.NEW, parameters, min(workers, parameters.recordings))
        staging.put(folder, output)
    return True


def _write_all(folder: pathlib.Path, parameters: Parameters, workers: int) -> None:
    for name in ("audio", "audio_features", "labels"):
        (folder / name).mkdir(parents=True)
    splits, required = plan(parameters)
    context = multiprocessing.get_context("spawn")  # forking a process with JAX's threads can hang
    pool = concurrent.futures.ProcessPoolExecutor(workers, context) if workers > 1 else None
    with pool or contextlib.nullcontext():
        with interrupts.only_here():
            done = (pool.map if pool else map)(functools.partial(write_recording, folder, parameters),
                                               range(parameters.recordings), required)
        metadata, annotations = zip(*tqdm(done, "sounds", parameters.recordings, unit="recording", disable=None))
    write_features(folder, [filename for filename, _ in metadata])
    _write_csv(folder / "metadata.csv", ("filename", "duration"), metadata)
    _write_csv(folder / "annotations.csv", ("filename", "annotator", "onset", "offset", "text"),
               [row for rows in annotations for row in rows])
    _write_csv(folder / "splits.csv", ("filename", "split"), [(row[0], split) for row, split in zip(metadata, splits)])
    costs = {label: dict(zip(OUTCOMES, row)) for label, row in zip(TASK.classes, TASK.costs)}
    (folder / "costs.json").write_text(json.dumps(costs, indent=1), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(_manifest(parameters), indent=1), encoding="utf-8")


def _write_csv(path: pathlib.Path, header: Sequence[str], rows: Sequence[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _manifest(parameters: Parameters) -> dict:
    return {"command": "data_prep.soundscapes", "version": FORMAT_VERSION, **dataclasses.asdict(parameters)}


def define_flags() -> None:
    flags.DEFINE_string("output", None, "Directory to write, in MLPC layout.", required=True)
    flags.DEFINE_integer("recordings", Parameters.recordings, "Number of recordings.")
    flags.DEFINE_float("seconds_min", Parameters.seconds_min, "Length of the shortest recording.")
    flags.DEFINE_float("seconds_max", Parameters.seconds_max, "Length of the longest recording.")
    flags.DEFINE_integer("seed", Parameters.seed, "Random seed of the recordings.")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Number of processes; does not affect the result.")


def main(argv: Sequence[str]) -> None:
    cli.require_no_arguments(argv)
    options = flags.FLAGS
    parameters = Parameters(options.recordings, options.seconds_min, options.seconds_max, options.seed)
    if write_soundscapes(options.output, parameters, options.workers):
        print(f"Wrote {parameters.recordings} recordings to {options.output}.")
    else:
        print(f"{options.output} is up to date.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
