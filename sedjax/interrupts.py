"""Ctrl-C in a command: one line and exit status 130, at any time, also while modules are imported."""

import os
import signal
import sys
import threading

STATUS = 130


def end(number: int = signal.SIGINT, frame: object = None) -> None:
    """Ends the process at once."""
    os.write(2, b"Interrupted.\n")
    os._exit(STATUS)  # threads that work through a queue would hold up an ordinary exit


def end_at_once() -> None:
    """From here on Ctrl-C ends the process at once: nothing is open yet."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, end)


def raise_first() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, so that files are tidied up; a second one ends the process."""
    def request(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, end)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, request)


def starts_command() -> bool:
    """Whether this is `python -m PACKAGE...` while Python still looks for what to run."""
    return sys.argv[:1] == ["-m"]
