"""What all commands share: flags, errors that a person can cause, outputs that are whole or not there."""

import collections
import contextlib
import csv
import errno
import itertools
import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from absl import logging as absl_logging

from sedjax.errors import UserError
from sedjax.files import atomic_output, printable, remove_output

USER_ERROR_STATUS = 2
SOME_BAD_STATUS = 1
TERMINATED_STATUS = 128 + signal.SIGTERM
BAD_LIST = "bad_recordings.csv"
log = logging.getLogger("sedjax")


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Parses absl flags, runs `main(remaining arguments)` and ends the process.

    A UserError, an unknown flag or an unknown config key ends in one sentence on standard error and exit status 2.
    """
    argv = list(sys.argv if argv is None else argv)
    _log_to_stderr()
    if "--help" in argv or "-h" in argv:
        module = main.__module__ if main.__module__ != "__main__" else sys.argv[0]
        print(f"{(sys.modules[main.__module__].__doc__ or '').strip()}\n{flags.FLAGS.module_help(module)}")
        sys.exit(0)
    try:
        try:
            arguments = flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:  # ml_collections quotes its own text
            text = str(error.args[0]).replace("\\n", " ").replace("\\'", "'").strip("'\"")
            raise UserError(f"There is no such config key: {' '.join(text.split())}") from error
        except (flags.Error, TypeError, ValueError, OSError) as error:
            raise UserError(" ".join(str(error).split())) from error
        main(arguments)
    except Exception as error:
        text = _sentence(error)
        if text is None:
            raise
        print(f"Error: {printable(text)}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


def require_no_arguments(argv: Sequence[str]) -> None:
    """Raises UserError if anything but flags was given."""
    if len(argv) > 1:
        raise UserError(f"This command takes flags only, not {argv[1]!r}; --help lists them.")


def file_path(text: str) -> pathlib.Path:
    """The path that a flag names. Raises UserError for an address such as gs://bucket/folder."""
    if "://" in text:
        raise UserError(f"{text} is not a path: mount what it names, on every machine that works on it, and name the "
                        "folder where it is mounted.")
    return pathlib.Path(text)


def _sentence(error: Exception) -> str | None:
    """What to tell the user, or None if the error is not one that a person can cause."""
    if isinstance(error, UserError):
        return str(error)
    # A disk fills up at any write; what writes checkpoints wraps the system's error in one of its own.
    if "No space left on device" in str(error):
        return "The disk is full: make room and start again; what was saved whole is still there."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT):
        return f"Cannot write {error.filename}: {error.strerror}."
    return None


def _log_to_stderr() -> None:
    """Shows what sedjax and data_prep say, and of the libraries only what is a warning."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Orbax raises what its threads fail with; the traceback of each thread before it says nothing more.
    absl_logging.get_absl_logger().addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("sedjax", "data_prep"):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).propagate = False


def write_bad(folder: pathlib.Path, bad: dict[str, str]) -> None:
    """Says which recordings cannot be read and why, also in the BAD_LIST of a folder; there is none if all can be."""
    path = folder / BAD_LIST
    rows = sorted((printable(name), printable(reason)) for name, reason in bad.items())
    for name, reason in rows:
        log.warning("%s: %s", name, reason)
    if not rows:
        remove_output(path)
        return
    with atomic_output(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("filename", "reason"), *rows])


def distinct_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The last part of each path, or as many as tell them apart, `printable`.

    Raises UserError if a path comes twice, or two cannot be told apart in print.
    """
    real: set[str] = set()
    for path in paths:
        place = os.path.realpath(path)
        if place in real:
            raise UserError(f"{path} is given twice.")
        real.add(place)
    parts = [pathlib.Path(printable(os.path.abspath(path))).parts for path in paths]
    if alike := [part for part, count in collections.Counter(parts).items() if count > 1]:
        raise UserError(f"Two files have a name that is printed as {pathlib.PurePath(*alike[0])}: rename one.")
    depth = next(n for n in itertools.count(1) if len({part[-n:] for part in parts}) == len(parts))
    return [str(pathlib.PurePath(*part[-depth:])) for part in parts]


@contextlib.contextmanager
def tidy_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that nothing half-written stays, and the process with status 143."""
    def stop(number: int, frame) -> None:
        sys.exit(TERMINATED_STATUS)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit as end:
        if end.code == TERMINATED_STATUS:
            log.warning("Terminated; what has been written is whole.")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
