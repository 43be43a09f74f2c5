"""The commands of README and docs, as they stand there."""

import importlib
import json
import re

import pytest
from absl import flags
from documents import DOCUMENTS, README, ROOT, code, commands
from tiny import run_command

from sedjax.__main__ import MODULES
from sedjax.commands.cli import own_flags
from sedjax.training.configs import freeze

SMALL = ["--config.model.width=16", "--config.model.heads=2", "--config.model.layers=1",
         "--config.model.feed_forward=16", "--config.model.head_width=8", "--config.model.positions=40",
         "--config.data.max_frames=40", "--config.data.bucket_frames=40", "--config.train.duration=2 epochs"]


def test_your_own_recordings(source, tmp_path, capsys):
    """From a directory to a report, in the README's order; `evaluate` and `score` must agree."""
    places = {"DIR": str(source), "DATA": str(tmp_path / "records"), "WORKDIR": str(tmp_path / "run"),
              **{name: str(tmp_path / name) for name in ("RESULT.json", "PREDICTIONS.csv", "TRUTH.csv")}}
    names = []
    block = re.search(r"<!-- The tests run these commands.*?-->\n```sh\n(.*?)```", README, re.DOTALL)[1]
    for name, *words in commands(block):
        words = [re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], word) for word in words]
        run_command(importlib.import_module(MODULES[name]), *words, *(SMALL if name == "train" else []))
        names.append(name)
        printed = capsys.readouterr().out
        if name == "score":
            cost = re.search(r"total +([0-9.]+)", printed)[1]
            assert float(cost) == pytest.approx(json.loads((tmp_path / "RESULT.json").read_text())["cost"], abs=1e-4)
    assert names == ["check", "records", "train", "evaluate", "predict", "truth", "score", "report"]
    assert (tmp_path / "run" / "report" / "index.md").exists()


EVERY = [(path.name, words) for path in DOCUMENTS for text in code(path, "sh") for words in commands(text)]


@pytest.mark.parametrize(("document", "words"), EVERY, ids=lambda value: value if isinstance(value, str) else value[0])
def test_every_command_has_the_flags_and_the_config_that_a_document_says(document, words):
    name, *arguments = words
    module = importlib.import_module(MODULES[name])
    before = set(flags.FLAGS)
    try:
        module.define_flags()
        known = own_flags()
        for argument in arguments:
            if match := re.match(r"--(?:no)?([a-z_]+)", argument):
                assert match[1] in known, argument
            if match := re.match(r"--config=(.+)", argument):
                assert known["config"].parser.parse(match[1])
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)


def test_documents_name_every_command():
    assert {words[0] for _, words in EVERY} | {"devices"} == set(MODULES)


def test_files_that_the_documents_name_exist():
    for document in DOCUMENTS:
        text = re.sub(r"https://\S+", "", document.read_text())
        for path in re.findall(r"(?:configs|colab|sedjax|data_prep|docs|tests)/[a-z_/0-9]+\.(?:py|md|ipynb|png)", text):
            assert (ROOT / path).exists(), f"{document.name} names {path}"
        for link in re.findall(r"\]\((?!http|#)([\w./-]+)[)#]", text):
            assert (document.parent / link).exists(), f"{document.name} links {link}"
        rooms = "core|audio|data|models|scoring|training|inference|studies|benchmarks"
        for module in re.findall(rf"`((?:{rooms})\.[a-z_]+)`", text):
            assert (ROOT / "sedjax" / (module.replace(".", "/") + ".py")).exists(), f"{document.name} names {module}"


def test_the_config_of_the_documents_builds():
    (text,) = code(ROOT / "docs" / "training.md", "python")
    scope: dict = {}
    exec(text, scope)
    assert freeze(scope["get_config"]().to_dict()).loss.class_factors == {"Siren": 2.0}
