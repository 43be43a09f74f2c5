"""Runs the notebooks in colab/ at their own settings and stores what they show: `python tests/notebooks.py`."""

import base64
import io
import os
import pathlib
import re
import sys
import tempfile

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = pathlib.Path(__file__).parent.parent / "colab"
NAMES = ("quickstart", "train_from_drive")
PICTURE_WIDTH = 700
LONGEST_HTML = 10_000  # a player holds its recording: it is not stored
CHECK = "\nassert not globals().get('_exit_code'), 'the command failed'"


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(name: str, folder: pathlib.Path, **settings) -> nbformat.NotebookNode:
    """The notebook as it stands after it ran in `folder`, with other values of its settings.

    Raises nbclient.exceptions.CellExecutionError if a cell or a command fails.
    """
    notebook = read(name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    sources = [cell.source for cell in cells]
    for cell in cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += "".join(f"\n{key} = {value!r}" for key, value in settings.items())
        if "!" in cell.source:
            cell.source += CHECK
    NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(folder)}}).execute()
    for cell, source in zip(cells, sources):
        cell.source = source
        cell.outputs = _tidy(cell.outputs, os.path.realpath(folder))
    notebook.metadata = read(name).metadata
    return notebook


def text(cells: list) -> str:
    """What code cells print."""
    return "".join(output.text for cell in cells if cell.cell_type == "code" for output in cell.outputs
                   if output.output_type == "stream")


def _tidy(outputs: list, folder: str) -> list:
    """Outputs with what a terminal shows in the end, paths relative to the folder, small pictures, and no sound."""
    tidied: list = []
    for output in outputs:
        if output.output_type == "stream" and tidied and tidied[-1].get("name") == output.name:
            tidied[-1].text += output.text
        else:
            tidied.append(output)
    for output in tidied:
        if output.output_type == "stream":
            output.text = _shown(output.text).replace(f"{folder}/", "")
            continue
        if "image/png" in output.data:
            output.data["image/png"] = _smaller(output.data["image/png"])
        if len(output.data.get("text/html", "")) > LONGEST_HTML:
            del output.data["text/html"]
    return tidied


def _shown(text: str) -> str:
    """What stays on the screen: progress bars go back to the start of their line, or some lines up."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[\r\n]|[^\r\n\x1b]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part == "\x1b[A":
            row = max(row - 1, 0)
        elif part[0] != "\x1b":
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part):]
            column += len(part)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n") + "\n"


def _smaller(png: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    file = io.BytesIO()
    image.quantize(256).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run(name, pathlib.Path(folder)), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
