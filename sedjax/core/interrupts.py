"""Ctrl-C in a command: one line and exit status 130, at any time, also while modules are imported."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

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


def again() -> None:
    """Raises KeyboardInterrupt once more: the first one came in a callback that nothing can be raised from."""
    raise_first()
    threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()


@contextlib.contextmanager
def only_here() -> Iterator[None]:
    """Processes that are started inside never see Ctrl-C: they end with this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def starts_command() -> bool:
    """Whether this is `python -m PACKAGE...` while Python still looks for what to run."""
    return sys.argv[:1] == ["-m"]
