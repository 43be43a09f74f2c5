"""The documents, and the code in them."""

import pathlib
import re
import shlex

from sedjax.__main__ import MODULES

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def code(path: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a document."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The sedjax commands in shell code, in words."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|[&;(\"] *)(?:\.beam/bin/|python -m )?sedjax ([a-z-]+(?: .*)?)", line) for line in lines]
    texts = [match[1].rstrip('"') if match[1].count('"') % 2 else match[1] for match in found if match]  # in quotes
    words = [shlex.split(text, comments=True) for text in texts]
    return [line for line in words if line[0] in MODULES]
