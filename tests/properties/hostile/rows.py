"""What a row of the corpus is, and how it is judged."""

import contextlib
import dataclasses
import os
import pathlib
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np

from hostile import sandbox
from hostile.sandbox import MODULES, Box, Result, broken_promises, call, invoke, nothing_computed, snapshot

PYTHON = "python"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What must happen.

    Attributes:
      statuses: exit statuses, one of which it must be.
      keys: what the output must say: a path, a flag, a number.
      early: it ends before anything is compiled or a workdir is begun.
      check: takes the result and the box, and raises AssertionError.
      writes: what may be written, whatever the status.
    """

    statuses: tuple[int, ...] = (0,)
    keys: tuple[str, ...] = ()
    early: bool = False
    check: Callable[[Result, Box], None] | None = None
    writes: tuple[str, ...] = ()


def refused(*keys: str, writes: Sequence[str] = ()) -> Outcome:
    """One sentence that names the keys, before anything is computed or written."""
    return Outcome((2,), keys, early=True, writes=tuple(writes))


def fine(check: Callable[[Result, Box], None] | None = None, writes: Sequence[str] = (), keys: Sequence[str] = ()
         ) -> Outcome:
    return Outcome((0,), tuple(keys), check=check, writes=tuple(writes))


def listed(*keys: str, writes: Sequence[str]) -> Outcome:
    """All but what is bad is done, which is listed."""
    return Outcome((1,), keys, writes=tuple(writes))


def same_or_refused(check: Callable[[Result, Box], None], *keys: str) -> Outcome:
    return Outcome((0, 2), keys, check=check)


@dataclasses.dataclass(frozen=True)
class Row:
    """One hostile input.

    Attributes:
      command: a key of sandbox.MODULES, or PYTHON.
      name: what is hostile about it.
      make: makes it in a box, and returns the arguments of the command, or for PYTHON a function to call.
      outcome: what must happen.
    """

    command: str
    name: str
    make: Callable[[Box], Sequence | Callable]
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.command}: {self.name}"


def judge(row: Row, folder: pathlib.Path, fixtures: pathlib.Path) -> list[str]:
    """Which promises a row breaks, in a folder that is made for it."""
    box = Box(folder, fixtures)
    place = os.getcwd()
    os.chdir(folder)  # what is relative by mistake lands where it is noticed
    try:
        made = row.make(box)
        before = snapshot(folder)
        seconds = sandbox.SECONDS * (1 if row.outcome.early else 5)  # where there is something to compile
        with (nothing_computed() if row.outcome.early else contextlib.nullcontext(), openers(folder),
              mock.patch.object(sandbox, "SECONDS", seconds)):
            result = run(row.command, made)
        broken = broken_promises(before, snapshot(folder), result, row.outcome.writes)
        if not result.crash:
            broken += _missed(row.outcome, result, box)
    finally:
        os.chdir(place)
    return broken


@contextlib.contextmanager
def openers(folder: pathlib.Path) -> Iterator[None]:
    """Opens all FIFOs below a folder after a while: what waits for one in native code hears no alarm."""

    def open_all() -> None:
        for place, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(place, name)
                with contextlib.suppress(OSError):
                    if stat.S_ISFIFO(os.lstat(path).st_mode):
                        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    timer = threading.Timer(sandbox.SECONDS + 2, open_all)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run(command: str, made: Sequence | Callable) -> Result:
    assert command == PYTHON or command in MODULES, command
    return call(made) if command == PYTHON else invoke(command, made)


def _missed(outcome: Outcome, result: Result, box: Box) -> list[str]:
    said = result.output + result.errors
    if result.status not in outcome.statuses:
        return [f"The exit status is {result.status}, not {outcome.statuses}; it says: {said[-600:]}"]
    missed = [f"It does not say {key!r}, but: {said[-600:]}" for key in outcome.keys
              if result.status != 0 and key not in said]
    if outcome.check and result.status == 0:
        try:
            outcome.check(result, box)
        except AssertionError as error:
            missed.append(f"Wrong in silence: {error}")
    return missed


def equal(found, expected) -> None:
    """Raises AssertionError unless two results of the Python interface are the same to the bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), (found.keys(), expected.keys())
        for key, value in expected.items():
            equal(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), (len(found), len(expected))
        for one, other in zip(found, expected):
            equal(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected, (found, expected)
