"""Requests to stop, sent by signal, which training obeys at the end of a step."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import jax

from sedjax.core import parallel

log = logging.getLogger("sedjax")


class Stop:
    """Whether this process was asked to stop, and by which signal; stays False unless created by `listen`."""

    def __init__(self):
        self.signal: str | None = None
        self._answer: jax.Array | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def agreed(self) -> bool:
        """Whether all processes must stop now, because at least one of them was asked to.

        All must call this equally often. With several processes a request takes effect one call later, so that no
        process waits for another, or for its own device.
        """
        if jax.process_count() == 1:
            return bool(self)
        answer, self._answer = self._answer, parallel.any_across_processes(bool(self))
        return answer is not None and bool(answer)


@contextlib.contextmanager
def listen() -> Iterator[Stop]:
    """Turns SIGTERM (preemption) and SIGINT (Ctrl-C) into a request; a second one of the same kind ends the process.

    One shutdown may send both. Each of several processes handles its own signals; `agreed` shares them.
    """
    stop = Stop()
    previous = {}

    def request(number: int, frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        if not stop:
            stop.signal = signal.Signals(number).name
            log.warning("%s: stopping after this step.", stop.signal)

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
