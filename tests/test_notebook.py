"""The Colab notebook runs from the first cell to the last."""

import pathlib

import nbformat
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parent.parent / "colab" / "quickstart.ipynb"


def test_quickstart_on_tiny_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
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
