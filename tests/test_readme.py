"""The commands of the README, as they stand there."""

import importlib
import json
import pathlib
import re
import shlex

import pytest
from tiny import run_command

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SMALL = ["--config.model.width=16", "--config.model.heads=2", "--config.model.layers=1",
         "--config.model.feed_forward=16", "--config.model.head_width=8", "--config.model.positions=40",
         "--config.data.max_frames=40", "--config.data.bucket_frames=40", "--config.train.duration=2 epochs"]


def commands() -> list[list[str]]:
    block = re.search(r"<!-- The tests run these commands.*?-->\n```sh\n(.*?)```", README, re.DOTALL)[1]
    return [shlex.split(line) for line in block.strip().splitlines()]


def test_your_own_recordings(source, tmp_path, capsys):
    """From a directory to a report, in the README's order; `evaluate` and `score` must agree."""
    places = {"DIR": str(source), "DATA": str(tmp_path / "records"), "WORKDIR": str(tmp_path / "run"),
              **{name: str(tmp_path / name) for name in ("RESULT.json", "PREDICTIONS.csv", "TRUTH.csv")}}
    seen = []
    for words in commands():
        assert words[:2] == ["python", "-m"]
        words = [re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], word) for word in words]
        name, arguments = (f"sedjax.{words[3]}", words[4:]) if words[2] == "sedjax" else (words[2], words[3:])
        run_command(importlib.import_module(name), *arguments, *(SMALL if name == "sedjax.train" else []))
        seen.append(name.split(".")[-1])
        printed = capsys.readouterr().out
        if seen[-1] == "score":
            cost = re.search(r"total +([0-9.]+)", printed)[1]
            assert float(cost) == pytest.approx(json.loads((tmp_path / "RESULT.json").read_text())["cost"], abs=1e-4)
    assert seen == ["layout", "build_records", "train", "evaluate", "predict", "ground_truth", "score", "report"]
    assert (tmp_path / "run" / "report" / "index.md").exists()


def test_files_that_the_documents_name_exist():
    for document in ("README.md", "data_prep/README.md", "CONTRIBUTING.md", "docs/accelerators.md"):
        text = re.sub(r"https://\S+", "", (ROOT / document).read_text())
        for path in re.findall(r"(?:configs|colab|sedjax|data_prep)/[a-z_/]+\.(?:py|md|ipynb|png)", text):
            assert (ROOT / path).exists(), f"{document} names {path}"
        for module in re.findall(r"python -m ((?:sedjax|data_prep)(?:\.[a-z_]+)?)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists() or module == "sedjax"


def test_the_config_of_the_readme_builds():
    code = re.search(r"```python\n(from sedjax\.config.*?)```", README, re.DOTALL)[1]
    scope: dict = {}
    exec(code, scope)
    from sedjax.config import freeze

    assert freeze(scope["get_config"]().to_dict()).loss.class_factors == {"Siren": 2.0}
