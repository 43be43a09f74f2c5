"""User errors, and text that is safe to print."""

import os

Path = str | os.PathLike


class UserError(Exception):
    """A problem outside the program: one sentence says what is wrong, where, and what to do.

    Commands print it without a traceback and exit with status 2.
    """


def printable(text: Path) -> str:
    """The text with control characters and non-UTF-8 bytes escaped."""
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if text.isprintable() else "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
