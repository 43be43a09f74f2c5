"""Apache Beam: processes recordings in parallel on workers (extra `beam`).

Every worker must see recordings and outputs under the same path: on this machine, or on a file system that all
machines mount.
"""

import contextlib
import io
import pathlib
import pickle
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence

from sedjax.core import files
from sedjax.core.errors import UserError

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
except ModuleNotFoundError as error:
    raise UserError("--beam_options needs Apache Beam, which is not installed: install the extra `beam` as "
                    "described in docs/data.md.") from error


def pipeline_options(text: str) -> PipelineOptions:
    """Parses options as on a command line, such as "--runner=FlinkRunner --flink_master=host:8081".

    Raises UserError for an unknown runner, invalid values, and unknown options.
    """
    messages = io.StringIO()
    try:
        options = PipelineOptions(shlex.split(text))
        with contextlib.redirect_stderr(messages):
            values = options.get_all_options(retain_unknown_options=True)
        apache_beam.Pipeline(options=options)
    except SystemExit as error:
        raise UserError(f"--beam_options: {messages.getvalue().strip().rpartition(' error: ')[2]}.") from error
    except (ImportError, ValueError) as error:
        raise UserError(f"--beam_options: {' '.join(str(error).split())}") from error
    unknown = values.keys() - PipelineOptions([]).get_all_options().keys()
    # Options of Flink and Spark may be known only to their job server.
    if unknown and (values["runner"] or StandardOptions.DEFAULT_RUNNER) in StandardOptions.LOCAL_RUNNERS:
        raise UserError(f"--beam_options: there is no option --{min(unknown)}.")
    return options


def over(function: Callable, items: Sequence, folder: pathlib.Path, options: str) -> list:
    """Like `list(map(function, items))`, but on workers; everything must be picklable.

    Args:
      function: module-level function, or a functools.partial of one.
      items: its arguments, one per call.
      folder: folder for the workers' temporary results.
      options: options of the pipeline.

    Raises:
      UserError: the options are invalid, or the function raised it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".beam.", dir=folder)
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror}.") from error
    with temporary as name:
        paths = [pathlib.Path(name) / f"{number}.pickle" for number in range(len(items))]
        _run(options, apache_beam.Create(list(zip(items, paths))) | apache_beam.Reshuffle()
             | apache_beam.Map(_save, function))
        return [pickle.loads(path.read_bytes()) for path in paths]


def _run(options: str, steps: apache_beam.PTransform) -> None:
    """Raises UserError if the options are invalid, or if a worker raised it."""
    try:
        with apache_beam.Pipeline(options=pipeline_options(options)) as pipeline:
            _ = pipeline | steps
    except (UserError, RuntimeError) as error:  # RuntimeError: how a runner reports an error of another process
        match = re.search(r"\bUserError: (.+?)( \[while running|\n|$)", f"{type(error).__name__}: {error}")
        if match is None:
            raise
        raise UserError(match[1]) from error


def _save(item_and_path: tuple[object, pathlib.Path], function: Callable) -> None:
    item, path = item_and_path
    result = pickle.dumps(function(item))
    with files.atomic_output(path) as temporary:
        temporary.write_bytes(result)
