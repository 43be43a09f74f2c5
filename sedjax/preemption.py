"""A request to stop, by signal, which training follows at the end of a step."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import jax

log = logging.getLogger("sedjax")


class Stopped(Exception):
    """An evaluation was abandoned, because the process was asked to stop."""


class Stop:
    """Whether this process was asked to stop, and by which signal; never, unless `listen` made it."""

    def __init__(self):
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def listen() -> Iterator[Stop]:
    """Turns the first SIGTERM (preemption) or SIGINT (Ctrl-C) into a request; a second one ends the process as usual.

    Where several processes train together, JAX's own preemption service listens, so that all stop after the same step;
    Orbax's `manager.reached_preemption` tells.
    """
    stop = Stop()
    before = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def request(number: int, frame) -> None:
        stop.signal = signal.Signals(number).name
        restore()
        log.info("%s: stopping after this step.", stop.signal)

    if threading.current_thread() is threading.main_thread() and not jax.distributed.is_initialized():
        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        restore()
