"""Errors that a person can cause."""


class UserError(Exception):
    """Something outside the program is wrong: one sentence says what, where, and what to do.

    Commands print it without a traceback and end with exit status 2.
    """
