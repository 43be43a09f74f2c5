"""What the fuzzer runs: a command on valid input, files of it that it may spoil, and what must hold then."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import re
from collections.abc import Callable, Sequence

import numpy as np

import sedjax
from hostile import corpus, mutate, rows, sandbox
from hostile.fixtures import ROOT
from hostile.sandbox import Box, Result, broken_promises, snapshot
from sedjax.audio import reader
from sedjax.data.layout import read_layout, read_task
from sedjax.data.records import open_records
from sedjax.scoring import submission
from sedjax.studies.results import collect


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command and what may be wrong with its input.

    Attributes:
      command: a key of sandbox.MODULES, or "python".
      name: to print.
      make: its arguments, or a function, on valid input in a box.
      targets: files, or folders of them, that are spoilt.
      check: raises AssertionError if a result is wrong in silence; takes result, box, and whether all that was done is
        damage, so that the result must be that of the intact input.
      statuses: with which it may end.
      weight: how often it is chosen.
      early: nothing is compiled; what would be is accepted.
      writes: what it may write.
    """

    command: str
    name: str
    make: Callable[[Box], Sequence | Callable]
    targets: tuple[str, ...]
    check: Callable[[Result, Box, bool], None] | None = None
    statuses: tuple[int, ...] = (0, 2)
    weight: float = 1.0
    early: bool = False
    writes: tuple[str, ...] = ()


class Case:
    """One random damage of one scenario."""

    def __init__(self, scenario: Scenario, rng: random.Random, folder: pathlib.Path, fixtures: pathlib.Path):
        self.scenario, self.box, self.made = scenario, Box(folder, fixtures), None
        place = os.getcwd()
        os.chdir(folder)
        try:
            self.made = scenario.make(self.box)
        finally:
            os.chdir(place)
        places = [folder / target for target in scenario.targets]
        candidates = [path for each in places for path in (mutate.files(each) if each.is_dir() else [each])]
        done, self.damage = [], True
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
            path = rng.choice(candidates)
            others = [each for each in candidates if each != path and each.is_file() and not each.is_symlink()
                      and each.suffix == path.suffix]
            if not path.is_file() or path.is_symlink() or not path.stat().st_size:
                continue
            change = mutate.source_text if path.suffix == ".py" and rng.random() < 0.7 else mutate.mutate
            mutation = change(path, rng, others)
            self.damage &= mutation.damage
            done.append(f"{path.relative_to(folder)}: {mutation.what}")
        self.what = "; ".join(done)

    def run(self) -> dict:
        """How the case went: its kind, what was said, and a signature that tells like cases."""
        scenario, folder, place = self.scenario, self.box.folder, os.getcwd()
        os.chdir(folder)
        try:
            before = snapshot(folder)
            if scenario.early:
                with sandbox.nothing_computed(), rows.openers(folder):
                    result = rows.run(scenario.command, self.made)
            else:
                with rows.openers(folder):
                    result = rows.run(scenario.command, self.made)
            if scenario.early and "It is not refused before it computes" in result.crash:
                result = dataclasses.replace(result, crash="", status=0)
            broken = broken_promises(before, snapshot(folder), result, scenario.writes)
            if result.crash:
                kind = "hang" if "It takes more than" in result.crash else "traceback"
                lines = [line for line in result.crash.splitlines() if line.strip()]
                where = [line.strip() for line in lines if re.search(r'File ".*(sedjax|data_prep)/', line)]
                last = next((line for line in reversed(lines) if re.match(r"\w+(\.\w+)*(:|$)", line)), lines[-1])
                where = re.sub(r'.*/((?:sedjax|data_prep)/\S+)", (line \d+).*', r"\1 \2", where[-1]) if where else ""
                return {"kind": kind, "text": result.crash[-3000:], "signature": f"{where}: {last[:80]}"}
            if broken:
                signature = re.sub(r"[0-9]+", "N", broken[0][:70])
                return {"kind": "broken promise", "text": "\n".join(broken)[:2000], "signature": signature}
            if result.status not in scenario.statuses:
                return {"kind": "broken promise", "text": f"status {result.status}: {result.errors[-500:]}"}
            if result.status == 0 and scenario.check:
                try:
                    scenario.check(result, self.box, self.damage)
                except AssertionError as error:
                    text = f"{error}\nit said: {result.errors[-600:]}"
                    first = self.what.split(":")[0].split("/")[-1]
                    return {"kind": "silent loss", "text": text,
                            "signature": re.sub(r"[0-9a-f]{32}", "...",
                                                f"{first} {self.what.split(': ')[1].split(' at ')[0][:20]}")}
            return {"kind": "error" if result.status == 2 else "fine", "text": (result.errors or result.output)[-500:]}
        finally:
            os.chdir(place)


def choose(rng: random.Random) -> Scenario:
    return rng.choices(SCENARIOS, [scenario.weight for scenario in SCENARIOS])[0]


def intact(function: Callable, *arguments) -> object:
    """What a function gives for valid input, whose arguments never change."""
    return _cached(function, arguments)


@functools.cache
def _cached(function: Callable, arguments: tuple) -> object:
    return function(*arguments)


def must_be(function: Callable[[pathlib.Path], object], name: str) -> Callable[[Result, Box, bool], None]:
    """The value is that of the fixture `name`, if all that was done is damage."""

    def check(result: Result, box: Box, is_damage: bool) -> None:
        if is_damage:
            rows.equal(result.value, intact(function, box._fixtures / name))

    return check


# Directories


def contents(path: pathlib.Path) -> list:
    layout = read_layout(path)
    return [(layout.features(name, ("embeddings", "mfcc")), layout.votes(name)) for name in layout.filenames]


def good_layout(result: Result, box: Box, is_damage: bool) -> None:
    """What the check of a directory calls good can be read."""
    read = sandbox.call(lambda: contents(box.source))
    assert read.status == 0, f"called good, but: {read.errors}{read.crash}"


def built(result: Result, box: Box, is_damage: bool) -> None:
    """Records of a directory hold what it holds."""
    layout = read_layout(box.source)
    splits = json.loads((box / "out/metadata.json").read_text())["lengths"]
    read = {name: value for split in splits if splits[split]
            for name, value in records_of(box / "out", split)}
    assert read.keys() <= set(layout.filenames)
    for name, (features, votes) in read.items():
        rows.equal(features, layout.features(name, ("embeddings", "mfcc")))
        rows.equal(votes, layout.votes(name))


def records_of(path: pathlib.Path, split: str) -> list:
    source = open_records(str(path), split)
    return [(name, source.read(i, ("embeddings", "mfcc"))) for i, name in enumerate(source.filenames)]


def true(result: Result, box: Box, is_damage: bool) -> None:
    layout = read_layout(box.source)
    found = submission.read_submission(box / "out.csv", layout.task)
    assert list(found) == list(layout.filenames)


# Workdirs


def loaded(path: pathlib.Path) -> tuple:
    model = sedjax.load(path).model
    return model.step, model.thresholds, model.variables, model.task, model.model


def last_loaded(path: pathlib.Path) -> tuple:
    model = sedjax.load(path, "last").model
    return model.variables, model.thresholds, model.task


def last_or_before(result: Result, box: Box, is_damage: bool) -> None:
    """The last checkpoint, or with a warning the one before it."""
    if is_damage:
        folder = box._fixtures / "workdir"
        allowed = [intact(_step, folder, step) for step in ("4", "3", "1")]
        for each in allowed[:1] if "damaged" not in result.errors else allowed:
            try:
                rows.equal(result.value, each)
                return
            except AssertionError as error:
                last = error
        raise last


def _step(folder: pathlib.Path, step: str) -> tuple:
    model = sedjax.load(folder, step).model
    return model.variables, model.thresholds, model.task


def result_kept(path: pathlib.Path) -> dict:
    (system,) = collect([path], "test")
    return {"cost": system.cost, "counts": system.counts, "classes": system.class_costs}


# Recordings


def samples(path: pathlib.Path) -> int:
    return len(reader.read(path))


def one_recording(name: str) -> Callable[[Box], Callable]:
    def make(box: Box) -> Callable:
        path = box.recordings / name
        return lambda: len(reader.read(path))

    return make


def whole_or_said(name: str) -> Callable[[Result, Box, bool], None]:
    def check(result: Result, box: Box, is_damage: bool) -> None:
        expected = intact(samples, box._fixtures / "recordings" / name)
        said = name in result.errors
        assert result.value >= expected or said, f"{result.value:,} of {expected:,} samples without a word"

    return check


def all_or_listed(result: Result, box: Box, is_damage: bool) -> None:
    """Each recording of a folder is done, or its reason is told."""
    tables = [path for path in (box / "out/metadata.csv", box / "out/bad_recordings.csv") if path.exists()]
    text = "".join(path.read_text() for path in tables)
    missing = [path.name for path in box.three.iterdir() if path.name not in text and not path.is_dir()]
    assert not missing, f"{missing} are neither done nor listed"


def extract_three(box: Box) -> list:
    return ["--audio", box.three, "--output", box / "out", "--features=mfcc"]


def extract_again(box: Box) -> list:
    return ["--audio", box.three, "--output", box.extracted, "--features=mfcc"]


def same_features(result: Result, box: Box, is_damage: bool) -> None:
    """What a second run leaves is what the first made, or reading it is an error."""
    layout = sandbox.call(lambda: read_layout(box.extracted)).value
    if layout is None:  # an error
        return
    assert set(NAMES) <= set(layout.filenames) or not is_damage, layout.filenames
    for name in NAMES if is_damage else ():
        read = sandbox.call(lambda name=name: layout.features(name, ("mfcc",)))
        if read.status == 0:
            rows.equal(read.value, intact(extracted, box._fixtures / "extracted", name))


def extracted(folder: pathlib.Path, name: str) -> dict:
    return read_layout(folder).features(name, ("mfcc",))


# Submissions and costs


def scored(box: Box) -> list:
    return [*corpus.score(box), "--json", box / "score.json"]


def finite_score(result: Result, box: Box, is_damage: bool) -> None:
    value = json.loads((box / "score.json").read_text())
    assert np.isfinite(value["cost"]), value["cost"]


def a_task(box: Box) -> Callable:
    path = box.costs
    return lambda: read_task(path)


# Configs


def own_config(box: Box) -> list:
    text = (ROOT / "configs" / "conv_transformer_small.py").read_text()
    (box / "mine.py").write_text(text + "\n")
    return [f"--config={box / 'mine.py'}", f"--config.data.path={box.records}", f"--workdir={box / 'out'}"]


def reported(box: Box) -> Callable:
    path = box.naive
    return lambda: result_kept(path)


NAMES = ("flac.flac", "ogg.ogg", "wav.wav")
SCENARIOS = [
    Scenario("check", "check", corpus.layout, ("source",), good_layout, weight=3),
    Scenario("records", "records", lambda box: [*corpus.build(box), "--features=embeddings,mfcc"],
             ("source",), built,
             writes=("out",), weight=1),
    Scenario("records", "build_records --skip_bad",
             lambda box: [*corpus.build(box), "--skip_bad", "--features=embeddings,mfcc"],
             ("source/audio_features", "source/labels"), built, writes=("out",), weight=1),
    Scenario("ground_truth", "ground_truth", corpus.ground_truth,
             ("source/metadata.csv", "source/costs.json", "source/labels"), true,
             writes=("out.csv",), weight=2),
    Scenario("labels", "labels", corpus.labels, ("events.csv",), weight=3, writes=("out",)),
    Scenario("python", "open_records", lambda box: functools.partial(corpus.all_records, box.records), ("records",),
             must_be(corpus.all_records, "records"), weight=4),
    Scenario("python", "load", lambda box: functools.partial(loaded, box.workdir), (
        "workdir/checkpoints", "workdir/config.json", "workdir/task.json", "workdir/features.json"),
             must_be(loaded, "workdir"), weight=5),
    Scenario("python", "load best", lambda box: functools.partial(loaded, box.workdir), ("workdir/checkpoints/1",),
             must_be(loaded, "workdir"), weight=4),
    Scenario("python", "load last", lambda box: functools.partial(last_loaded, box.workdir), ("workdir/checkpoints",),
             last_or_before,
             weight=2),
    Scenario("python", "report", reported, ("naive/metrics.jsonl", "naive/report/evaluation_test.json",
                                            "naive/report/evaluation_test.json"),
             must_be(result_kept, "naive"), weight=3, writes=("naive/report",)),
    *(Scenario("python", f"audio.read {suffix}", one_recording(f"{suffix}.{suffix}"),
               (f"recordings/{suffix}.{suffix}",),
               whole_or_said(f"{suffix}.{suffix}"), weight=0.6) for suffix in corpus.SUFFIXES),
    Scenario("extract", "extract --audio", extract_three, ("three",), all_or_listed, (0, 1, 2), 2,
             writes=("out",)),
    Scenario("extract", "extract again", extract_again, ("extracted",), same_features, (0, 1, 2), 2,
             writes=("extracted",)),
    Scenario("score", "score", scored, ("predictions.csv", "truth.csv", "costs.json"), finite_score, weight=4,
             writes=("score.json",)),
    Scenario("python", "read_task", a_task, ("costs.json",), weight=2),
    Scenario("train", "train, its config", own_config, ("mine.py",), weight=2, early=True, writes=("out",)),
    Scenario("train", "train, its records", corpus.train, ("records",), weight=1, early=True, writes=("out",)),
    Scenario("sweep", "sweep, its config", corpus.sweep, ("study.py",), weight=1, early=True, writes=("out",)),
    Scenario("import_weights", "import_weights", corpus.import_weights, ("state.npz", "costs.json"), weight=2,
             writes=("out",)),
    Scenario("predict", "predict --source", corpus.predict_source,
             ("source/audio_features", "source/metadata.csv", "source/costs.json",
                                                                   "workdir/config.json", "workdir/task.json"),
             weight=1, early=True, writes=("out.csv",)),
    Scenario("evaluate", "evaluate naive", lambda box: ["--workdir", box.naive, "--data", box.records],
             ("naive", "records"), weight=0.5),
    Scenario("soundscapes", "soundscapes again", lambda box: (box.cities, ["--output", box.cities, "--recordings=10",
             "--seconds_min=2", "--seconds_max=2", "--workers=1"])[1], ("cities/soundscapes.json",), weight=0.5),
]
