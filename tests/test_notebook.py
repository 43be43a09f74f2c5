"""The Colab notebook runs from the first cell to the last."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parent.parent / "colab" / "quickstart.ipynb"


def test_quickstart_on_tiny_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = [cell for cell in notebook.cells if cell.source.startswith("RECORDINGS = 240\nEPOCHS = 20\n")]
    settings[0].source = f"RECORDINGS, EPOCHS, FOLDER = 20, 1, {str(tmp_path / 'run')!r}"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("cost per minute" in output.get("text", "") for output in outputs)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert any("<audio" in output.get("data", {}).get("text/html", "") for output in outputs)


def test_what_is_installed_is_the_clone_or_what_the_user_names(tmp_path, monkeypatch):
    cell = next(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "SOURCE = " in cell.source)
    code = cell.replace("%pip install --quiet \"{SOURCE}\"", "installed.append(SOURCE)")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    installed = []
    monkeypatch.chdir(NOTEBOOK.parent)
    exec(code, {"installed": installed})
    monkeypatch.chdir(tmp_path)
    exec(code.replace('SOURCE = ""', 'SOURCE = "git+https://host/x"'), {"installed": installed})
    assert installed == [str(NOTEBOOK.parent.parent), "git+https://host/x"]
    with pytest.raises(SystemExit, match="Set SOURCE"):
        exec(code, {"installed": installed})
