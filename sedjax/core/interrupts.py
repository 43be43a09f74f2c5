"""Ctrl-C in a command: one line and exit status 130 at any time, even during imports."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

STATUS = 130


def end(number: int = signal.SIGINT, frame: object = None) -> None:
    """Exits the process immediately."""
    os.write(2, b"Interrupted.\n")
    os._exit(STATUS)  # worker threads with a queue would delay a normal exit


def end_at_once() -> None:
    """Makes Ctrl-C exit immediately, while nothing is open yet."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, end)


def raise_first() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt, so that files are cleaned up; a second Ctrl-C exits immediately."""
    def request(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, end)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, request)


def again() -> None:
    """Raises KeyboardInterrupt again: the first came in a callback from which exceptions do not propagate."""
    raise_first()
    threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()


@contextlib.contextmanager
def only_here() -> Iterator[None]:
    """Child processes started in this block ignore Ctrl-C; they end with this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def starts_command() -> bool:
    """Whether this is `python -m PACKAGE...` while Python is still locating the module to run."""
    return sys.argv[:1] == ["-m"]
