"""Tables in Markdown."""

import itertools
import re
from collections.abc import Mapping, Sequence

NUMBER = re.compile(r"\**[-+]?\d|-?$")


def table(rows: Sequence[Mapping[str, str]], transposed: bool = False) -> str:
    """A table of rows, each a mapping from column title to text.

    Columns without any text are left out; those of numbers are aligned to the right.
    """
    titles = [title for title in dict.fromkeys(itertools.chain(*rows)) if any(row.get(title) for row in rows)]
    columns = [[title, *(row.get(title, "") for row in rows)] for title in titles]
    if transposed:
        columns = list(map(list, zip(*columns)))
    for column in columns:
        column.insert(1, "---:" if all(map(NUMBER.match, column[1:])) else "---")
    lines = zip(*([cell.replace("|", "\\|") for cell in column] for column in columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
