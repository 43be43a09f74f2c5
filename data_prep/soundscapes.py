"""The built-in data set: synthesised soundscapes with exact strong labels, in MLPC layout (SPEC section 3).

    sedjax soundscapes --output=/data/soundscapes

Nothing is downloaded: each of the ten MLPC 2025 classes is a small physical model with random parameters, mixed over
background noise. A recording depends on the parameters and its index alone, never on the number of workers.
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

from data_prep import origin, staging
from data_prep.spectral import spectral_features
from data_prep.synthesis import MILLISECOND_SAMPLES, SOURCES, Rng, render, render_background
from sedjax.audio.mel import SPECTRAL_VERSION
from sedjax.commands import cli
from sedjax.core import files, grid, interrupts, npz
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, OUTCOMES, SAMPLE_RATE_HZ
from sedjax.data.layout import SPLITS

TASK = MLPC_2025
FORMAT_VERSION = 2  # raise it whenever the same parameters give other files
MANIFEST = "soundscapes.json"
EVENT_COUNT_ODDS = (0.06, 0.16, 0.24, 0.26, 0.17, 0.11)  # of 0, 1, ... 5 events in a recording
MAXIMUM_EVENT_SHARE = 0.6  # of a recording


@dataclasses.dataclass(frozen=True)
class Parameters:
    """All that the data set depends on; recordings last `seconds_min` to `seconds_max`."""

    recordings: int = 240
    seconds_min: float = 8.0
    seconds_max: float = 12.0
    seed: int = 0

    def __post_init__(self):
        if not 10 <= self.recordings <= 99999:
            raise UserError(f"recordings must be 10 to 99999, not {self.recordings}.")
        if not 2 <= self.seconds_min <= self.seconds_max <= 600:
            raise UserError("seconds_min and seconds_max must be 2 to 600 and in that order, "
                            f"not {self.seconds_min} and {self.seconds_max}.")
        if self.seed < 0:
            raise UserError(f"seed must not be negative: {self.seed}.")


def compose(rng: Rng, parameters: Parameters, required: Sequence[str]) -> tuple[np.ndarray, list[tuple]]:
    """One recording that holds at least an event of each `required` class.

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
    """What one to three annotators note: the first is exact; others are off by about 0.1 s and miss what is faint.

    Returns:
      how many annotators there are, and rows (annotator, onset, offset, label) by annotator, then onset.
    """
    annotators = int(rng.integers(1, 4))
    rows = [(0, onset, offset, label) for label, onset, offset, _ in events]
    for annotator in range(1, annotators):
        for label, onset, offset, snr_db in events:
            noted_onset = np.clip(onset + rng.normal(0, 0.08), 0, seconds - 0.1)
            noted_offset = np.clip(offset + rng.normal(0, 0.12), noted_onset + 0.1, seconds)
            if rng.random() > (0.25 if snr_db < 6 else 0.05):
                rows.append((annotator, round(float(noted_onset), 3), round(float(noted_offset), 3), label))
    return annotators, sorted(rows)


def write_recording(folder: pathlib.Path, parameters: Parameters, index: int, required: Sequence[str]) -> tuple:
    """Writes audio, features and labels of a recording; returns its row of metadata.csv and rows of annotations.csv."""
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
    soundfile.write(folder / "audio" / f"{stem}.flac", pcm, SAMPLE_RATE_HZ, subtype="PCM_16")
    # Features of what was written, so that extracting them from the file again gives the same.
    npz.savez(folder / "audio_features" / f"{stem}.npz", spectral_features(pcm / np.float32(32768), frames))
    npz.savez(folder / "labels" / f"{stem}_labels.npz", labels, packed=True)
    return (f"{stem}.flac", seconds), [(f"{stem}.flac", *row) for row in rows]


def plan(parameters: Parameters) -> tuple[list[str], list[list[str]]]:
    """The split of each recording (60 / 20 / 20), and the classes it must hold so that no split lacks any."""
    count = parameters.recordings
    bounds = (0, round(0.6 * count), round(0.8 * count), count)
    # [seed, count]: a stream of this seed that no recording draws from.
    order = np.random.default_rng([parameters.seed, count]).permutation(count)
    splits, required = [""] * count, [[] for _ in range(count)]
    for split, first, last in zip(SPLITS, bounds, bounds[1:]):
        for index in order[first:last]:
            splits[index] = split
        for position, label in enumerate(TASK.classes):
            required[order[first + position % (last - first)]].append(label)
    return splits, required


def is_up_to_date(output: pathlib.Path, parameters: Parameters) -> bool:
    """Whether `output` holds this very data set. Raises UserError if it holds anything else."""
    try:
        if not os.path.lexists(output) or not any(output.iterdir()):
            return False
        made = files.read_json(output / MANIFEST, dict[str, Any])
    except (OSError, UserError) as error:
        raise UserError(f"{output} exists and is not a built-in data set: choose another --output.") from error
    differing = [f"{key} {made.get(key)!r} instead of {value!r}"
                 for key, value in _manifest(parameters).items() if made.get(key) != value]
    if differing:
        raise UserError(f"{output} was made with {', '.join(differing)}; choose another --output, or delete it.")
    return True


def write_soundscapes(output: str | os.PathLike, parameters: Parameters, workers: int = 1) -> bool:
    """Writes the data set into `output`, whole or not at all, with `workers` processes.

    Returns whether there was anything to do: not if `output` is this very data set already.
    Raises UserError if `output` is something else, or cannot be written.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}.")
    output = pathlib.Path(os.path.realpath(output))
    if is_up_to_date(output, parameters):
        return False
    try:
        with staging.staging(output) as folder:
            _write_all(folder / staging.NEW, parameters, min(workers, parameters.recordings))
            staging.put(folder, folder / staging.NEW, output, _require_empty)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"Cannot write {output}: {getattr(error, 'strerror', None) or error}.") from error
    return True


def _require_empty(folder: pathlib.Path) -> None:
    if not folder.is_dir() or any(folder.iterdir()):
        raise UserError("--output came to hold something else while the data set was made: choose another one.")


def _write_all(folder: pathlib.Path, parameters: Parameters, workers: int) -> None:
    for name in ("audio", "audio_features", "labels"):
        (folder / name).mkdir(parents=True)
    splits, required = plan(parameters)
    context = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX's threads can hang
    pool = concurrent.futures.ProcessPoolExecutor(workers, context) if workers > 1 else None
    with pool or contextlib.nullcontext():
        with interrupts.only_here():
            done = (pool.map if pool else map)(functools.partial(write_recording, folder, parameters),
                                               range(parameters.recordings), required)
        metadata, annotations = zip(*tqdm(done, total=parameters.recordings, unit="recording", disable=None))
    _write_csv(folder / "metadata.csv", ("filename", "duration"), metadata)
    _write_csv(folder / "annotations.csv", ("filename", "annotator", "onset", "offset", "text"),
               [row for rows in annotations for row in rows])
    _write_csv(folder / "splits.csv", ("filename", "split"), [(row[0], split) for row, split in zip(metadata, splits)])
    costs = {label: dict(zip(OUTCOMES, row)) for label, row in zip(TASK.classes, TASK.costs)}
    (folder / "costs.json").write_text(json.dumps(costs, indent=1), encoding="utf-8")
    origin.note(folder, {key: {"parameters": SPECTRAL_VERSION} for key in ("melspectrogram", "mfcc")})
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
    flags.DEFINE_integer("seed", Parameters.seed, "Another seed gives other recordings.")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes; the result does not depend on it.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"Unexpected argument {argv[1]!r}; every option is a flag, such as --output=DIR.")
    given = flags.FLAGS
    parameters = Parameters(given.recordings, given.seconds_min, given.seconds_max, given.seed)
    if write_soundscapes(given.output, parameters, given.workers):
        print(f"Wrote {parameters.recordings} recordings to {given.output}.")
    else:
        print(f"{given.output} is up to date.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
