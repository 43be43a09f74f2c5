"""`sedjax extract`: recordings -> features in MLPC layout (SPEC section 3).

    sedjax extract --audio=RECORDINGS --output=DIR --features=melspectrogram,mfcc,embeddings \\
        --embeddings_from=WORKDIR
    sedjax extract --source=DIR --embeddings_from=WORKDIR

The first form computes features of audio files; run again, it resumes. The second adds embeddings to existing
features. Embeddings are the inputs of the head of a trained sedjax model, per frame, or ATST-Frame's outputs.
"""

import contextlib
import csv
import functools
import os
import pathlib
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from sedjax.audio import reader
from sedjax.audio.clips import Unreadable
from sedjax.commands import cli
from sedjax.commands.cli import BAD_LIST, SOME_BAD_STATUS, write_bad
from sedjax.core import errors, files, task
from sedjax.core.errors import UserError
from sedjax.core.files import read_csv
from sedjax.data import provenance
from sedjax.data.identity import Extractor
from sedjax.data.layout import Layout, read_layout, read_task

from . import extraction
from .extraction import Job, Waiting

FEATURES = ("melspectrogram", "mfcc", "mfcc_delta", "mfcc_delta2", "embeddings")
METADATA = "metadata.csv"
GROUP = 16  # recordings that a worker of Apache Beam processes at once


def define_flags() -> None:
    flags.DEFINE_string("audio", None, "Folder of recordings, each of any format, rate, channels and length.")
    flags.DEFINE_string("output", None, "Directory in MLPC layout to write the features of --audio to.")
    flags.DEFINE_list("features", ["melspectrogram", "mfcc"], f"Features to compute: any of {', '.join(FEATURES)}.")
    flags.DEFINE_string("source", None, "Directory in MLPC layout to add embeddings to; it must hold the features "
                                        "that the extractor needs.")
    flags.DEFINE_string("embeddings_from", None, "The extractor: workdir of a trained model or, with --audio, an npz "
                                                 "file of ATST-Frame written by data_prep.import_weights.")
    flags.DEFINE_enum("hop_seconds", "9.6", ["9.6", "4.8"], "Hop between the 10 s windows of ATST-Frame; 4.8 takes "
                                                            "twice as long and averages two for most frames.")
    flags.DEFINE_integer("drop_layers", 0, "Number of final layers of ATST-Frame to omit.", lower_bound=0)
    flags.DEFINE_string("beam_options", None, "Process --audio in an Apache Beam pipeline with these options, e.g. "
                                              "\"--runner=FlinkRunner --flink_master=HOST:8081\".")


def main(argv: Sequence[str]) -> None:
    cli.require_no_arguments(argv)
    options = flags.FLAGS
    if bool(options.source) == bool(options.audio):
        raise UserError("Give either --audio=FOLDER, to compute features of recordings, or --source=DIR, to add "
                        "embeddings to existing features.")
    if options.source:
        if not options.embeddings_from:
            raise UserError("--source takes --embeddings_from=WORKDIR, the model whose embeddings to add.")
        for flag in ("output", "features", "hop_seconds", "drop_layers", "beam_options"):
            if options[flag].present:
                raise UserError(f"--{flag} is for --audio only; --source takes just --embeddings_from=WORKDIR.")
        with cli.tidy_sigterm():
            add_embeddings(options.source, options.embeddings_from)
        return
    if not options.output:
        raise UserError("--audio takes --output=DIR, the directory to write to.")
    unknown = [name for name in options.features if name not in FEATURES]
    if unknown or not options.features:
        raise UserError(f"--features takes some of {', '.join(FEATURES)}, not {', '.join(unknown) or 'none'}.")
    if ("embeddings" in options.features) != bool(options.embeddings_from):
        raise UserError("--features=embeddings and --embeddings_from=WORKDIR must be given together.")
    for flag in ("hop_seconds", "drop_layers"):
        if options[flag].present and not _is_atst_frame(options.embeddings_from):
            raise UserError(f"--{flag} is for the windows of ATST-Frame, with --embeddings_from=FILE.npz; a workdir "
                            "already defines how its model processes recordings.")
    with cli.tidy_sigterm():
        done, bad = extract(cli.file_path(options.audio), cli.file_path(options.output),
                            tuple(options.features), options.embeddings_from, float(options.hop_seconds),
                            options.drop_layers, options.beam_options)
    failures = f"; {bad:,} cannot be read, listed in {pathlib.Path(options.output) / BAD_LIST}" if bad else ""
    print(errors.printable(f"{options.output} holds {', '.join(options.features)} of {done:,} recordings{failures}."))
    if bad:
        sys.exit(SOME_BAD_STATUS)


def _is_atst_frame(embeddings_from: str | None) -> bool:
    return bool(embeddings_from) and embeddings_from.endswith(".npz")


def add_embeddings(source: str, embeddings_from: str) -> None:
    """Adds the embeddings of a trained model to the features in a directory in MLPC layout.

    Raises UserError, before computing anything, if there are embeddings that sedjax did not compute.
    """
    from sedjax.audio.clips import ahead, recut
    from sedjax.data.records import directory_clips
    from sedjax.inference.trained import load_model  # imports JAX, which is slow

    layout, model = read_layout(source), load_model(embeddings_from)
    width = model.embedding_width
    origin = extraction.origin_of(embeddings_from, model.embedding_version, **{provenance.FROM_FEATURES: 1})
    for filename in layout.filenames:
        extraction.require_ours(layout.features_path(filename), ("embeddings",))
    clips = ahead(recut(directory_clips(layout, model.inputs, model.widths), model.max_frames))
    embeddings = []
    for clip in recut(model.embed(clips)):
        if isinstance(clip, Unreadable):
            raise UserError(f"{clip.recording}: {clip.error}")
        embeddings.append(clip.features["embeddings"])
    for filename, value in zip(tqdm(layout.filenames, "writing", disable=None), embeddings):
        add_features(layout, filename, {"embeddings": value}, {"embeddings": origin})
    print(f"Wrote embeddings of {len(embeddings):,} recordings, {width} wide, to {errors.printable(layout.path)}.")


def add_features(layout: Layout, filename: str, features: dict[str, np.ndarray],
                 origins: dict[str, Extractor] | None = None) -> None:
    """Adds features to the file of a recording, all or none, replacing features of the same names.

    Creates the file if missing. Raises UserError if it is damaged, belongs to a recording of another length, or holds
    features of these names that sedjax did not compute.
    """
    path = layout.features_path(filename)
    others, recorded = extraction.kept(path, features.keys())
    files.make_folder(path.parent)
    extraction.write(path, others, extraction.fit(features, {key: value.shape for key, value in others.items()}, path),
                     recorded, origins or {}, recorded.recording)


def extract(folder: pathlib.Path, output: pathlib.Path, wanted: tuple[str, ...],
            embeddings_from: str | None = None, hop_seconds: float = 9.6, drop_layers: int = 0,
            beam_options: str | None = None) -> tuple[int, int]:
    """Computes the features of those recordings in a folder that are not done yet.

    Writes audio_features (with the provenance of each feature), metadata.csv and bad_recordings.csv. Features, rows
    and columns from other sources are kept.

    Returns:
      Number of recordings that now have all features, and of those that are unreadable or have features from another
      source.

    Raises:
      UserError: there are no recordings, or the output cannot be written.
    """
    if beam_options is not None:  # for workers elsewhere
        folder, output = folder.absolute(), output.absolute()
        embeddings_from = embeddings_from and os.path.abspath(embeddings_from)
    paths, bad = recordings(folder)
    if (output / "costs.json").exists():
        task.require_frame_seconds(read_task(output / "costs.json"))
    job = Job(output, wanted, embeddings_from, hop_seconds, drop_layers)
    extractor = job.extractor()
    origins = job.origins(extractor)
    features = files.make_folder(output / "audio_features")
    for leftover in features.glob(f"{files.TEMPORARY}*.npz"):  # from a killed run
        leftover.unlink()
    files.require_replaceable(output / BAD_LIST)
    _metadata(output)

    waiting = []
    for path in paths:
        try:
            recording = Waiting(path, extraction.recording_state(path))
            if job.seconds(path, origins) is None:
                extraction.require_ours(job.features_path(path), wanted)
                waiting.append(recording)
        except OSError as error:
            bad[path.name] = f"Cannot read {path}: {error.strerror}."
        except UserError as error:
            bad[path.name] = str(error)
    if beam_options is None or not waiting:
        reasons = extraction.process(job, extractor, waiting)
    else:
        from . import beam  # an extra

        groups = [waiting[start : start + GROUP] for start in range(0, len(waiting), GROUP)]
        done = beam.over(functools.partial(extraction.process_on_worker, job=job), groups, output, beam_options)
        reasons = (reason for group in done for reason in group)
    with contextlib.closing(reasons):
        for recording, reason in zip(waiting, tqdm(reasons, total=len(waiting), unit="recording", disable=None)):
            if reason is not None:
                bad[recording.path.name] = reason
    seconds = {}
    for path in paths:
        length = None if path.name in bad else job.seconds(path, origins)
        if length is not None:
            seconds[path.name] = length
        else:
            bad.setdefault(path.name, f"{path} changed or was deleted while it was read: start again.")
    if seconds:
        _add_to_metadata(output, seconds)
    write_bad(output, bad)
    return len(seconds), len(bad)


def recordings(folder: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, str]]:
    """The usable audio files of a folder, and why others are not, by name. Raises UserError if there are none."""
    paths = reader.files_in(folder)
    first: dict[str, pathlib.Path] = {}
    bad = {}
    for path in paths:
        length = len(os.fsencode(f"{path.stem}.npz"))
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in path.name):
            bad[path.name] = (f"The name of {path} holds bytes that are not UTF-8, or control characters, which "
                              "metadata.csv cannot hold: rename it.")
        elif length > files.NAME_BYTES:
            bad[path.name] = (f"The features file of {path} would have a name of {length} bytes, but "
                              f"only {files.NAME_BYTES} are possible: rename it.")
        elif first.setdefault(path.stem, path) is not path:
            bad[path.name] = f"{path} would share its features file with {first[path.stem].name}: rename one of them."
    return list(first.values()), bad


def _metadata(output: pathlib.Path) -> tuple[list[str], list[str]]:
    """Columns and recordings of metadata.csv; empty if it is missing. Raises UserError if it is damaged."""
    path = output / METADATA
    if not os.path.lexists(path):
        return [], []
    filenames = [row["filename"] for row in read_csv(path, ("filename",)).values()]
    return next(files.csv_rows(path))[1], filenames


def _add_to_metadata(output: pathlib.Path, seconds: dict[str, float]) -> None:
    """Appends the recordings that metadata.csv lacks; its existing content is unchanged."""
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
