"""Runs a command on hostile input, in this process, and says which promises it broke."""

import contextlib
import dataclasses
import faulthandler
import hashlib
import importlib
import io
import logging
import os
import pathlib
import resource
import shutil
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

from absl import flags

from sedjax.commands import cli
from sedjax.core import interrupts
from sedjax.core.errors import UserError, printable
from sedjax.training import workdir

MODULES = {name: f"sedjax.data_prep.{name}" for name in ("check", "records", "extract", "soundscapes", "ground_truth",
                                                   "labels",
                                                   "import_weights")} | {
    name: f"sedjax.commands.{name}" for name in ("train", "evaluate", "predict", "score", "report", "sweep", "bench")}
SECONDS = 20
GROWTH_BYTES = 700 << 20
ADDRESS_BYTES = 4 << 30  # that a command may reserve; what takes more ends in a MemoryError, not in a dead machine
ABOUT_EARLIER_RUNS = ("bad_recordings.csv",)  # which a later run may take back
LOGGERS = [logging.getLogger(name) for name in ("sedjax", "data_prep")]


class Hang(BaseException):
    """A command took longer than SECONDS."""


class Computed(BaseException):
    """A command began to compute or to write a workdir, although its input is to be refused before that."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended.

    Attributes:
      status: exit status; None after a traceback, a hang, or a computation that was to be refused.
      output, errors: what it printed.
      crash: the traceback, if there was one, or what else must not be.
      value: what a function of the Python interface returned.
      growth_bytes: by which its memory grew at most.
    """

    status: int | None
    output: str
    errors: str
    crash: str = ""
    value: object = None
    growth_bytes: int = 0


def invoke(command: str, arguments: Sequence[str]) -> Result:
    """Runs a command as its process would, with flags of its own."""
    module, before = importlib.import_module(MODULES[command]), set(flags.FLAGS)
    defined: set[str] = set()

    def main(argv: Sequence[str]) -> None:
        defined.update(set(flags.FLAGS) - before)  # not later: what main() imports may define flags that it keeps
        module.main(argv)

    main.__module__ = module.__name__

    def run() -> None:
        try:
            cli.run(main, argv, module.define_flags)
        finally:
            for name in defined or set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)

    argv = [f"sedjax {command}", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv):  # where ml_collections looks for --config.key=value
        return watch(run)


def call(function: Callable) -> Result:
    """Calls a function of the Python interface; a UserError counts as the command's exit status for it."""

    def run() -> object:
        cli._log_to_stderr()
        try:
            return function()
        except UserError as error:
            print(f"Error: {printable(str(error))}", file=sys.stderr)
            sys.exit(cli.USER_ERROR_STATUS)

    return watch(run)


def watch(run: Callable[[], object]) -> Result:
    """Calls `run` and catches how it ends, within SECONDS."""
    output, errors = io.StringIO(), io.StringIO()
    status, crash, value = None, "", None
    loggers = [(logger, logger.handlers, logger.level, logger.propagate) for logger in LOGGERS]
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of what ran before
    start_bytes = _memory_bytes("VmRSS")
    interrupt = signal.getsignal(signal.SIGINT)
    with (contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), _bounds(),
          mock.patch("sedjax.core.interrupts.end", stop)):
        try:
            value = run()
            status = 0
        except SystemExit as end:
            status = 0 if end.code is None else end.code
        except Hang as error:
            crash = f"It takes more than {SECONDS} s:\n" + "".join(traceback.format_tb(error.__traceback__)[-3:])
        except Computed as error:
            crash = "".join(traceback.format_tb(error.__traceback__)[-3:-1]) + "It is not refused before it computes."
        except BaseException:
            crash = traceback.format_exc(limit=-4)
    signal.signal(signal.SIGINT, interrupt)
    for logger, handlers, level, propagate in loggers:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    if "Traceback (most recent call last)" in errors.getvalue():
        crash += errors.getvalue()
    return Result(status, output.getvalue(), errors.getvalue(), crash, value, _memory_bytes("VmHWM") - start_bytes)


def stop(number: int = signal.SIGINT, frame: object = None) -> None:
    """Ends a command as interrupts.end does a process."""
    sys.exit(interrupts.STATUS)


def _memory_bytes(field: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) << 10


@contextlib.contextmanager
def _bounds() -> Iterator[None]:
    def ring(number, frame):
        raise Hang

    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    reserved = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESS_BYTES, reserved[1]))
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True, file=sys.__stderr__)  # where no Python runs
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, reserved)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def nothing_computed() -> Iterator[None]:
    """What is to be refused at once is not compiled, nor is a workdir begun for it."""

    def computed(*args, **kwargs):
        raise Computed

    def compiled(*args, **kwargs):
        return computed

    prepare = workdir.prepare

    def prepared(*args, **kwargs):
        prepare(*args, **kwargs)
        raise Computed

    with (mock.patch("sedjax.core.parallel.compile_step", compiled),
          mock.patch("sedjax.training.workdir.prepare", prepared)):
        yield


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    """What is at each path below a folder: digests of files, targets of links, kinds of anything else."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in folders:
            path = os.path.join(place, name)
            found[os.path.relpath(path, folder)] = os.readlink(path) if os.path.islink(path) else "folder"
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                content = str(stat.S_IFMT(status.st_mode))
            found[os.path.relpath(path, folder)] = content
    return found


def broken_promises(before: dict[str, str], after: dict[str, str], result: Result, writes: Sequence[str]) -> list[str]:
    """What a command did that none may do.

    Args:
      before, after: snapshots of the folder that it ran on.
      result: how it ended.
      writes: files that it may write, folders in which it may write, whatever it finds there of its own.
    """
    broken = []
    if result.crash:
        broken.append(result.crash.strip())
    elif result.status not in (0, 1, 2, 130, 141):
        broken.append(f"The exit status is {result.status}.")
    if result.growth_bytes > GROWTH_BYTES:
        broken.append(f"It takes {result.growth_bytes >> 20:,} MiB.")
    errors = [line for line in result.errors.splitlines() if line.startswith("Error: ")]
    if result.status == 2 and (len(errors) != 1 or not result.errors.rstrip().splitlines()[-1].startswith("Error: ")):
        broken.append(f"The error is not one line at the end: {result.errors!r}.")
    if any(not (c.isprintable() or c in "\n\r\t") for c in result.errors + result.output) and not result.crash:
        broken.append("Control characters are printed.")
    for path, content in before.items():
        if path not in after and _within(path, writes) and os.path.basename(path) in ABOUT_EARLIER_RUNS:
            continue
        if path not in after:
            broken.append(f"{path!r} is gone.")
        elif after[path] != content and not _within(path, writes):
            broken.append(f"{path!r} is changed.")
    for path in after.keys() - before.keys():
        name = os.path.basename(path)
        if (name.startswith(".") and name != ".sedjax_outputs") or "tmp" in name:
            broken.append(f"{path!r} is left over.")
        elif not _within(path, writes) and name != ".sedjax_outputs":
            broken.append(f"{path!r} is written.")
    return broken


def _within(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(place + os.sep) or place.startswith(path + os.sep) for place in places)


class Box:
    """A folder of its own for one row. An attribute is a fixture of that name, copied into it at the first use."""

    def __init__(self, folder: pathlib.Path, fixtures: pathlib.Path):
        self.folder, self._fixtures = folder, fixtures
        folder.mkdir(parents=True)

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.folder / name

    def __getattr__(self, name: str) -> pathlib.Path:
        paths = [path for path in self._fixtures.iterdir() if path.name.partition(".")[0] == name]
        if not paths:
            raise AttributeError(name)
        path, target = paths[0], self.folder / paths[0].name
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target)
        setattr(self, name, target)
        return target
