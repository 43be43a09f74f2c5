"""Errors that a person can cause, and text that is safe to print."""

import os

Path = str | os.PathLike


class UserError(Exception):
    """Something outside the program is wrong: one sentence says what, where, and what to do.

    Commands print it without a traceback and end with exit status 2.
    """


def printable(text: Path) -> str:
    """The same text with an escape for each control character, and for each byte that is not UTF-8."""
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if text.isprintable() else "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
