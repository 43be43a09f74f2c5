"""The Colab notebooks run from the first cell to the last, and show what they do."""

import os
import pathlib
import shlex
import sys
import tomllib
from types import SimpleNamespace

import notebooks
import pytest

ROOT = pathlib.Path(__file__).parents[2]
STORED = {name: notebooks.read(name) for name in notebooks.NAMES}
# In place of `timeout`: a machine may be too busy for the training to have begun after any number of seconds.
TIMEOUT = """#!/bin/sh
shift 3
"$@" &
while kill -0 $! && ! ls drive/run/checkpoints/*; do sleep 0.2; done >/dev/null 2>&1
kill -TERM $!
wait $!
"""
TINY = """
from configs import conv_transformer_small

def get_config():
    config = conv_transformer_small.get_config()
    config.data.max_frames = config.data.bucket_frames = config.model.positions = 100
    config.data.batch_size = 4
    config.model.layers, config.model.width, config.model.heads = 1, 16, 2
    return config
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a notebook in tmp_path, with commands of this clone."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "1")  # for the commands that follow
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "timeout").write_text(TIMEOUT)
    (tmp_path / "bin" / "timeout").chmod(0o755)
    (tmp_path / "tiny.py").write_text(TINY)
    return lambda name, **settings: notebooks.run(name, tmp_path, **settings).cells


def kinds(cells) -> set[str]:
    return {kind for cell in cells if cell.cell_type == "code" for output in cell.outputs
            for kind in output.get("data", {})}


@pytest.mark.skipif("SEDJAX_NOTEBOOKS" not in os.environ, reason="takes a minute: make test-notebooks")
def test_quickstart_on_tiny_settings(run, tmp_path):
    cells = run("quickstart", RECORDINGS=10, EPOCHS=1, CONFIG=str(tmp_path / "tiny.py"))
    printed = notebooks.text(cells)
    for words in ("JAX sees 1 x CPU.", "validation cost", "100%", "95 % interval", "events in 1 recordings", " s: "):
        assert words in printed
    assert {"image/png"} <= kinds(cells)


@pytest.mark.skipif("SEDJAX_NOTEBOOKS" not in os.environ, reason="takes a minute: make test-notebooks")
def test_train_from_drive_on_tiny_settings(run, tmp_path):
    cells = run("train_from_drive", EXAMPLES=10, EPOCHS=12, CONFIG=str(tmp_path / "tiny.py"))
    first, second = (notebooks.text([cell]) for cell in cells if "{train}" in cell.source)
    assert "SIGTERM: stopping after this step." in first
    assert "to resume" in first
    step = first.partition("Stopped by SIGTERM after step ")[2].partition(":")[0]
    assert f"Resuming at step {step}." in second
    assert "Step 24, epoch 12.0" in second
    assert "95 % interval" in notebooks.text(cells)
    assert {"image/png"} <= kinds(cells)
    assert sorted(os.listdir(tmp_path / "drive")) == ["events", "recordings", "records", "run"]


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_what_is_stored(name):
    """Outputs of every cell that shows something, without errors, and a badge that opens this notebook."""
    cells = STORED[name].cells
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    address = repository.replace("https://github.com", "https://colab.research.google.com/github")
    assert f"({address}/blob/main/colab/{name}.ipynb)" in cells[0].source
    assert f'SOURCE = "git+{repository}"' in cells[1].source
    assert (ROOT / "colab" / f"{name}.ipynb").stat().st_size < 150_000
    for cell in cells:
        if cell.cell_type == "code" and "{python} -m sedjax" in cell.source:
            assert cell.outputs, cell.source
            assert cell.execution_count
    printed = notebooks.text(cells)
    assert "100%" in printed
    assert "image/png" in kinds(cells)
    for words in ("Error", "Traceback", "Warning", "/root", "/home", "/tmp", "/work", str(ROOT)):
        assert words not in printed
    assert not any(output.output_type == "error" for cell in cells if cell.cell_type == "code"
                   for output in cell.outputs)


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_all_begin_alike(name):
    assert [cell.source for cell in STORED[name].cells[1:4]] == [
        cell.source for cell in STORED["quickstart"].cells[1:4]]


@pytest.mark.parametrize(("packages", "places", "wanted"), [
    ({}, [], ["tensorflow-cpu"]),
    ({"tensorflow": "2.20.0"}, ["nvidia-smi"], ["jax[cuda12]", "tensorflow==2.20.0"]),
    ({"libtpu": "0.0.21.1"}, [], ["jax[tpu]", "tensorflow-cpu"]),
    ({}, ["TPU_ACCELERATOR_TYPE"], ["jax[tpu]", "tensorflow-cpu"]),
])
def test_what_is_installed_fits_the_runtime(packages, places, wanted, tmp_path, monkeypatch):
    """And is the clone that the notebook is in, if any."""
    code = STORED["quickstart"].cells[1].source.replace("!{python} -m pip install --quiet {requirements}",
                                                        "commands.append(requirements)")
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [
        SimpleNamespace(name=name, version=version) for name, version in packages.items()])
    monkeypatch.setattr("shutil.which", lambda name: name if name in places else None)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    for name in places:
        monkeypatch.setenv(name, "v5litepod-1")
    source = code.partition('SOURCE = "')[2].partition('"')[0]
    for folder, place in ((tmp_path, source), (ROOT / "colab", ROOT.as_uri())):
        monkeypatch.chdir(folder)
        commands: list[str] = []
        exec(code, {"commands": commands})
        assert [shlex.split(command) for command in commands] == [[f"sedjax[records] @ {place}", *wanted]]


def test_nothing_is_installed_where_sedjax_is(monkeypatch):
    code = STORED["quickstart"].cells[1].source.replace("!{python} -m pip install --quiet {requirements}", "1 / 0")
    scope: dict = {}
    exec(code, scope)
    assert scope["python"] == sys.executable
