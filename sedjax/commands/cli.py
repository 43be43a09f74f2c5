"""Shared by all commands: flags, logging, user errors, signals, and the list of unreadable recordings."""

import contextlib
import errno
import gc
import logging
import os
import pathlib
import re
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from absl import logging as absl_logging

from sedjax.core import interrupts
from sedjax.core.bounds import unknown
from sedjax.core.errors import UserError, printable
from sedjax.core.files import remove_output, write_csv

USER_ERROR_STATUS = 2
SOME_BAD_STATUS = 1
BROKEN_PIPE_STATUS = 141  # 128 + SIGPIPE
MAY_BE_EMPTY = {"beam_options"}  # free text, neither a path nor a name
SHOWN_CHARACTERS = 300
BAD_LIST = "bad_recordings.csv"
log = logging.getLogger("sedjax")


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None,
        define_flags: Callable[[], None] | None = None) -> None:
    """Defines flags (if given), parses them, runs `main(remaining arguments)`, and exits on errors.

    Errors that a user can cause, such as a UserError, an unknown flag or a full disk, print one sentence to standard
    error and exit with status 2; Ctrl-C prints one line and exits with status 130.
    """
    argv = list(sys.argv if argv is None else argv)
    interrupts.raise_first()
    try:
        _log_to_stderr()
        if hasattr(sys.stdout, "reconfigure"):  # file and class names may not be printable
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            if define_flags:
                define_flags()  # defining --config reads the files that --flagfile names
            if {"--help", "-h"} & set(argv[: argv.index("--")] if "--" in argv else argv):
                print(help_text(main))
            else:
                main(_parse(argv))
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        _drop_output()
        sys.exit(BROKEN_PIPE_STATUS)
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)
        gc.collect()  # releases resources such as the locks of worker processes
        interrupts.end()
    except Exception as error:
        text = _sentence(error)
        if text is None:
            raise
        print(f"Error: {printable(text)}", file=sys.stderr)
        if isinstance(error, OSError):
            _drop_output()  # Python would try to flush it again at exit
        sys.exit(USER_ERROR_STATUS)


def help_text(main: Callable) -> str:
    """The purpose of a command, and all its flags."""
    lines = [(sys.modules[main.__module__].__doc__ or "").strip(), "", "flags:"]
    for name, flag in sorted(own_flags().items()):
        default = "" if flag.default in (None, [], False) else f" (default: {flag.default_as_str})"
        lines.append(textwrap.fill(f"--{'[no]' if flag.boolean else ''}{name}: {flag.help}{default}", 100,
                                   initial_indent="  ", subsequent_indent="      "))
    config = own_flags().get("config")
    if config is not None:
        lines += ["", config.parser.keys_help()]
    return "\n".join(lines)


def own_flags() -> dict[str, flags.Flag]:
    """The flags of this command by name, without those of libraries."""
    modules = flags.FLAGS.flags_by_module_dict()
    return {flag.name: flag for module, defined in modules.items() for flag in defined
            if module.startswith(("sedjax.", "data_prep.")) or module == sys.argv[0]}


def _parse(argv: list[str]) -> list[str]:
    """The arguments that are not flags. Raises UserError for invalid flags."""
    known = own_flags()
    command = pathlib.PurePath(argv[0]).stem.removeprefix("sedjax ")
    for flag in known.values():
        flag.allow_overwrite = False  # otherwise the first value would be silently ignored
    # The last value of a repeated config key wins; ml_collections would concatenate tuples.
    last = {arg.partition("=")[0]: i for i, arg in enumerate(argv)}
    argv = [arg for i, arg in enumerate(argv)
            if not re.match(r"--config\.[^=]*=", arg) or last[arg.partition("=")[0]] == i]
    try:
        remaining = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config.") and "config" in known:
            raise UserError(f"--{error.flagname} needs --config before it: {known['config'].help}") from error
        raise UserError(f"{command} has no flag --{error.flagname}{unknown(error.flagname, known, '--')}") from error
    except (AttributeError, KeyError) as error:  # ml_collections repr-quotes its message
        text = str(error.args[0]).replace("\\n", " ").replace("\\'", "'").strip("'\"")
        raise UserError(f"There is no such config key: {' '.join(text.split())}") from error
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError, MemoryError, RecursionError) as error:
        text = " ".join(str(error).split())
        if missing := re.search(r"Flag --(\w+) must have a value other than None", text):
            raise UserError(f"{command} needs --{missing[1]}: {known[missing[1]].help}") from error
        if repeated := re.match(r"flag --([\w.]+)=.*: already defined as", text):
            raise UserError(f"--{repeated[1]} is given twice.") from error
        text = re.sub(r"invalid literal for int\(\) with base 10: .*", "it must be an integer", text)
        raise UserError(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...") from error
    for name, flag in known.items():
        if flag.present and flag.value in ("", [], [""]) and name not in MAY_BE_EMPTY:
            raise UserError(f"--{name} is given without a value: {flag.help}")
        if "\0" in str(flag.value if isinstance(flag.value, str) else ""):
            raise UserError(f"--{name} contains a zero byte.")
    return remaining


def _drop_output() -> None:
    """Discards what has not been written to standard output yet."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_no_arguments(argv: Sequence[str]) -> None:
    """Raises UserError if anything but flags was given."""
    if len(argv) > 1:
        raise UserError(f"This command takes flags only, not {argv[1]!r}; --help lists them.")


def file_path(text: str) -> pathlib.Path:
    """The path that a flag names. Raises UserError for an address such as gs://bucket/folder."""
    if "://" in text:
        raise UserError(f"{text} is not a path: mount it on every machine that takes part, and pass the folder where "
                        "it is mounted.")
    return pathlib.Path(text)


def _sentence(error: Exception) -> str | None:
    """The message for the user, or None if the error is a bug rather than a user error."""
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, flags.Error):
        return text
    # Any write can fill the disk; the checkpoint writer wraps the system's error in one of its own.
    if "No space left on device" in text:
        return "The disk is full: free some space and run the command again; completed files are intact."
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return ("There is not enough memory: lower data.batch_size, data.max_frames or the sizes of the model "
                f"({text[:200] or 'size unknown'}).")
    if isinstance(error, RecursionError):
        return f"An input is nested too deeply ({text})."
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EDQUOT):
        return f"Cannot write {error.filename}: {error.strerror}."
    if isinstance(error, OSError) and error.errno and error.filename is not None:  # reading or writing: unknown
        return f"Cannot access {error.filename}: {error.strerror}."
    return None


def _log_to_stderr() -> None:
    """Shows the logs of sedjax and data_prep, and only the warnings of libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Orbax re-raises the errors of its threads; the tracebacks that they log first add nothing.
    absl_logging.get_absl_logger().addFilter(_is_not_of_an_orbax_thread)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("sedjax", "data_prep"):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).propagate = False
    sys.unraisablehook = _unraisable


def _is_not_of_an_orbax_thread(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def _unraisable(event: "sys.UnraisableHookArgs") -> None:
    """Handles exceptions raised in callbacks, for example those that JAX runs after garbage collection."""
    if issubclass(event.exc_type, KeyboardInterrupt):
        interrupts.again()
    else:
        sys.__unraisablehook__(event)


def write_bad(folder: pathlib.Path, bad: dict[str, str]) -> None:
    """Logs unreadable recordings with reasons and lists them in BAD_LIST; removes that file if there are none."""
    path = folder / BAD_LIST
    rows = sorted((printable(name), printable(reason)) for name, reason in bad.items())
    for name, reason in rows:
        log.warning("%s: %s", name, reason)
    if not rows:
        remove_output(path)
        return
    write_csv(path, [("filename", "reason"), *rows])


@contextlib.contextmanager
def tidy_sigterm() -> Iterator[None]:
    """Makes SIGTERM unwind the block as Ctrl-C does, leaving nothing half-written, and exit with status 143."""
    def stop(number: int, frame) -> None:
        log.warning("Terminated; all files written so far are complete.")
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
