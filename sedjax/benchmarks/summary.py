"""Results of benchmarks as Markdown."""

import re
from collections.abc import Mapping
from typing import Any

from sedjax.core import markdown
from sedjax.core.numbers import readable_bytes

BYTES = re.compile(r"bytes|^(predicted )?memory(?! stats)")  # names of figures in bytes


def format_result(result: dict) -> str:
    """The figures of a result in a table, then a table for each list or group of entries that have the same figures."""
    figures, tables = {}, []
    for name, value in result.items():
        groups = {f"{name} {key}": rows for key, rows in value.items()} if name == "sweep" else {name: value}
        for title, group in groups.items():
            if isinstance(group, Mapping) and all(isinstance(entry, Mapping) for entry in group.values()):
                group = [{"": key, **entry} for key, entry in group.items()]
            if isinstance(group, list):
                rows = [_texts(entry) for entry in group]
                wide = rows and len(rows[0]) > len(rows)  # the longer side runs down
                tables.append(f"{_words(title)}:\n\n{markdown.table(rows, transposed=wide)}" if rows else "")
            else:
                figures |= _texts({title: group})
    tables.insert(0, markdown.table([{"": name, "result": text} for name, text in figures.items()]))
    return "\n\n".join(filter(None, tables))


def _texts(figures: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The text of each figure, those of groups within groups included, by its name."""
    texts = {}
    for name, value in figures.items():
        name = f"{prefix} {_words(name)}".strip()
        texts |= _texts(value, name) if isinstance(value, Mapping) else {name: _text(name, value)}
    return texts


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, list | tuple):
        return ", ".join(_text(name, item) for item in value)
    if isinstance(value, str):
        return value
    if BYTES.search(name):
        return readable_bytes(value)
    if name.endswith("share"):
        return f"{value:.1%}"
    if abs(value) >= 1e9:
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
