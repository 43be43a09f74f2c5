"""`sedjax extract`: recordings -> features in MLPC layout (SPEC section 3).

    sedjax extract --audio=RECORDINGS --output=DIR --features=melspectrogram,mfcc,embeddings \\
        --embeddings_from=WORKDIR
    sedjax extract --source=DIR --embeddings_from=WORKDIR

The first form makes features of audio files; started again, it resumes. The second adds embeddings to
features that are there. Embeddings are what the head of a trained sedjax model sees of each frame, or ATST-Frame's.
"""

import contextlib
import csv
import os
import pathlib
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep import extraction, origin
from data_prep.extraction import Job, Waiting
from data_prep.journal import Entry, Journal, features_state, recording_state
from sedjax.audio import reader
from sedjax.audio.clips import Unreadable
from sedjax.commands import cli
from sedjax.commands.cli import BAD_LIST, SOME_BAD_STATUS, write_bad
from sedjax.core import errors, files, task
from sedjax.core.errors import UserError
from sedjax.core.files import read_csv
from sedjax.data.layout import Layout, read_layout, read_task

FEATURES = ("melspectrogram", "mfcc", "mfcc_delta", "mfcc_delta2", "embeddings")
JOURNAL = "extracted.jsonl"
METADATA = "metadata.csv"


def define_flags() -> None:
    flags.DEFINE_string("audio", None, "Folder of recordings, each of any format, rate, channels and length.")
    flags.DEFINE_string("output", None, "Directory for what is made of --audio, in MLPC layout.")
    flags.DEFINE_list("features", ["melspectrogram", "mfcc"], f"What to make of --audio: any of {', '.join(FEATURES)}.")
    flags.DEFINE_string("source", None, "Directory in MLPC layout, with the features that the extractor needs, to add "
                                        "embeddings to.")
    flags.DEFINE_string("embeddings_from", None, "The extractor: workdir of a trained model, or with --audio also the "
                                                 "npz file of ATST-Frame that data_prep.import_weights wrote.")
    flags.DEFINE_enum("hop_seconds", "9.6", ["9.6", "4.8"], "From one window of ATST-Frame, of 10 s, to the next: 4.8 "
                                                            "takes twice as long and averages two for most frames.")
    flags.DEFINE_integer("drop_layers", 0, "Last layers of ATST-Frame to leave out.", lower_bound=0)
    flags.DEFINE_string("beam_options", None, "Run --audio as an Apache Beam pipeline with these options, such as "
                                              "\"--runner=FlinkRunner --flink_master=HOST:8081\".")


def main(argv: Sequence[str]) -> None:
    cli.require_no_arguments(argv)
    options = flags.FLAGS
    if bool(options.source) == bool(options.audio):
        raise UserError("Give either --audio=FOLDER, to make features of recordings, or --source=DIR, to add "
                        "embeddings to features.")
    if options.source:
        if not options.embeddings_from:
            raise UserError("--source takes --embeddings_from=WORKDIR: embeddings are added to the features there.")
        for flag in ("output", "features", "hop_seconds", "drop_layers", "beam_options"):
            if options[flag].present:
                raise UserError(f"--{flag} is for --audio: --source takes --embeddings_from=WORKDIR only.")
        with cli.tidy_sigterm():
            add_embeddings(options.source, options.embeddings_from)
        return
    if not options.output:
        raise UserError("--audio takes --output=DIR, the directory to write.")
    unknown = [name for name in options.features if name not in FEATURES]
    if unknown or not options.features:
        raise UserError(f"--features takes some of {', '.join(FEATURES)}, not {', '.join(unknown) or 'none'}.")
    if ("embeddings" in options.features) != bool(options.embeddings_from):
        raise UserError("The feature embeddings takes --embeddings_from=WORKDIR, and nothing else does.")
    for flag in ("hop_seconds", "drop_layers"):
        if options[flag].present and not _is_atst_frame(options.embeddings_from):
            raise UserError(f"--{flag} is for the windows of ATST-Frame, with --embeddings_from=FILE.npz: a workdir "
                            "says itself how its model takes recordings.")
    with cli.tidy_sigterm():
        done, bad = extract(cli.file_path(options.audio), cli.file_path(options.output),
                            tuple(options.features), options.embeddings_from, float(options.hop_seconds),
                            options.drop_layers, options.beam_options)
    listed = f"; {bad:,} cannot be read, listed in {pathlib.Path(options.output) / BAD_LIST}" if bad else ""
    print(errors.printable(f"{options.output} holds {', '.join(options.features)} of {done:,} recordings{listed}."))
    if bad:
        sys.exit(SOME_BAD_STATUS)


def _is_atst_frame(embeddings_from: str | None) -> bool:
    return bool(embeddings_from) and embeddings_from.endswith(".npz")


def add_embeddings(source: str, embeddings_from: str) -> None:
    """Adds the embeddings of a trained model to the features in a directory in MLPC layout.

    Raises UserError, before anything is computed, if there are embeddings that sedjax did not make.
    """
    from sedjax.audio.clips import ahead, recut
    from sedjax.data.records import directory_clips
    from sedjax.inference.extractors import ModelExtractor  # imports JAX, which is slow
    from sedjax.inference.trained import load_model

    layout, model = read_layout(source), load_model(embeddings_from)
    extractor = ModelExtractor(model)
    width = extractor.width
    made_by = origin.of_extractor(embeddings_from, extractor.parameters)
    journal = Journal(layout.path / JOURNAL) if os.path.lexists(layout.path / JOURNAL) else None
    noted = {name: journal and journal.vouches(name, layout.features_path(name)) for name in layout.filenames}
    for filename in layout.filenames:
        extraction.require_ours(layout.features_path(filename), ("embeddings",), noted[filename])
    clips = ahead(recut(directory_clips(layout, model.inputs, model.widths), extractor.max_frames))
    frames = []
    for clip in recut(extractor.embed(clips)):
        if isinstance(clip, Unreadable):
            raise UserError(f"{clip.recording}: {clip.error}")
        frames.append(clip.features["embeddings"])
    origin.forget(layout.path, ("embeddings",))
    for filename, value in zip(tqdm(layout.filenames, "writing", disable=None), frames):
        add_features(layout, filename, {"embeddings": value}, noted[filename])
        if entry := noted[filename]:
            # Not that they were made of the recording: they were made of whatever features are there.
            parameters = {key: made_with for key, made_with in entry["parameters"].items() if key != "embeddings"}
            journal.note(entry | features_state(layout.features_path(filename)) | {"parameters": parameters})
    origin.note(layout.path, {"embeddings": made_by})
    print(f"Wrote embeddings of {len(frames):,} recordings, {width} wide, to {errors.printable(layout.path)}.")


def add_features(layout: Layout, filename: str, features: dict[str, np.ndarray], noted: Entry | None = None) -> None:
    """Adds features to the file of a recording, in place of those with the same names, all of them or none.

    Makes the file if there is none. Raises UserError if it is damaged, of a recording of another length, or holds
    features of these names that sedjax did not make.
    """
    path = layout.features_path(filename)
    others, ours = extraction.kept(path, features.keys(), noted)
    files.make_folder(path.parent)
    extraction.write(path, others, extraction.fit(features, {key: value.shape for key, value in others.items()}, path),
                     ours)


def extract(folder: pathlib.Path, output: pathlib.Path, wanted: tuple[str, ...],
            embeddings_from: str | None = None, hop_seconds: float = 9.6, drop_layers: int = 0,
            beam_options: str | None = None) -> tuple[int, int]:
    """Makes features of the recordings in a folder, of those only that are not done yet.

    Writes audio_features, metadata.csv, what is done (extracted.jsonl), what has no features (bad_recordings.csv), and
    what all features of a kind were computed by (extractors.json). What others made is kept: features, rows, columns.

    Returns:
      how many recordings have all features now, and how many cannot be read, or have features of another source.

    Raises:
      UserError: there are no recordings, or the output cannot be written.
    """
    paths, bad = recordings(folder)
    if (output / "costs.json").exists():
        task.require_frame_seconds(read_task(output / "costs.json"))
    job = Job(output, wanted, embeddings_from, hop_seconds, drop_layers)
    extractor = job.extractor()
    parameters = job.parameters(extractor)
    features = files.make_folder(output / "audio_features")
    for remains in features.glob(f"{files.TEMPORARY}*.npz"):  # of a run that was killed
        remains.unlink()
    files.require_replaceable(output / BAD_LIST)
    _metadata(output)
    journal = Journal(output / JOURNAL)

    def done(path: pathlib.Path) -> Entry | None:
        entry = journal.entry(path, job.features_path(path))
        return entry if entry and parameters.items() <= entry["parameters"].items() else None

    waiting = []
    for path in paths:
        try:
            one = Waiting(path, recording_state(path), journal.noted(path.name))
            if not done(path):
                extraction.require_ours(job.features_path(path), wanted, one.noted)
                waiting.append(one)
        except OSError as error:
            bad[path.name] = f"Cannot read {path}: {error.strerror}."
        except UserError as error:
            bad[path.name] = str(error)
    origin.forget(output, wanted)
    if beam_options is None or not waiting:
        outcomes = extraction.outcomes(job, extractor, waiting)
    else:
        from data_prep import beam  # an extra

        outcomes = beam.extract(job, waiting, journal.path, beam_options)
    with contextlib.closing(outcomes):
        for outcome in tqdm(outcomes, total=len(waiting), unit="recording", disable=None):
            if "reason" in outcome:
                bad[outcome["filename"]] = outcome["reason"]
            else:
                journal.note(outcome)
    seconds = {}
    for path in paths:
        if path.name in bad:
            continue
        if entry := done(path):
            seconds[path.name] = entry["seconds"]
        else:
            bad[path.name] = f"{path} changed while it was read, or is gone: start again."
    if seconds:
        _add_to_metadata(output, seconds)
        if seconds.keys() >= set(_metadata(output)[1]):
            origins = {name: {"parameters": value} for name, value in parameters.items()}
            if extractor:
                windows = ({"hop_seconds": hop_seconds, "drop_layers": drop_layers} if _is_atst_frame(embeddings_from)
                           else {})
                origins["embeddings"] = origin.of_extractor(embeddings_from, extractor.parameters, **windows)
            origin.note(output, origins)
    write_bad(output, bad)
    return len(seconds), len(bad)


def recordings(folder: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, str]]:
    """The audio files of a folder by name, and why some cannot be taken. Raises UserError if there are none."""
    paths = reader.files_in(folder)
    first: dict[str, pathlib.Path] = {}
    bad = {}
    for path in paths:
        longest = len(os.fsencode(f"{path.stem}.npz"))
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in path.name):
            bad[path.name] = (f"The name of {path} holds bytes that are not UTF-8, or control characters, which "
                              "metadata.csv does not take: rename it.")
        elif longest > files.NAME_BYTES:
            bad[path.name] = (f"The features file of {path} would have a name of {longest} bytes, and "
                              f"{files.NAME_BYTES} are possible: rename it.")
        elif first.setdefault(path.stem, path) is not path:
            bad[path.name] = f"{path} would share its features file with {first[path.stem].name}: rename one of them."
    return list(first.values()), bad


def _metadata(output: pathlib.Path) -> tuple[list[str], list[str]]:
    """Columns and recordings of metadata.csv; none if it is not there. Raises UserError if it is damaged."""
    path = output / METADATA
    if not os.path.lexists(path):
        return [], []
    filenames = [row["filename"] for row in read_csv(path, ("filename",))]
    return next(files.csv_rows(path))[1], filenames


def _add_to_metadata(output: pathlib.Path, seconds: dict[str, float]) -> None:
    """Adds the recordings that metadata.csv lacks; all that it holds stays as it is."""
    path = output / METADATA
    columns, known = _metadata(output)
    text = files.read_text(path) if columns else "filename,duration\n"
    new = [{"filename": name, "duration": seconds[name]} for name in sorted(seconds.keys() - set(known))]
    if not new:
        return
    end = "\r\n" if "\r\n" in text else "\n"
    with files.atomic_output(path, ours=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        file.write(text if text.endswith("\n") else text + end)
        csv.DictWriter(file, columns or ["filename", "duration"], extrasaction="ignore",
                       lineterminator=end).writerows(new)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
