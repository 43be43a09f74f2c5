"""The corpus of hostile input: (command, what is hostile, how it is made, what must happen). A new fault gets a row.

TRIALS and REVIEW in the name of a row: the fault was found by a trial (lost: wrong without a word; crash: the other
list) or by a reader, under this number.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable

import jax
import numpy as np
import soundfile
from tiny import TINY_TASK, change_npz, write_layout

import sedjax
from hostile import damage
from hostile.fixtures import CONFIG, ROOT, SUFFIXES, small_flags
from hostile.rows import PYTHON, Row, equal, fine, listed, refused, run, same_or_refused
from hostile.sandbox import Box, Result
from sedjax.audio import reader
from sedjax.commands import cli
from sedjax.core import files
from sedjax.data.layout import read_layout, read_task
from sedjax.data.records import open_records
from sedjax.scoring import decisions, losses
from sedjax.training import workdir
from sedjax.training.configs import base_config, changed, freeze

FIRST = "100.mp3"  # of the source
FEATURES = "source/audio_features/100.npz"
LABELS = "source/labels/100_labels.npz"
ROWS: list[Row] = []


def rows(command: str, outcome, **made: Callable[[Box], object]) -> None:
    """Adds rows; the keyword says what is hostile, with _ for blanks."""
    ROWS.extend(Row(command, name.replace("_", " ").strip(), make, outcome) for name, make in made.items())


def add(command: str, name: str, make: Callable[[Box], object], outcome) -> None:
    ROWS.append(Row(command, name, make, outcome))


def spoilt(get: Callable[[Box], object], file: str, spoil: damage.Damage) -> Callable[[Box], object]:
    """What `get` makes, after the file of that name has been spoilt."""

    def make(box: Box) -> object:
        made = get(box)
        getattr(box, pathlib.PurePath(file).parts[0].partition(".")[0])
        spoil(box / file)
        return made

    return make


# Arguments of each command on valid input.

def layout(box: Box) -> list:
    return [box.source]


def build(box: Box) -> list:
    return ["--source", box.source, "--output", box / "out"]


def ground_truth(box: Box) -> list:
    return ["--source", box.source, "--output", box / "out.csv"]


def labels(box: Box) -> list:
    box.events, box.wavs = box / "events.csv", wavs(box)
    box.events.write_text("filename,onset,offset,label\nwav.wav,0.5,1.5,Bell\nwav.wav,0,0.1,Crow\n")
    return ["--events", box.events, "--audio", box.wavs, "--output", box / "out"]


def score(box: Box) -> list:
    return ["--predictions", box.predictions, "--ground_truth", box.truth, "--costs", box.costs]


def extract(box: Box) -> list:
    return ["--audio", wavs(box), "--output", box / "out"]


def add_embeddings(box: Box) -> list:
    return ["--source", box.bare, "--embeddings_from", box.workdir]


def import_weights(box: Box) -> list:
    return ["--checkpoint", box.state, "--costs", box.costs, "--workdir", box / "out",
            f"--config={ROOT / 'configs' / 'embedding_transformer.py'}", "--config.model.standardize=False",
            *[flag for flag in small_flags(model__width=8)[1:] if "model" in flag and "channels" not in flag]]


def train(box: Box) -> list:
    return [*small_flags(), f"--config.data.path={box.records}", f"--workdir={box / 'out'}"]


def evaluate(box: Box) -> list:
    return ["--workdir", box.workdir, "--data", box.records]


def predict(box: Box) -> list:
    return ["--workdir", box.workdir, wavs(box), "--output", box / "out"]


def predict_source(box: Box) -> list:
    return ["--workdir", box.workdir, "--source", box.source, "--output", box / "out.csv"]


def report(box: Box) -> list:
    return [box.workdir, "--output", box / "out"]


def sweep(box: Box) -> list:
    (box / "study.py").write_text(
        "from configs import conv_transformer_small\nfrom sedjax.studies.sweep import sweep_config\n"
        "def get_config():\n    return sweep_config([('a', 'A', '', conv_transformer_small.get_config())], seeds=(0,))\n")
    return [f"--config={box / 'study.py'}", f"--config.data.path={box.records}", f"--workdir={box / 'out'}"]


def bench(box: Box) -> list:
    return [*small_flags(), f"--config.data.path={box.records}", "--steps=1"]


def soundscapes(box: Box) -> list:
    return ["--output", box / "out", "--recordings=10", "--seconds_min=2", "--seconds_max=2", "--workers=1"]


def wavs(box: Box) -> pathlib.Path:
    """A folder with one recording of 2 s."""
    target = box / "wavs"
    if not target.exists():
        target.mkdir()
        shutil.copy2(box.recordings / "wav.wav", target / "wav.wav")
        shutil.rmtree(box.recordings)
    return target


VALID = {"check": layout, "records": build, "ground_truth": ground_truth, "labels": labels,
         "score": score, "extract": extract,
         "import_weights": import_weights, "train": train, "evaluate": evaluate, "predict": predict, "report": report,
         "sweep": sweep, "bench": bench, "soundscapes": soundscapes}

# Files that are none, no CSV and no JSON

REQUIRED = [  # command, its arguments, file, what a file of its kind may not be
    ("check", layout, "source/metadata.csv", damage.NO_FILE | damage.NO_CSV),
    ("check", layout, "source/splits.csv", {**damage.NO_FILE, **damage.NO_CSV, "missing": None,
                                             "a link to nothing": None}),
    ("check", layout, "source/costs.json", {**damage.NO_FILE, **damage.NO_JSON, "missing": None}),
    ("records", build, "source/metadata.csv", damage.NO_FILE),
    ("records", build, "source/costs.json", {**damage.NO_FILE, "missing": None}),
    ("records", build, "source/splits.csv", {**damage.NO_FILE, "missing": None}),
    ("ground_truth", ground_truth, "source/metadata.csv", damage.NO_FILE),
    ("ground_truth", ground_truth, LABELS, damage.NO_FILE),
    ("labels", labels, "events.csv", {**damage.NO_FILE, **damage.NO_CSV, "a row too short": None}),
    ("score", score, "predictions.csv", damage.NO_FILE | damage.NO_CSV),
    ("score", score, "truth.csv", damage.NO_FILE),
    ("score", score, "costs.json", damage.NO_FILE | damage.NO_JSON),
    ("import_weights", import_weights, "state.npz", damage.NO_FILE),
    ("import_weights", import_weights, "costs.json", damage.NO_FILE),
    ("predict", predict_source, "source/metadata.csv", damage.NO_FILE),
    ("predict", predict_source, FEATURES, damage.NO_FILE),
    ("extract", add_embeddings, "bare/metadata.csv", damage.NO_FILE),
    ("evaluate", evaluate, "workdir/config.json", damage.NO_FILE | damage.NO_JSON),
    ("evaluate", evaluate, "workdir/task.json", damage.NO_FILE | damage.NO_JSON),
    ("evaluate", evaluate, "workdir/features.json", damage.NO_FILE | damage.NO_JSON),
    ("predict", predict, "workdir/config.json", damage.NO_FILE),
    ("report", report, "workdir/config.json", damage.NO_FILE),
    ("report", report, "workdir/metrics.jsonl", {**damage.NO_FILE, **damage.NO_TEXT, **{
        name: damage.write(text) for name, text in {
            "numbers": "1\n2\n", "lists": "[1]\n[2]\n", "nulls": "null\n", "text costs": '{"step": 1, "epoch": 1, '
            '"validation_cost": "1", "validation_loss": 1}\n', "no step": '{"validation_cost": 1}\n',
            "deep nesting": damage.DEEP}.items()}}),
    ("train", train, "records/dataset_info.json", damage.NO_FILE | damage.NO_JSON),
    ("train", train, "records/metadata.json", damage.NO_FILE | damage.NO_JSON),
    ("train", train, "records/features.json", damage.NO_FILE | damage.NO_JSON),
    ("sweep", sweep, "study.py", {}),
]
for command, get, file, damages in REQUIRED:
    for what, spoil in damages.items():
        if spoil is not None:
            key = file.partition("/")[0] if file.startswith(("records", "workdir")) else pathlib.PurePath(file).name
            kind = " --source" if get in (predict_source, add_embeddings) else ""
            add(command, f"{file} is {what}{kind}" if what in damage.NO_FILE else f"{file}: {what}{kind}",
                spoilt(get, file, spoil), refused(key))

# costs.json

ROW = '{"TP": 0, "FP": 1, "TN": 0, "FN": 5}'
COSTS = {
    "no class": "{}", "a class without costs": '{"Bell": {}}', "a class of a list": '{"Bell": [0, 1, 0, 5]}',
    "a class of null": '{"Bell": null}', "a cost missing": '{"Bell": {"TP": 0, "FP": 1, "TN": 0}}',
    "a cost too many": '{"Bell": {"TP": 0, "FP": 1, "TN": 0, "FN": 5, "XX": 1}}',
    **{f"a cost of {value[:12]}": f'{{"Bell": {{"TP": 0, "FP": {value}, "TN": 0, "FN": 5}}}}' for value in
       ("null", "true", '"1"', "[1]", "{}", "NaN", "Infinity", "-Infinity", "1" + "0" * 400, "1e999", "0x1", "01")},
    "a class twice": f'{{"Bell": {ROW}, "Bell": {ROW}}}',
    "a cost twice": '{"Bell": {"TP": 0, "TP": 1, "FP": 1, "TN": 0, '
    '"FN": 5}}', "a class without a name": f'{{"": {ROW}}}', "a class called onset": f'{{"onset": {ROW}}}',
    "a class called filename": f'{{"filename": {ROW}}}', "a lone surrogate": f'{{"\\ud800": {ROW}}}',
    "a trailing comma": f'{{"Bell": {ROW},}}', "a comment": f'{{"Bell": {ROW}}} // yes',
    **{f"{key} of {value[:12]}": f'{{"name": "x", "costs": {{"Bell": {ROW}}}, "{key}": {value}}}'
       for key, values in {"frame_seconds": ("0", "-1", "null", '"x"', "[]", "NaN", "Infinity", "1e999", "1e-300",
                                             "1e300"),
                           "frames_per_segment": ("0", "-1", "null", '"x"', "[]", "1.5", "NaN", "Infinity",
                                                  "1000000000",
                                                  "1" + "0" * 400)}.items() for value in values},
}
for what, text in COSTS.items():
    add("check", f"costs.json with {what}", spoilt(layout, "source/costs.json", damage.write(text)),
        refused("costs.json"))
for what in ("a cost of NaN", "a cost of 1" + "0" * 11, "frames_per_segment of Infinity",
             "frames_per_segment of 1000000000",
             "no class", "a class twice"):
    add("score", f"--costs with {what}", spoilt(score, "costs.json", damage.write(COSTS[what])), refused("costs.json"))

# Tables of events

EVENTS = "filename,onset,offset,label\nwav.wav,0,1,Bell\n"
TABLES = {
    **{f"an onset of {value[:8]}": EVENTS.replace(",0,", f",{value},") for value in
       ("nan", "inf", "1e308", "1_0", "", "0x1", "00:01", "9" * 100_000)},
    "no label": EVENTS.replace("Bell", ""), "no filename": EVENTS.replace("wav.wav", ""),
    "other recordings": EVENTS.replace("wav.wav", "other.wav"), "no rows": EVENTS[:28],
    "a label of 300 characters": EVENTS.replace("Bell", "x" * 300), "a label of two lines": EVENTS.replace(
        "Bell", '"two\nlines"'), "a label with an ANSI escape": EVENTS.replace("Bell", "\x1b[31mred"),
    "a class called onset": EVENTS.replace("Bell", "onset"), "two label columns": EVENTS.replace(
        "label", "label,text").replace("Bell", "Bell,Bell"), "no column of labels": EVENTS.replace("label", "species"),
    "recordings of two folders": EVENTS + "a/wav.wav,0,1,Bell\n", "30,000 labels": EVENTS + "".join(
        f"wav.wav,0,1,{i}\n" for i in range(30_000)),
}
for what, text in TABLES.items():
    add("labels", f"--events with {what}", spoilt(labels, "events.csv", damage.write(text)),
        refused("events.csv" if what != "30,000 labels" else "20,000"))


def one_bell(result: Result, box: Box) -> None:
    data = read_layout(box / "out")
    equal(data.task.classes, ("Bell",))
    equal(data.votes("wav.wav")[:, 0] > 0, np.arange(17) < 9)


for what, text in {
        "BOM and CRLF": "\ufeff" + EVENTS.replace("\n", "\r\n"), "old Mac line ends": EVENTS.replace("\n", "\r"),
        "semicolons": EVENTS.replace(",", ";"), "tabs": EVENTS.replace(",", "\t"), "blank rows": EVENTS + ",,,\n\n",
        "a path of Windows": EVENTS.replace("wav.wav", "C:\\x\\wav.wav"), "no end of line": EVENTS[:-1],
        "events that are outside": EVENTS + "wav.wav,-5,-1,Bell\nwav.wav,5,1e9,Bell\n", "an event that ends first":
        EVENTS + "wav.wav,1.9,1.8,Bell\n", "30,000 annotators": EVENTS.replace("label\n", "label,annotator\n").replace(
            "Bell", "Bell,x") + "".join(f"wav.wav,0,1,Bell,{i}\n" for i in range(30_000)),
        "30,000 rows": EVENTS + "".join(f"wav.wav,{i / 3e4},1,Bell\n" for i in range(30_000))}.items():
    add("labels", f"--events with {what}", spoilt(labels, "events.csv", damage.write(text)), fine(
        one_bell, writes=["out"]))
add("labels", "a recording that is no audio", spoilt(labels, "wavs/wav.wav", damage.write("RIFF")), refused("wav.wav"))


def onto_labels(box: Box) -> list:
    (box / "out/labels").mkdir(parents=True)
    users(box, "out/labels/wav_labels.npz")
    return labels(box)


add("labels", "onto the user's labels", onto_labels, refused("wav_labels.npz"))

# npz files

# Of commands that load a model first, which takes the time of ten other rows.
LOADING = ("empty", "cut", "a pickle in every member", "text in every member", "arrays of objects", "complex arrays",
           "no rows",
           "three axes too many", "10^12 rows promised", "a nested header", "an encrypted archive", "a bomb",
           "flipped data",
           "NaN", "10^300")
for what, spoil in (damage.NO_NPZ | damage.NOT_FINITE).items():
    add("check", f"features: {what}", spoilt(layout, FEATURES, spoil), refused("100.npz"))
    add("check", f"labels: {what}", spoilt(layout, LABELS, spoil), refused("100_labels.npz"))
    add("records", f"features: {what}", spoilt(build, FEATURES, spoil), refused("100.npz"))
    add("ground_truth", f"labels: {what}", spoilt(ground_truth, LABELS, spoil), refused("100_labels.npz"))
    if what in LOADING:
        add("predict", f"features: {what} --source", spoilt(predict_source, FEATURES, spoil), refused("100.npz"))
        add("extract", f"features: {what} --source", spoilt(add_embeddings, "bare/audio_features/100.npz", spoil),
            refused("100.npz"))
    add("import_weights", f"--checkpoint: {what}", spoilt(import_weights, "state.npz", spoil), refused("state.npz"))


def initial(spoil: damage.Damage) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        box.state.write_bytes(damage.npz(**{"params/encoder/norm/scale": np.ones(8, np.float32)}))
        spoil(box.state)
        return [*train(box), f"--config.train.initial_weights={box.state}"]

    return make


for what in ("text", "a pickle in every member", "10^12 rows promised", "a bomb"):
    add("train", f"initial weights: {what}", initial(damage.NO_NPZ[what]), refused("state.npz"))
for what in ("a FIFO", "/dev/zero"):
    add("train", f"initial weights are {what}", initial(damage.NO_FILE[what]), refused("state.npz"))


def skip_bad(box: Box) -> list:
    return [*build(box), "--skip_bad"]


def without_first(result: Result, box: Box) -> None:
    names = [name for split in ("train", "validation", "test")
             for name in open_records(str(box / "out"), split).filenames]
    assert sorted(names) == [f"{100 + i}.mp3" for i in range(1, 10)], names


for what in ("a pickle in every member", "text in every member", "10^12 rows promised", "complex arrays"):
    add("records", f"TRIALS crash 2: --skip_bad, {what}", spoilt(skip_bad, FEATURES, damage.NO_NPZ[what]),
        fine(without_first, writes=["out"]))


def extra_member(name: str, content: bytes = b"x") -> damage.Damage:
    return lambda path: damage.write_members(path, {**damage.members(path), name: content})


def same_votes(result: Result, box: Box) -> None:
    equal(result.value, expected_votes(box))


def expected_votes(box: Box) -> np.ndarray:
    return read_layout(box._fixtures / "source").votes(FIRST)


def votes(box: Box) -> Callable:
    return lambda path=box.source: read_layout(path).votes(FIRST)


def features(*keys: str) -> Callable[[Box], Callable]:
    return lambda box: lambda path=box.source: read_layout(path).features(FIRST, keys)


def same_features(*keys: str) -> Callable[[Result, Box], None]:
    return lambda result, box: equal(result.value, read_layout(box._fixtures / "source").features(FIRST, keys))


for what, spoil in {
        "a member outside": extra_member("../../evil.npy"), "an absolute member": extra_member("/tmp/evil.npy"),
        "a member twice": extra_member("Bell.npy.npy"), "other members": extra_member("readme.txt"),
        "Fortran order": damage.arrays(np.asfortranarray),
    "big-endian": damage.arrays(lambda value: value.astype(">f4")),
        "bool": damage.arrays(lambda value: value.astype(bool)),
        "compressed": lambda path: damage.write_members(path, damage.members(path), 8),
        "bytes before": damage.change(lambda content: b"#!/bin/sh\n" + content)}.items():
    add(PYTHON, f"votes, {what}", spoilt(votes, LABELS, spoil), same_or_refused(same_votes, "100_labels.npz"))
add(PYTHON, "TRIALS lost 6: votes of complex labels", spoilt(votes, LABELS, damage.NO_NPZ["complex arrays"]),
    refused("100_labels.npz"))


def like_named(box: Box) -> Callable:
    change_npz(box.source / "labels/100_labels.npz", **{"foo": np.zeros((20, 1)), "foo.npy": np.ones((20, 1))})
    (box.source / "costs.json").write_text(f'{{"foo": {ROW}, "foo.npy": {ROW}}}')
    return lambda path=box.source: read_layout(path).votes(FIRST)


add(PYTHON, "TRIALS lost 6: classes foo and foo.npy", like_named, same_or_refused(
    lambda result, box: equal(result.value, np.tile(np.array([0, 1], np.float16), (20, 1)))))


def other_first(rows: int | None) -> damage.Damage:
    def spoil(path: pathlib.Path) -> None:
        first = np.float32(1) if rows is None else np.ones((rows, 2), np.float32)
        damage.write_members(path, {"a.npy": damage.array_bytes(first), **damage.members(path)})

    return spoil


for rows_first in (None, 0, 3, 200):
    add(PYTHON, f"REVIEW B9: another array first, of {rows_first} rows",
        spoilt(lambda box: lambda path=box.source: read_layout(path).num_frames(FIRST, ("melspectrogram",)), FEATURES,
               other_first(rows_first)), fine(lambda result, box: equal(result.value, 20)))

# What reads a directory: names and splits

METADATA = {
    "no rows": "filename\n", "a name with a folder": "filename\na/b.wav\n", "a name above": "filename\n../x.wav\n",
    "an absolute name": "filename\n/etc/passwd\n", "an empty name": 'filename\n""\n',
    "a name of dots": "filename\n..\n",
    "a name of a dot": "filename\n.\n", "two of one stem": "filename\na.wav\na.mp3\n",
    "a NUL in a name": "filename\na\0.wav\n",
    "a name of 5,000 characters (TRIALS crash 1)": f"filename\n{'x' * 5000}.wav\n",
    "a name of 300 bytes": f"filename\n{'é' * 150}.wav\n",
}
for what, text in METADATA.items():
    for command, get in (("check", layout), ("records", build), ("predict", predict_source)):
        add(command, f"metadata.csv with {what}", spoilt(get, "source/metadata.csv", damage.write(text)),
            refused("metadata.csv") if "characters" not in what and "bytes" not in what and command != "predict"
            else refused())
SPLITS = {
    "another split": "filename,split\n100.mp3,training\n", "an unknown recording": "filename,split\nx.mp3,train\n",
    "not all recordings": "filename,split\n100.mp3,train\n", "a recording in two": "filename,split\n100.mp3,train\n"
    "100.mp3,test\n", "no split column": "filename\n100.mp3\n", "an empty split": "filename,split\n100.mp3,\n",
}
for what, text in SPLITS.items():
    for command, get in (("check", layout), ("records", build)):
        add(command, f"splits.csv with {what}", spoilt(get, "source/splits.csv", damage.write(text)),
            refused("splits.csv"))
add("check", "names with ANSI escapes (TRIALS crash 9)", spoilt(
    layout, "source/metadata.csv", damage.write("filename\n\x1b[31mred\x07.wav\n")), refused())
add("check", "BOM and CRLF", spoilt(layout, "source/metadata.csv", damage.change(
    lambda content: b"\xef\xbb\xbf" + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))), fine())

# Submissions

LINE = "100.mp3,0.0,0,0,0\n"
HEADER = "filename,onset,Bell,Crow,Drum\n"
SUBMISSIONS = {
    "no rows": HEADER, "a class missing": "filename,onset,Bell,Crow\n", "an unknown class": HEADER[:-1] + ",Owl\n",
    "a value of 2": HEADER + LINE[:-2] + "2\n", "a value of .5": HEADER + LINE[:-2] + "0.5\n",
    "an empty value": HEADER + LINE[:-2] + "\n", "an onset of nan": HEADER + LINE.replace("0.0", "nan"),
    "an onset of infinity": HEADER + LINE.replace("0.0", "inf"), "an onset of 1e308": HEADER
    + LINE.replace("0.0", "1e308"),
    "an onset of 1e15": HEADER + LINE.replace("0.0", "1200000000000000"), "a negative onset": HEADER
    + LINE.replace("0.0", "-1.2"),
    "an onset between": HEADER + LINE.replace("0.0", "0.5"), "a segment twice": HEADER + LINE * 2,
    "a segment missing": HEADER + LINE + LINE.replace("0.0", "2.4"), "no filename": HEADER
    + LINE.replace("100.mp3", ""),
    "an onset of 10^5 digits": HEADER + LINE.replace("0.0", "9" * 100_000), "other recordings": HEADER + LINE,
    "semicolons": (HEADER + LINE).replace(",", ";"), "tabs": (HEADER + LINE).replace(",", "\t"),
}
for what, text in SUBMISSIONS.items():
    add("score", f"--predictions with {what}", spoilt(score, "predictions.csv", damage.write(text)),
        refused("predictions.csv"))
for what in ("a value of 2", "an onset of nan", "no rows"):
    add("score", f"--ground_truth with {what}", spoilt(score, "truth.csv", damage.write(SUBMISSIONS[what])),
        refused("truth.csv"))
add("score", "BOM and CRLF", spoilt(score, "predictions.csv", damage.change(
    lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))), fine())


def score_events(box: Box) -> list:
    for name in ("said.tsv", "real.tsv"):
        (box / name).write_text(EVENTS + "100.mp3\t0.5\t1.5\tBell\n200.mp3\t\t\t\n")
    return ["--predictions", box / "said.tsv", "--ground_truth", box / "real.tsv", "--costs", box.costs,
            "--metrics=segment_f1,event_f1"]


def spoilt_events(file: str, spoil: damage.Damage) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        arguments = score_events(box)
        spoil(box / file)
        return arguments

    return make


EVENTS = "filename\tonset\toffset\tevent_label\n"
EVENT = EVENTS + "100.mp3\t0.5\t1.5\tBell\n"
EVENT_TABLES = {
    "a column missing": EVENT.replace("offset", "end"), "a column twice": EVENT.replace("offset", "onset"),
    "commas": EVENT.replace("\t", ","), "an onset of nan": EVENT.replace("0.5", "nan"),
    "an onset of text": EVENT.replace("0.5", "x"), "a negative onset": EVENT.replace("0.5", "-0.5"),
    "an onset of 10^5 digits": EVENT.replace("0.5", "9" * 100_000), "an offset of inf": EVENT.replace("1.5", "inf"),
    "an offset of 1e300": EVENT.replace("1.5", "1e300"), "an offset before the onset": EVENT.replace("1.5", "0.1"),
    "an unknown class": EVENT.replace("Bell", "Music"), "no class": EVENT.replace("Bell", ""),
    "no filename": EVENT.replace("100.mp3", ""), "a field missing": EVENT.replace("\tBell", ""),
    "the same event twice": EVENT + EVENT.splitlines()[1] + "\n", "events that overlap": EVENT
    + "100.mp3\t1\t2\tBell\n",
}
for file in ("said.tsv", "real.tsv"):
    for what, spoil in (damage.NO_FILE | damage.NO_CSV | {
            name: damage.write(text) for name, text in EVENT_TABLES.items()}).items():
        add("score", f"{file}: {what}", spoilt_events(file, spoil), refused(file))
add("score", "said.tsv: other recordings", spoilt_events("said.tsv", damage.write(EVENT.replace("100", "300"))),
    refused("said.tsv"))
add("score", "real.tsv: no events", spoilt_events("real.tsv", damage.write(EVENTS + "100.mp3\t\t\t\n200.mp3\t\t\t\n")),
    refused("no event"))
add("score", "said.tsv: events of 100 days", spoilt_events("said.tsv", damage.write(EVENT.replace("1.5", "8640000"))),
    fine())


def many_recordings(box: Box) -> list:
    text = HEADER + "".join(f"{i},0.0,0,1,0\n" for i in range(100_000))
    for path in (box.predictions, box.truth):
        path.write_text(text)
    return score(box)


add("score", "TRIALS crash 3: 10^5 recordings", many_recordings, fine())

# Recordings. Whatever is read must be whole, or the log must say what is missing.

def read_audio(suffix: str, spoil: damage.Damage) -> Callable[[Box], Callable]:
    def make(box: Box) -> Callable:
        path = box.recordings / f"{suffix}.{suffix}"
        spoil(path)
        return lambda: reader.read(path)

    return make


def whole_or_said(suffix: str) -> Callable[[Result, Box], None]:
    def check(result: Result, box: Box) -> None:
        expected = reader.read(box._fixtures / "recordings" / f"{suffix}.{suffix}")
        said = f"{suffix}.{suffix}" in result.errors
        assert len(result.value) >= len(expected) or said, (
            f"{len(result.value):,} of {len(expected):,} samples, without a warning")
        # A frame is 120 ms here: what loses more is to be refused.
        assert len(result.value) >= len(expected) - 2 * 1920, f"{len(result.value):,} of {len(expected):,} samples"

    return check


for suffix in SUFFIXES:
    cuts = {f"cut at {share:.0%}": damage.cut(share) for share in (0.1, 0.5, 0.9, 0.99)}
    for what, spoil in {**cuts, "a byte cut": damage.change(lambda content: content[:-1]),
                        "flipped in the middle": damage.flip(0.5), "flipped at the end": damage.flip(0.995),
                        "flipped in the header": damage.change(lambda c: c[:8] + bytes(8) + c[16:])}.items():
        number = "TRIALS lost 3: " if "cut" in what and suffix in ("rf64", "au", "voc", "ogg", "opus") else ""
        add(PYTHON, f"{number}{suffix} {what}", read_audio(suffix, spoil),
            same_or_refused(whole_or_said(suffix), f"{suffix}.{suffix}"))
for what, spoil in {**damage.NO_FILE, **{name: damage.NO_TEXT[name] for name in ("empty", "binary", "zeros")}}.items():
    add(PYTHON, f"a recording is {what}", read_audio("wav", spoil), refused("wav.wav"))
HEADERS = {
    "no samples": lambda c: c[:40] + bytes(4) + c[44:44], "a rate of 0": lambda c: c[:24] + bytes(4) + c[28:],
    "a rate of 4 GHz": lambda c: c[:24] + b"\xff" * 4 + c[28:], "no channels": lambda c: c[:22] + bytes(2) + c[24:],
    "65,535 channels": lambda c: c[:22] + b"\xff\xff" + c[24:], "a length of 2 GB": lambda c: c[:40]
    + b"\xff\xff\xff\x7e" + c[44:],
    "0 bits": lambda c: c[:34] + bytes(2) + c[36:], "an unknown codec": lambda c: c[:20] + b"\xab\xcd" + c[22:],
}
for what, function in HEADERS.items():
    add(PYTHON, f"a wav with {what}", read_audio("wav", damage.change(function)), refused("wav.wav"))


def noise(value: float) -> Callable[[Box], Callable]:
    def make(box: Box) -> Callable:
        soundfile.write(box / "x.wav", np.full(100, value), 16000, subtype="DOUBLE")
        return lambda: reader.read(box / "x.wav")

    return make


for value in (np.nan, np.inf, 1e300, 32768.0):
    add(PYTHON, f"samples of {value}", noise(value), refused("x.wav"))


def named(name: str | bytes) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        folder = wavs(box)
        try:
            shutil.copy2(folder / "wav.wav", os.path.join(os.fsencode(folder), os.fsencode(name)))
        except OSError as error:
            raise AssertionError(name) from error
        return extract(box)

    return make


NAMES = {"254 bytes (TRIALS crash 1)": "x" * 250 + ".wav", "240 bytes (TRIALS crash 1)": "é" * 118 + ".wav",
         "bytes that are not UTF-8": b"a\xe9.wav", "ANSI escapes (TRIALS crash 9)": "\x1b[31mred\x07.wav",
         "a newline": "a\nb.wav", "a comma and quotes": 'a,"b".wav', "a leading dash": "-x.wav",
         "a leading blank": " .wav",
         "a formula": "=1+1.wav"}
for what, name in NAMES.items():
    add("extract", f"a recording's name: {what}", named(name), dataclasses.replace(
        fine(writes=["out"]), statuses=(0, 1)))


def beside(spoil: damage.Damage) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        bad = wavs(box) / "bad.wav"
        shutil.copy2(wavs(box) / "wav.wav", bad)
        spoil(bad)
        return extract(box)

    return make


for what, spoil in {**damage.NO_FILE, "empty": damage.write(b""), "text": damage.write("no sound"),
                    "cut": damage.cut(0.5)}.items():
    if what not in ("missing", "a folder"):
        add("extract", f"a recording is {what}", beside(spoil), listed("bad.wav", writes=["out"]))


def only_bad(box: Box) -> list:
    for path in wavs(box).iterdir():
        path.write_bytes(b"")
    return [*predict(box)]


add("predict", "only bad recordings", only_bad, listed("wav.wav", writes=["out"]))


def older(content: str | bytes, name: str) -> Callable[[Box], list]:
    """In files that older versions wrote into the output, and nobody reads any more."""
    def make(box: Box) -> list:
        (box / "out").mkdir()
        damage.write(content)(box / "out" / name)
        return extract(box)

    return make


def provenance(content: str | bytes) -> Callable[[Box], list]:
    """In the features file of a recording."""
    def make(box: Box) -> list:
        (box / "out/audio_features").mkdir(parents=True)
        path = box / "out/audio_features/wav.npz"
        path.write_bytes(damage.npz(embeddings=np.ones((17, 4), np.float32)))
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = (content if isinstance(content, bytes) else content.encode())[:65_000]
        return extract(box)

    return make


RECORDED = {"numbers": "1\n2\n", "a list": "[]\n", "deep nesting": damage.DEEP, "binary": bytes(range(256)),
            "other types": '{"sums": ["wav"], "recording": {"bytes": "x", "mtime_ns": null}, "origins": 1}',
            "text parameters": '{"sums": {"mfcc": 1}, "recording": {"bytes": 1, "mtime_ns": 1, "seconds": 1}, '
            '"origins": {"mfcc": "x"}}', "huge numbers": '{"sums": {"mfcc": 1e999}}'}
for what, content in RECORDED.items():
    for name in ("extracted.jsonl", "extractors.json"):
        add("extract", f"TRIALS crash 5: {name} with {what}", older(content, name), fine(writes=["out"]))
    add("extract", f"TRIALS crash 5: provenance with {what}", provenance(content), fine(writes=["out"]))


def users_features(box: Box) -> list:
    (box / "out/audio_features").mkdir(parents=True)
    (box / "out/audio_features/wav.npz").write_bytes(damage.npz(embeddings=np.ones((17, 4), np.float32)))
    (box / "out/metadata.csv").write_text("filename,mine\nmine.wav,1\n")
    return extract(box)


add("extract", "a metadata.csv of the user's is there", users_features, fine(
    lambda result, box: equal("mine.wav,1" in (box / "out/metadata.csv").read_text(), True), writes=["out"]))


def spoilt_features(box: Box) -> list:
    (box / "out/audio_features").mkdir(parents=True)
    (box / "out/audio_features/wav.npz").write_bytes(b"the user's")
    return extract(box)


add("extract", "a features file that is no npz is there", spoilt_features,
    dataclasses.replace(listed("wav.npz", writes=["out/bad_recordings.csv"]), statuses=(1, 2)))

# Workdirs: reading commands take the best checkpoint whole, or refuse, and change nothing.

BEST = "1"  # of the fixture; the last two are there beside it
IN_CHECKPOINT = ("_CHECKPOINT_METADATA", "commit_success.txt", "progress/metadata", "progress/commit_success.txt",
                 "weights/_METADATA", "weights/_sharding",
                 "weights/manifest.ocdbt", "weights/array_metadatas/process_0", "weights/d", "weights/ocdbt.process_0",
                 "weights/ocdbt.process_0/manifest.ocdbt", "weights/ocdbt.process_0/d", "weights/commit_success.txt",
                 "training/_METADATA", "training/manifest.ocdbt")
FOLDERS = ("progress", "weights", "training", "")


def load(box: Box) -> Callable:
    return lambda path=box.workdir: state_of(sedjax.load(path))


@functools.cache
def intact(folder: pathlib.Path) -> tuple:
    return state_of(sedjax.load(folder))


def state_of(detector) -> tuple:
    model = detector.model
    return model.step, model.thresholds, model.variables, model.task, model.config, model.features


def same_detector(result: Result, box: Box) -> None:
    equal(result.value, intact(box._fixtures / "workdir"))


def first_file(spoil: damage.Damage) -> damage.Damage:
    """Spoils a file, or the largest file in a folder of them."""
    return lambda path: spoil(path if path.is_file() else max(
        (each for each in path.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size))


for file, (what, spoil) in itertools.product(IN_CHECKPOINT, {
        "missing": damage.remove, "empty": damage.write(b""), "cut": damage.cut(0.5),
    "flipped": damage.flip(0.6)}.items()):
    number = "TRIALS lost 2: " if file == "progress/metadata" else ""
    if what in ("missing", "flipped") or (not file.startswith("training") and "success" not in file):
        add(PYTHON, f"{number}best checkpoint, {file} {what}", spoilt(
            load, f"workdir/checkpoints/{BEST}/{file}", spoil if what == "missing" else first_file(spoil)),
            same_or_refused(same_detector))
for folder in FOLDERS:
    for what, spoil in {"missing": damage.remove, "an empty folder": damage.folder,
                        "a file": damage.write(b"x")}.items():
        add(PYTHON, f"best checkpoint, the folder {folder or 'itself'} is {what}",
            spoilt(load, f"workdir/checkpoints/{BEST}/{folder}".rstrip("/"), spoil), same_or_refused(same_detector))


def edited(file: str, function: Callable[[dict], object]) -> damage.Damage:
    def spoil(path: pathlib.Path) -> None:
        value = json.loads((path / file).read_text())
        changed = function(value)
        (path / file).write_text(json.dumps(value if changed is None else changed))

    return spoil


def swapped(file: str) -> damage.Damage:
    """The file, or folder, of the last checkpoint in the best."""

    def spoil(path: pathlib.Path) -> None:
        damage.remove(path / BEST / file)
        last = path / "4" / file
        (shutil.copytree if last.is_dir() else shutil.copy2)(last, path / BEST / file)

    return spoil


def at(step: str, spoil: damage.Damage) -> damage.Damage:
    return lambda path: spoil(path / step)


def renamed(source: str, target: str) -> damage.Damage:
    return lambda path: (damage.remove(path / target), (path / source).rename(path / target))


def copied(source: str, target: str) -> damage.Damage:
    return lambda path: shutil.copytree(path / source, path / target)


def both(*spoils: damage.Damage) -> damage.Damage:
    def spoil(path: pathlib.Path) -> None:
        for each in spoils:
            each(path)

    return spoil


PROGRESS = "progress/metadata"
CHECKPOINTS = {
    "cost of the last edited to the best": at("4", edited(PROGRESS,
                                                          lambda value: value.update(cost=-1.0, best_cost=-1.0))),
    "cost of the last edited to NaN": at("4", edited(PROGRESS, lambda value: value.update(best_cost=float("nan")))),
    "cost of the last edited to text": at("4", edited(PROGRESS, lambda value: value.update(best_cost="low"))),
    "best step edited": at("4", edited(PROGRESS, lambda value: value.update(best_step=3))),
    "best step of the last gone": at("4", edited(PROGRESS, lambda value: value.pop("best_step") and None)),
    "thresholds edited (TRIALS lost 2)": at(BEST, edited(PROGRESS, lambda value: value.update(thresholds=[0.9] * 3))),
    "too few thresholds": at(BEST, edited(PROGRESS, lambda value: value.update(thresholds=[0.9]))),
    "thresholds of text": at(BEST, edited(PROGRESS, lambda value: value.update(thresholds=["a", "b", "c"]))),
    "thresholds of NaN": at(BEST, edited(PROGRESS, lambda value: value.update(thresholds=[float("nan")] * 3))),
    "no thresholds": at(BEST, edited(PROGRESS, lambda value: value.update(thresholds=[]))),
    "no checksums": at(BEST, edited(PROGRESS, lambda value: value.pop("checksums") and None)),
    "best cost edited": at(BEST, edited(PROGRESS, lambda value: value.update(best_cost=-1, cost=-1))),
    "progress is another object": at(BEST, edited(PROGRESS, lambda value: {"more": 1})),
    "progress is no object's worth": at(BEST, edited(PROGRESS, lambda value: {})),
    "progress of the last is another object": at("4", edited(PROGRESS, lambda value: {"more": 1})),
    "progress without step and digest": at(BEST, edited(PROGRESS, lambda value: {
        key: value[key] for key in value if key not in ("step", "digest", "best_step")} | {"thresholds": [0.9] * 3})),
    "progress is a list": at(BEST, edited(PROGRESS, lambda value: [])),
    "progress with another key": at(BEST, edited(PROGRESS, lambda value: value.update(more=1))),
    "progress deeply nested": lambda path: (path / BEST / PROGRESS).write_text(damage.DEEP),
    **{f"{file} of another step": swapped(file) for file in ("progress", "weights", "weights/d",
                                                            "weights/ocdbt.process_0", "weights/manifest.ocdbt")},
    "a planted copy of the last (TRIALS lost 2)": copied("4", "5"), "a planted copy of the best": copied(BEST, "9"),
    "a planted copy with a better cost": both(copied("4", "7"), at("7", edited(
        PROGRESS, lambda value: value.update(cost=-5.0, best_cost=-5.0, best_step=7, step=7)))),
    "the best under another number": renamed(BEST, "2"), "two steps exchanged": both(
        renamed("4", "x"), renamed(BEST, "4"), renamed("x", BEST)),
    "an empty step folder (TRIALS lost 2)": lambda path: (path / "8").mkdir(),
    "a file with a step's name (TRIALS lost 2)": lambda path: (path / "8").write_text("x"),
    "a folder that is no step": lambda path: (path / "mine").mkdir(),
    "an unfinished step": lambda path: (path / "9.orbax-checkpoint-tmp").mkdir(),
    "a link to the best": lambda path: (path / "6").symlink_to(BEST),
    "the last missing": at("4", damage.remove), "the one before missing": at("3", damage.remove),
    "progress of the last missing": at(f"4/{PROGRESS}", damage.remove),
    "progress of the last flipped": at(f"4/{PROGRESS}", damage.flip(0.6)),
    "the last empty": at("4", damage.folder),
}
for what, spoil in CHECKPOINTS.items():
    add(PYTHON, f"checkpoints, {what}", spoilt(load, "workdir/checkpoints", spoil), same_or_refused(same_detector))
for what, spoil in {**damage.NO_FILE, "empty": damage.folder}.items():
    if what != "a folder":
        add(PYTHON, f"the folder of checkpoints is {what}", spoilt(load, "workdir/checkpoints", spoil),
            refused("workdir"))


def last(box: Box) -> Callable:
    return lambda path=box.workdir: state_of(sedjax.load(path, "last"))[0]


for what, spoil in {"weights flipped": at("4/weights/d", first_file(damage.flip(0.6))), "gone": at("4", damage.remove),
                    "progress flipped": at(f"4/{PROGRESS}", damage.flip(0.6))}.items():
    add(PYTHON, f"last checkpoint, {what}", spoilt(last, "workdir/checkpoints", spoil), same_or_refused(
        lambda result, box: equal(result.value, 3)))


def transplanted(box: Box) -> Callable:
    shutil.rmtree(box.workdir / "checkpoints")
    shutil.copytree(box.naive / "checkpoints", box.workdir / "checkpoints")
    return load(box)


add(PYTHON, "TRIALS crash 7: checkpoints of another architecture", transplanted, refused("workdir"))


def config_value(key: str, value: object) -> damage.Damage:
    def spoil(path: pathlib.Path) -> None:
        content = json.loads(path.read_text())
        *places, name = key.split(".")
        functools.reduce(dict.__getitem__, places, content)[name] = value
        path.write_text(json.dumps(content))

    return spoil


for key, value in {"model.width": 16, "model.layers": 2, "model.heads": 0, "model.positions": -1, "model.name": "other",
                   "model.channels": [3], "decision.pooling": "median", "data.max_frames": 10**30,
                   "precision": "float8", "model": None}.items():
    add(PYTHON, f"config.json with {key} = {value!r}", spoilt(load, "workdir/config.json", config_value(key, value)),
        refused("workdir"))
for key, value in {"optimizer.learning_rate": "1", "loss.class_factors": []}.items():  # of which no prediction depends
    add(PYTHON, f"config.json with {key} = {value!r}", spoilt(load, "workdir/config.json", config_value(key, value)),
        dataclasses.replace(same_or_refused(lambda result, box: equal("config.json" in result.errors, True))))
for what, function in {"a width of text": lambda v: v["melspectrogram"].update(width="64"),
                       "another width": lambda v: v["melspectrogram"].update(width=32), "no width": lambda v:
                       v["melspectrogram"].pop("width"), "a feature of 1": lambda v: v.update(melspectrogram=1),
                       "no features": lambda v: v.clear(),
                       "a mean too short": lambda v: v["melspectrogram"].update(mean=[1.0]),
                       "a mean of text": lambda v: v["melspectrogram"].update(mean=["x"] * 64)}.items():
    add(PYTHON, f"TRIALS crash 5: features.json with {what}", spoilt(
        load, "workdir/features.json", lambda path, function=function: edited(path.name, function)(path.parent)),
        refused("workdir"))
for what, function in {"another order": lambda v: v.update(costs=dict(reversed(v["costs"].items()))),
                       "a class fewer": lambda v: v["costs"].popitem() and None,
                       "other frames": lambda v: v.update(frame_seconds=0.04)}.items():
    add(PYTHON, f"task.json with {what}", spoilt(
        load, "workdir/task.json", lambda path, function=function: edited(path.name, function)(path.parent)),
        refused("workdir"))


def evaluation(content: str | Callable[[dict], object]) -> Callable[[Box], list]:
    """A workdir with an evaluation that was made before."""

    def make(box: Box) -> list:
        path = box.naive / "report" / "evaluation_test.json"
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            assert run("report", [box.naive, "--output", box / "out"]).status == 0
            value = json.loads(path.read_text())
            content(value)
            path.write_text(json.dumps(value))
        config_value("data.path", str(box.records))(box.naive / "config.json")
        return [box.naive, "--output", box / "out"]

    return make


def cost_in(value: object) -> float | None:
    """The first cost in JSON of any form."""
    if isinstance(value, dict):
        return value.get("cost") or next(filter(None, map(cost_in, value.values())), None)
    return None


def reported(result: Result, box: Box) -> None:
    cost = cost_in(json.loads((box.naive / "report/evaluation_test.json").read_text()))
    figures = run("evaluate", ["--workdir", box.naive, "--data", box.records, "--json", box / "x.json"])
    assert figures.status == 0, figures
    assert cost == json.loads((box / "x.json").read_text())["cost"]


for what, content in {"null": "null", "a list": "[1]", "text counts": '{"step": 0, "counts": "x"}',
                      "deep nesting": damage.DEEP,
                      "numbers": '{"step": 0, "counts": [1]}'}.items():
    add("report", f"TRIALS crash 5: evaluation_test.json with {what}", evaluation(content), dataclasses.replace(
        fine(reported, writes=["out", "naive/report"])))

# Records: what is read is what was written, or an error; another data set under the same path is noticed.


def all_records(path: pathlib.Path) -> list:
    found = []
    for split in ("train", "validation", "test"):
        source = open_records(str(path), split)
        read = [source.read(i, ("embeddings", "melspectrogram", "mfcc")) for i in range(len(source.lengths))]
        found.append((source.task, source.lengths, source.features, source.labels, read, source.filenames))
    return found


def read_records(box: Box) -> Callable:
    return functools.partial(all_records, box.records)


intact_records = functools.cache(all_records)


def same_records(result: Result, box: Box) -> None:
    equal(result.value, intact_records(box._fixtures / "records"))


for file in ("dataset_info.json", "features.json", "metadata.json", "tiny-train", "tiny-validation"):
    for what, spoil in {"missing": damage.remove, "empty": damage.write(b""), "cut": damage.cut(0.5),
                        "flipped": damage.flip(0.7),
                        "flipped in front": damage.flip(0.1), "a folder": damage.folder, "a FIFO": damage.fifo}.items():
        add(PYTHON, f"records, {file} {what}", spoilt(read_records, "records", lambda path, file=file,
                                                      spoil=spoil: spoil(
            next(each for each in path.iterdir() if file.replace("tiny", "") in each.name))),
            same_or_refused(same_records, "records"))
RECORDS = {
    "other lengths": lambda v: v["lengths"]["train"].__setitem__(0, 12), "a length too many": lambda v:
    v["lengths"]["train"].append(12), "no lengths": lambda v: v.pop("lengths"), "lengths of text": lambda v:
    v["lengths"].update(train=["x"] * 6), "no task": lambda v: v.pop("task"), "a task of 1": lambda v: v.update(task=1),
    "no features": lambda v: v.pop("features"), "features of a list": lambda v: v.update(features=[]),
    "another width": lambda v: v["features"]["embeddings"].update(width=3), "no labels": lambda v: v.pop("labels"),
    "negative lengths": lambda v: v["lengths"].update(train=[-1] * 6), "huge lengths": lambda v:
    v["lengths"].update(train=[2**40] * 6), "a mean of text": lambda v: v["features"]["embeddings"].update(mean="x"),
    "another mean": lambda v: v["features"]["embeddings"].update(mean=[9.0] * 16),
}
for what, function in RECORDS.items():
    add(PYTHON, f"records, metadata.json with {what}", spoilt(
        read_records, "records/metadata.json", lambda path,
        function=function: edited(path.name, function)(path.parent)),
        same_or_refused(same_records, "records"))


def exchanged(box: Box) -> list:
    """The workdir of a training whose records are others by now, under the same path."""
    shutil.copytree(box.other_records, box.records, dirs_exist_ok=True)
    shutil.rmtree(box.other_records)
    config_value("data.path", str(box.records))(box.workdir / "config.json")
    return [*small_flags(), f"--config.data.path={box.records}", f"--workdir={box.workdir}"]


def stale_report(box: Box) -> list:
    arguments = evaluation(lambda value: None)(box)
    shutil.rmtree(box.records)
    shutil.copytree(box.other_records, box.records)
    shutil.rmtree(box.other_records)
    return arguments


add("report", "REVIEW B1: an evaluation of other records", stale_report, dataclasses.replace(
    fine(reported, writes=["out", "naive/report"]), statuses=(0, 2)))
add("train", "REVIEW B2: resumed on other records", exchanged, refused("records"))
add("train", "REVIEW B2: resumed on records elsewhere", lambda box: [
    *small_flags(), f"--config.data.path={box.other_records}", f"--workdir={box.workdir}"], refused("other_records"))

# Config values

DEFAULTS = json.loads(freeze(base_config("conv_transformer").to_dict()).to_json())
DEFAULTS["model"].pop("name")
TEXTS = {int: ("-1", "abc", "", "1.5", "nan", "1" + "0" * 30, "1" + "0" * 400),
         float: ("nan", "inf", "-inf", "-1", "1e300", "abc", ""), bool: ("2", "abc", ""),
         list: ("3", "('a',)", "(-1,)", "(1.5e300,)", "()", "(", "[[1]]")}
FREE_TEXT = ("data.path", "train.initial_weights", "loss.class_factors")
DURATIONS = ("train.duration", "train.evaluate_every", "train.save_every", "train.log_every", "optimizer.warmup",
             "optimizer.frozen")
NO_DURATION = ("", "5", "steps", "-1 steps", "nan epochs", "1e400 steps", "9" * 400 + " steps", "1 2 steps",
               "1..5 epochs", "2 weeks")
MORE_VALUES = {
    "data.batch_size": ("0", "100000000"), "data.eval_batch_size": ("0", "100000000"), "data.max_frames": ("0", "15"),
    "data.bucket_frames": ("0", "15"), "data.crop_frames": ("15", "50"), "data.pool_batches": ("0",),
    "optimizer.learning_rate": ("0",), "optimizer.beta1": ("1", "2"), "optimizer.beta2": ("1",),
    "optimizer.layer_decay": ("0", "1.1"),
    "optimizer.accumulate": ("0", "3", "100000000"), "train.steps_per_call": ("0", "100000000"), "train.ema": ("1",),
    "train.seed": ("-2", "99999999999999999999"), "train.evaluate_every": ("0 epochs", "0 steps"),
    "train.log_every": ("0 steps",),
    "train.save_every": ("0 epochs",), "decision.thresholds": ("(1.1,)", "(-0.1,)", "(True,)", "('0.5',)"),
    "model.heads": ("0", "3"), "model.width": ("0", "1000000000"), "model.layers": ("1000000",),
    "model.feed_forward": ("0", "1000000000"),
    "model.positions": ("1000000000",), "model.dropout": ("1", "1.5"),
    "model.channels": ("(0,0)", "(2,)", "(2,2,2)", "(1000000000,2)"),
    "model.head_width": ("1000000000",), "model.mfcc": ("(24,)", "(1000000000,)"), "loss.class_factors": ("1",),
    "loss.absolute_costs": (),
    "data.path": ("", "nothing", "/dev/null", "gs://bucket/x"), "train.initial_weights": ("typo.npz", "/dev/null"),
    "model.name": ("other", ""), "model.more": ("1",), "optimiser.learning_rate": ("1",), "train.": ("1",), "": ("1",),
}
VALUES: dict[str, list[str]] = {}
for section, fields in DEFAULTS.items():
    for key, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
        name = f"{section}.{key}" if key else section
        if name in DURATIONS:
            texts = NO_DURATION
        elif isinstance(value, str):
            texts = () if name in FREE_TEXT else ("other", "")
        else:
            texts = TEXTS.get(type(value), ())
        VALUES[name] = [*texts]
for name, texts in MORE_VALUES.items():
    VALUES[name] = [*VALUES.get(name, []), *texts]
for name, text in (("model.mfcc", "()"), ("model.mfcc", "3"), ("model.channels", "()")):  # which mean what they say
    VALUES[name].remove(text)
KEYS = {"model.name": "model", "optimiser.learning_rate": "optimiser"}
NUMBERS = {"model.heads", "model.positions", "model.dropout", "train.seed"}  # TRIALS crash 4
REVIEWED = {"train.patience", "optimizer.clip_norm", "train.evaluate_every", "optimizer.learning_rate",
            "optimizer.beta1", "model.width",
            "decision.thresholds"}


def with_value(name: str, text: str) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        return [*train(box), f"--config.{name}={text}"]

    return make


for name, texts in VALUES.items():
    number = "TRIALS crash 4: " if name in NUMBERS else "REVIEW B12: " if name in REVIEWED else ""
    for text in dict.fromkeys(texts):
        shown = text if len(text) < 40 else f"{text[:8]}... ({len(text)} characters)"
        add("train", f"{number}--config.{name}={shown}", with_value(name, text), refused(
            text if text and name in FREE_TEXT[:2] else KEYS.get(name, name.rpartition(".")[2])))


def frozen(**changes) -> Callable[[Box], Callable]:
    def make(box: Box) -> Callable:
        config = base_config("conv_transformer")
        return lambda: freeze(changed(config, **changes).to_dict())

    return make


for key, values in {"train__patience": (0,), "optimizer__clip_norm": (0.0,), "optimizer__weight_decay": (0.0,),
                    "train__ema": (0.0, 0.999),
                    "train__mixup": (0.0, 0.2), "model__dropout": (0.0, 0.9),
                    "decision__thresholds": ((0.0, 1.0), (0.9, 0.1)),
                    "train__seed": (0, 2**31 - 1), "train__duration": ("0.5 epochs", "1 epoch", "10%", "100 examples"),
                    "optimizer__layer_decay": (1.0,), "optimizer__beta1": (0.0,)}.items():
    for value in values:
        if value != "10%":
            add(PYTHON, f"a config with {key} = {value!r} is fine", frozen(**{key: value}), fine())

# Config files

CONFIG_FILES = {
    "no Python": "this is no Python", "binary": "\x00\x01",
    "raises": "def get_config():\n    raise RuntimeError('boom')\n",
    "raises on import": "1 / 0\n", "imports what is not there": "import nowhere_at_all\n", "imports a neighbour":
    "from neighbour import x\n", "returns a dict": "def get_config():\n    return {'a': 1}\n", "returns None":
    "def get_config():\n    pass\n", "returns a number": "def get_config():\n    return 1\n",
    "has no get_config": "x = 1\n",
    "takes two arguments": "def get_config(a, b):\n    pass\n", "returns another ConfigDict":
    "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'a': 1})\n", "exits":
    "import sys\ndef get_config():\n    sys.exit(7)\n", "is empty": "", "is endless":
    "def get_config():\n    return get_config()\n", "a model of 1":
    "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'model': 1})\n", "data of None":
    "from sedjax.core.config import base_config\ndef get_config():\n    config = base_config('naive')\n    config.unlock()\n"
    "    config.data = None\n    return config\n", "raises UserError":
    "from sedjax.core.errors import UserError\ndef get_config():\n    raise UserError('mine.')\n"}


def config_file(text: str, command: str) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        (box / "mine.py").write_text(text)
        arguments = [f"--config={box / 'mine.py'}"]
        return arguments if command == "bench" else [*arguments, f"--workdir={box / 'out'}"]

    return make


for what, text in CONFIG_FILES.items():
    for command in ("train", "sweep", "bench"):
        add(command, f"TRIALS crash 9: a config file that {what}", config_file(text, command), refused(*["mine.py"] * (
            what not in ("returns another ConfigDict", "a model of 1", "data of None"))))
for what, spoil in damage.NO_FILE.items():
    add("train", f"the config file is {what}",
        lambda box, spoil=spoil: (config_file("", "train")(box), spoil(box / "mine.py"))[0], refused("mine.py"))
for what, text in {"config:word": f"{CONFIG}:small", "no suffix": str(CONFIG.with_suffix("")),
                   "a folder": str(ROOT)}.items():
    add("train", f"--config is {what}", lambda box, text=text: [f"--config={text}", f"--workdir={box / 'out'}"],
        refused())

# Pretrained detectors: the file of the weights, the classes and the table of groups


def pretrained(box: Box, *flags: str) -> list:
    """Flags name files in the box as BOX/name."""
    (box / "wrong.csv").write_text("class,member\nDog,Dogg\n")
    (box / "none.json").write_text("{}")
    (box / "text.pt").write_text("text")
    return ["--model=frame_mn06_strong", wavs(box), "--output", box / "out",
            *[flag.replace("BOX", str(box.folder)) for flag in flags]]


for what, (flags, key) in {
        "no weights": (["--weights=nothing.pt"], "nothing.pt"), "weights are text": (["--weights=BOX/text.pt"], "text.pt"),
        "a class that is not there": (["--classes=Sirens"], "Siren"), "an empty class": (["--classes=,"], "--classes"),
        "classes and groups": (["--classes=Dog", "--map=mlpc"], "groups"), "no table": (["--map=x.csv"], "x.csv"),
        "a wrong member": (["--map=BOX/wrong.csv"], "Dogg"), "an empty table": (["--map=BOX/none.json"], "class"),
        "a table of another kind": (["--map=BOX/text.pt"], "text.pt")}.items():
    add("predict", f"--model: {what}", lambda box, flags=flags: pretrained(box, *flags), refused(key))

# Rules for events, and hours

for what, (flags, key) in {
        "a class that is not there": (["--threshold=Sirens=0.5"], "Sirens"), "no number": (["--median=long"], "--median"),
        "no number of a class": (["--merge_gap=Bell="], "--merge_gap"), "a threshold above 1": (["--threshold=1.5"], "1.5"),
        "a negative duration": (["--min_duration=-1"], "-1"), "no finite duration": (["--median=inf"], "inf"),
        "a threshold that is no number": (["--threshold=nan"], "nan"),
        "a low threshold above the other": (["--threshold=0.2", "--low_threshold=0.9"], "0.9")}.items():
    for command, get in (("predict", predict), ("evaluate", evaluate)):
        add(command, f"rules: {what}", lambda box, get=get, flags=flags: [*get(box), *flags], refused(key))
for what, (flags, key) in {
        "hours of nothing known": (["--formats=hourly"], "--start"), "a start without hours": (["--start=2024-01-31"], "hourly"),
        "a start that is no time": (["--formats=hourly", "--start=dawn"], "dawn")}.items():
    add("predict", f"hours: {what}", lambda box, flags=flags: [*predict(box), *flags], refused(key))

# Flags

REQUIRED_FLAGS = {"labels": ("events", "audio", "output"), "records": ("source", "output"), "ground_truth": ("source", "output"),
                  "score": ("predictions",),
                  "train": ("config", "workdir"), "evaluate": ("workdir",), "predict": ("workdir", "output"),
                  "sweep": ("config", "workdir"), "soundscapes": ("output",), "import_weights": ("checkpoint",)}
for command, get in VALID.items():
    add(command, "an unknown flag", lambda box, get=get: [*get(box), "--nonesuch=1"], refused("nonesuch"))
    add(command, "a flag with a typing error", lambda box, get=get: [*get(box), "--outputt=x"], refused("outputt"))
    if command not in ("predict", "report"):
        add(command, "an argument too many", lambda box, get=get: [*get(box), "surplus"], refused("surplus"))
    add(command, "help", lambda box: ["--help"], fine())
    if command in ("train", "sweep", "bench", "import_weights"):
        add(command, "REVIEW B6: help shows --config", lambda box: ["--help"], fine(
            lambda result, box: equal("--config" in result.output + result.errors, True)))


def without(get: Callable[[Box], list], flag: str, empty: bool) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        arguments, kept = [*map(str, get(box))], []
        while arguments:
            each = arguments.pop(0)
            if each == f"--{flag}":
                arguments.pop(0)
            elif not each.startswith(f"--{flag}="):
                kept.append(each)
        return [*kept, *[f"--{flag}="] * empty]

    return make


for command, names in REQUIRED_FLAGS.items():
    for flag, empty in itertools.product(names, (False, True)):
        add(command, f"--{flag} is {'empty' if empty else 'missing'}", without(VALID[command], flag, empty),
            refused(flag))
for command, flag in (("score", "ground_truth"), ("score", "costs"), ("score", "json"), ("score", "metrics"), ("evaluate", "data"),
                      ("evaluate", "json"),
                      ("report", "output"), ("bench", "json"), ("records", "costs"), ("extract", "output"),
                      ("extract", "audio"),
                      ("records", "features"), ("extract", "features"), ("predict", "formats"),
                      ("evaluate", "checkpoint"),
                      ("sweep", "only"), ("check", "costs")):
    add(command, f"--{flag} is empty", lambda box, command=command, flag=flag: [*VALID[command](box), f"--{flag}="],
        dataclasses.replace(fine(writes=["out", "workdir/report"]), statuses=(0, 2), early=command not in (
            "score", "check", "records", "extract")))
FLAGS = {
    "records": [["--features=nothing"], ["--split_seed=-1"], ["--split_seed=x"],
                      ["--split_seed=99999999999"], ["--features=../x"], ["--costs=nothing.json"],
                      ["--output=gs://bucket/x"]],
    "extract": [["--features=nothing"], ["--features=embeddings"], ["--embeddings_from=x"], ["--hop_seconds=1"],
                ["--drop_layers=-1"],
                ["--drop_layers=1"], ["--source=x"], ["--audio=nothing"], ["--output=gs://x/y"]],
    "score": [["--split=test"], ["--split=other"], ["--dataset=nothing"], ["--costs=nothing"],
              ["--predictions=nothing"], ["--metrics=other"], ["--metrics=cost,event_f1"], ["--metrics=event_f1"]],
    "evaluate": [["--metrics=other"], ["--split=other"], ["--checkpoint=other"], ["--checkpoint=-1"], ["--checkpoint=99"],
                 ["--workdir=nothing"],
                 ["--data=nothing"], ["--checkpoint=../1"], ["--num_processes=2"], ["--process_id=-1"],
                 ["--coordinator_address=x"]],
    "predict": [["--split=test"], ["--formats=other"], ["--formats=csv,other"], ["nothing.wav"], ["--workdir=nothing"],
                ["--checkpoint=99"], ["--embeddings_from=x"], ["--source=x"], ["--model=frame_mn06_strong"],
                ["--model=other"], ["--weights=x.pt"], ["--classes=Dog"], ["--map=mlpc"]],
    "report": [["--split=other"], ["nothing"], ["."]],
    "sweep": [["--only=other"], ["--only=a,other"], ["--config.seeds=()"], ["--config.seeds=('a',)"],
              ["--config.seeds=(-1,)"]],
    "bench": [["--steps=0"], ["--steps=x"], ["--against=other"], ["--sweep=other"], ["--audio=nothing"],
              ["--sweep=batch_size,other"]],
    "soundscapes": [["--recordings=0"], ["--recordings=100000"], ["--seconds_min=nan"], ["--seconds_max=inf"],
                    ["--seconds_min=-1"],
                    ["--seconds_min=3"], ["--seed=-1"], ["--workers=0"], ["--workers=-1"], ["--seed=x"],
                    ["--seconds_max=1e30"]],
    "import_weights": [["--network=atst_frame"], ["--strong_head"], ["--output=x.npz"], ["--checkpoint=nothing.npz"],
                       ["--checkpoint=nothing.pt"], ["--costs=nothing"]],
    "check": [["--features=nothing"], ["--costs=nothing"], ["--features=embeddings,nothing"]],
    "ground_truth": [["--split=other"], ["--source=nothing"]],
    "labels": [["--columns=nothing=x"], ["--columns=label=x"], ["--columns=label"], ["--columns=label=x,label=y"],
               ["--classes=Other"], ["--classes=Bell,Bell"], ["--costs=nothing"], ["--splits=nothing"],
               ["--split_seed=-1"], ["--costs=x", "--classes=Bell"], ["--columns=split=label"]],
    "train": [["--workdir=/dev/null/x"], ["--num_processes=2"], ["--process_id=1"]],
}
for command, lists in FLAGS.items():
    for further in lists:
        add(command, f"flags {' '.join(further)}", lambda box, command=command,
            further=further: [*VALID[command](box), *further], refused())

# Outputs: onto what is there

USERS = "the user's own\n"


def users(box: Box, name: str = "mine") -> pathlib.Path:
    (box / name).write_text(USERS)
    return box / name


def users_folder(box: Box) -> pathlib.Path:
    (box / "mine/deep").mkdir(parents=True)
    (box / "mine/deep/x.txt").write_text(USERS)
    (box / "mine/index.md").write_text(USERS)
    return box / "mine"


def linked(box: Box, target: str) -> pathlib.Path:
    (box / "out_link").symlink_to(target)
    return box / "out_link"


PLACES: dict[str, Callable[[Box], object]] = {
    "a file of the user's": users, "a folder of the user's": users_folder,
    "below a file": lambda box: users(box) / "out",
    "where nothing can be made": lambda box: "/proc/sedjax/out", "a name of 300 bytes": lambda box: box / ("x" * 300),
    "a link to the user's file": lambda box: linked(box, str(users(box))), "/dev/full": lambda box: "/dev/full",
    "a FIFO": lambda box: (os.mkfifo(box / "pipe"), box / "pipe")[1],
    "a link to itself": lambda box: linked(box, "out_link"),
    "/dev/null": lambda box: "/dev/null",
}
WRITERS = {  # command: its arguments, the flag of its output, whether that is a folder
    ("records", ""): (build, "output", True), ("extract", ""): (extract, "output", True), ("ground_truth", ""):
    (ground_truth, "output", False), ("labels", ""): (labels, "output", True), ("score", " --json"): (score, "json", False),
    ("evaluate", " --json"): (evaluate, "json", False),
    ("predict", ""): (predict, "output", True), ("predict", " --source"): (predict_source, "output", False),
    ("report", ""):
    (report, "output", True), ("bench", " --json"): (bench, "json", False), ("train", ""): (train, "workdir", True),
    ("sweep", ""):
    (sweep, "workdir", True), ("soundscapes", ""): (soundscapes, "output", True), ("import_weights", ""):
    (import_weights, "workdir", True),
}


def output_to(get: Callable[[Box], list], flag: str, place: Callable[[Box], object]) -> Callable[[Box], list]:
    def make(box: Box) -> list:
        arguments = get(box)
        return [*without(lambda box: arguments, flag, False)(box), f"--{flag}={place(box)}"]

    return make


for (command, kind), (get, flag, is_folder) in WRITERS.items():
    for what, place in PLACES.items():
        if is_folder and what == "a folder of the user's":
            # What is the user's stays as it is; some commands may write beside it.
            outcome = dataclasses.replace(refused("mine"), statuses=(0, 2), writes=("mine",)) if command in (
                "extract", "labels", "predict", "report", "train", "sweep") else refused("mine")
            if command in ("predict", "report", "train", "sweep"):
                continue
        else:
            outcome = refused()
        if command == "sweep" and what not in ("a file of the user's", "a name of 300 bytes", "/dev/null"):
            continue  # it trains as `train` does
        add(command, f"--{flag} is {what}{kind}", output_to(get, flag, place), outcome)
    if command == "records":
        for what, place in {"a file of the user's": users, "a folder of the user's": users_folder,
                            "the source": lambda box: box.source,
                            "inside the source": lambda box: box.source / "records",
                            "above the source": lambda box: box.folder,
                            "the current folder": lambda box: ".", "the labels": lambda box: box.source / "labels",
                            "a workdir":
                            lambda box: box.workdir, "recordings": lambda box: box.recordings, "a link to the source":
                            lambda box: linked(box, "source"),
                            "the source by another way": lambda box: box.source / "labels" / "..",
                            "empty": lambda box: ""}.items():
            # A path inside the source that is not there deletes nothing.
            add(command, f"TRIALS lost 1: --overwrite, --output is {what}", lambda box, place=place: [
                *output_to(build, "output", place)(box), "--overwrite"], refused())
INPUTS_AS_OUTPUTS = {
    ("score", "json"): (score, ("predictions.csv", "truth.csv", "costs.json")), ("ground_truth", "output"):
    (ground_truth, ("source/metadata.csv", LABELS, "source/costs.json")), ("predict", "output"):
    (predict_source, ("source/metadata.csv", "workdir/config.json", "workdir/metrics.jsonl")), ("evaluate", "json"):
    (evaluate, ("workdir/config.json", "records/dataset_info.json", "workdir/metrics.jsonl")), ("bench", "json"):
    (bench, ("records/dataset_info.json",)), ("report", "output"): (report, ("workdir/config.json",)),
    ("import_weights", "workdir"):
    (import_weights, ("state.npz", "costs.json"))}
for (command, flag), (get, names) in INPUTS_AS_OUTPUTS.items():
    for name in names:
        add(command, f"--{flag} is {name}", output_to(get, flag, lambda box, name=name: box / name), refused())


def beside_recordings(box: Box) -> list:
    folder = wavs(box)
    for name in ("wav.txt", "wav.json", "wav.png", "wav.npz", "predictions.csv", "events.tsv", "bad_recordings.csv"):
        users(box, f"wavs/{name}")
    return ["--workdir", box.workdir, folder, "--output", folder, "--formats=audacity,json,csv,tsv", "--frames"]


for kept in ("wav.txt", "wav.json", "predictions.csv", "events.tsv", "bad_recordings.csv", "wav.npz"):
    def one_kept(box: Box, kept=kept) -> list:
        arguments = beside_recordings(box)
        for path in wavs(box).iterdir():
            if path.name not in (kept, "wav.wav"):
                path.unlink()
        return arguments

    add("predict", f"TRIALS lost 5: onto the user's {kept}", one_kept, refused(kept))
add("extract", "onto the user's bad_recordings.csv", lambda box: (
    (box / "out").mkdir(), users(box, "out/bad_recordings.csv"), extract(box))[-1], dataclasses.replace(
        fine(writes=["out/audio_features", "out/metadata.csv"]),
        statuses=(0, 2)))
add("report", "onto the user's index.md", lambda box: output_to(report, "output", users_folder)(box),
    dataclasses.replace(
    refused("index.md"), early=True))
add("train", "a workdir with the user's metrics.jsonl", lambda box: ((box / "out").mkdir(),
                                                                     users(box, "out/metrics.jsonl"), train(box))[-1],
    refused("metrics.jsonl"))
add("train", "a workdir with the user's checkpoints", lambda box: (
    (box / "out/checkpoints/1").mkdir(parents=True), users(box, "out/checkpoints/1/x"), train(box))[-1], refused("out"))
add("train", "a workdir with the user's task.json", lambda box: ((box / "out").mkdir(), users(box, "out/task.json"),
                                                                 train(box))[-1],
    refused("task.json"))
add("soundscapes", "a folder with another manifest", lambda box: (
    (box / "out").mkdir(), (box / "out/soundscapes.json").write_text("[]"), soundscapes(box))[-1], refused("out"))
add("soundscapes", "a manifest that is deeply nested", lambda box: (
    (box / "out").mkdir(), (box / "out/soundscapes.json").write_text(damage.DEEP), soundscapes(box))[-1],
    refused("out"))

# Python

ARRAY = np.zeros(16000, np.float32)


def detector_of(box: Box):
    return sedjax.load(box.naive)


def called(*arguments, **options) -> Callable[[Box], Callable]:
    return lambda box: lambda path=box.naive: sedjax.load(path)(*arguments, **options)


rows(PYTHON, refused("2"),
     **{"TRIALS_crash_8:_samples_of_shape_(2,_n)": called(np.zeros((2, 16000), np.float32), 16000)})
rows(PYTHON, refused(),
     **{"samples_of_three_axes": called(np.zeros((2, 3, 4), np.float32), 16000), "no_samples": called(ARRAY[:0], 16000),
        "samples_of_text": called(np.array(["a"]), 16000), "complex_samples": called(ARRAY.astype(np.complex64), 16000),
        "samples_of_NaN": called(ARRAY * np.nan, 16000), "no_rate": called(ARRAY), "a_rate_of_0": called(ARRAY, 0),
        "a_negative_rate": called(ARRAY, -16000), "a_rate_of_NaN": called(ARRAY, float("nan")), "a_rate_of_10^30":
        called(ARRAY, 10**30), "samples_of_objects": called(np.array([None]), 16000), "no_path": called("nothing.wav"),
        "a_path_with_NUL": called("a\0.wav"), "bool_samples": called(np.ones(100, bool), 16000),
        "an_empty_path": called(""),
        "a_number_as_a_recording": called(5), "None_as_a_recording": called(None),
        "TRIALS_crash_8:_unknown_keep": lambda box: lambda path=box.naive: list(sedjax.load(path).detect([ARRAY], 16000,
                                                                                                         keep=("x",))),
        "load_of_nothing": lambda box: lambda: sedjax.load("nothing"),
        "load_of_an_empty_path": lambda box: lambda: sedjax.load(""),
        "load_of_a_path_with_NUL": lambda box: lambda: sedjax.load("a\0b"), "load_of_an_unknown_step": lambda box:
        lambda path=box.naive: sedjax.load(path, "612"),
        "load_of_records": lambda box: lambda path=box.records: sedjax.load(path),
        "an_extractor_for_a_model_without": lambda box: lambda path=box.naive: sedjax.load(path, embeddings_from="x"),
        "read_task_of_nothing": lambda box: lambda: read_task("nothing"),
        "read_task_of_a_folder": lambda box: lambda path=box.source:
        read_task(path), "read_layout_of_a_file": lambda box: lambda path=box.costs: read_layout(path),
        "read_layout_with_NUL":
        lambda box: lambda: read_layout("a\0b"), "open_records_of_a_workdir": lambda box: lambda path=box.workdir:
        open_records(str(path), "train"), "an_unknown_split": lambda box: lambda path=box.records:
        open_records(str(path), "other"),
        "workdir.read_of_a_file": lambda box: lambda path=box.costs: workdir.read(path)})
rows(PYTHON, dataclasses.replace(fine(), statuses=(0, 2)),
     **{"TRIALS_crash_8:_a_float_rate": called(ARRAY, 16000.0), "TRIALS_crash_8:_a_step_as_a_number": lambda box:
        lambda path=box.naive: sedjax.load(path, 0), "float64_samples": called(ARRAY.astype(np.float64), 16000),
        "a_rate_of_numpy": called(ARRAY, np.int64(16000)), "a_list_as_a_recording": called([0.0, 1.0], 16000),
        "samples_in_reverse": called(ARRAY[::-1], 16000)})


def jax_array(box: Box) -> Callable:
    import jax.numpy as jnp

    return lambda path=box.naive: sedjax.load(path)(jnp.zeros(16000), 16000)


rows(PYTHON, fine(), **{"TRIALS_crash_8:_a_jax_array": jax_array, "one_sample": called(ARRAY[:1], 16000)})
rows(PYTHON, fine(lambda result, box: equal(result.value, True)), **{
    "REVIEW_B10:_the_middle_of_ties_that_are_apart": lambda box: lambda: bool(decisions.tune(
        np.array([[[0, i, 0, 0]] for i in (0, 0, 0, 5, 5, 0, 5)], np.int64).reshape(7, 1, 4), np.linspace(
            0.1, 0.7, 7, dtype=np.float32)[:, None], dataclasses.replace(TINY_TASK, classes=("Bell",),
                                                                         costs=((0, 1, 0, 5),)))[0]
        == np.float32(0.2)),
    "REVIEW_B13:_no_pos_weight_and_false_alarms_that_cost_nothing": lambda box: lambda: losses.class_weights(
        dataclasses.replace(TINY_TASK, costs=((0, 0, 0, 5),) * 3), pos_weight="none").shape == (2, 3),
    "REVIEW_B14:_16-bit_samples_as_they_are": lambda box: _lossless(box.folder),
    "REVIEW_B15:_a_loss_of_two_axes": lambda box: lambda: losses.weighted_bce(
        *map(jax.numpy.zeros, ((4, 3), (4, 3), (2, 3)))).shape == (4, 3)})
rows(PYTHON, dataclasses.replace(fine(), statuses=(0, 2)), **{"REVIEW_B16:_names_that_print_alike": lambda box: lambda:
                                                              files.distinct_names(
                                                                  ["x/a\udce9", "y/a\\udce9", "x/a\\udce9"])})


def _lossless(folder: pathlib.Path) -> Callable[[], bool]:
    values = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(folder / "all.wav", values, 16000, subtype="PCM_16")
    return lambda: bool((reader.frames(folder / "all.wav").ravel()[:65536] == values).all())


def other_frames(box: Box) -> None:
    write_layout(box / "mine", recordings={f"{i}.wav": 17 for i in range(5)})
    costs = {"name": "x", "costs": {"Bell": json.loads(ROW)}, "frame_seconds": 0.04}
    (box / "mine/costs.json").write_text(json.dumps(costs))
    (box / "mine/audio").mkdir()
    for i in range(5):
        shutil.copy2(wavs(box) / "wav.wav", box / f"mine/audio/{i}.wav")


add("records", "REVIEW B8: recordings in frames of 40 ms", lambda box: (other_frames(box), [
    "--source", box / "mine", "--output", box / "out", "--features=audio"])[1], refused("0.04"))
add("check", "REVIEW B8: recordings in frames of 40 ms", lambda box: (other_frames(box), [
    box / "mine", "--features=audio"])[1], refused("0.04"))


def other_extractor(box: Box) -> list:
    content = json.loads((box.naive / "features.json").read_text())
    content["embeddings"] = {**content.get("embeddings", {"width": 16}),
                             "extractor": {"path": "x", "parameters": "mine"}}
    (box.naive / "features.json").write_text(json.dumps(content))
    return ["--workdir", box.naive, "--data", box.other_records]


def naive_source(box: Box) -> list:
    return ["--source", box.bare, "--embeddings_from", box.naive]


add("extract", "TRIALS crash 7: embeddings of a naive model", naive_source, refused("naive"))
add("score", "REVIEW B19: what cannot be read is not called written",
    spoilt(score, "costs.json", damage.link("/proc/self/mem")),
    dataclasses.replace(refused("costs.json"), check=None))


def interrupted(get: Callable[[Box], list]) -> Callable[[Box], list]:
    """Ctrl-C once the first features are written: not while modules are imported, which only a real process survives."""
    def make(box: Box) -> list:
        arguments = get(box)
        for i in range(60):
            (wavs(box) / f"{i}.wav").write_bytes((wavs(box) / "wav.wav").read_bytes())

        def watch(deadline: float) -> None:
            while not any((box / "out").glob("audio_features/*.npz")) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=watch, args=(time.monotonic() + 20,), daemon=True).start()
        return arguments

    return make


add("extract", "TRIALS crash 6: Ctrl-C", interrupted(extract), dataclasses.replace(
    fine(writes=["out"]), statuses=(130,)))


class Closed:
    """Standard output whose reader has gone."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def into_a_closed_pipe() -> None:
    from sedjax.commands import score as command

    with contextlib.redirect_stdout(Closed()):
        cli.run(command.main, ["score", "--help"])


add(PYTHON, "TRIALS crash 9: --help into a closed pipe", lambda box: into_a_closed_pipe,
    dataclasses.replace(fine(), statuses=(0, 1, 141)))


def diverging(box: Box) -> list:
    return [*small_flags(optimizer__learning_rate=1e20, train__duration="2 epochs"),
            f"--config.data.path={box.records}",
            f"--workdir={box / 'out'}"]


def nothing_of_nan(result: Result, box: Box) -> None:
    raise AssertionError("a training that diverged ended well")


add("train", "REVIEW B3, TRIALS lost 4: a training that diverges", diverging, dataclasses.replace(
    refused(writes=["out"]), early=False, check=nothing_of_nan))
