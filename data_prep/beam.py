"""Apache Beam: what one process does to one recording after another, workers do to many (extra `beam`).

Recordings and outputs lie where every worker sees them under the same path: on this machine, or on a file system that
all machines mount.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import pickle
import re
import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence

from data_prep.extraction import Job, Waiting, outcomes
from data_prep.journal import Bad, Entry, append_line, worker_file, worker_files
from sedjax.core import files
from sedjax.core.errors import UserError

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
except ModuleNotFoundError as error:
    raise UserError("--beam_options needs Apache Beam, which is not installed: install the extra `beam`, as "
                    "data_prep/README.md says.") from error


def pipeline_options(text: str) -> PipelineOptions:
    """Options as on a command line, such as "--runner=FlinkRunner --flink_master=host:8081".

    Raises UserError for a runner that does not exist, for values that are wrong, and for options that nobody knows.
    """
    said = io.StringIO()
    try:
        options = PipelineOptions(shlex.split(text))
        with contextlib.redirect_stderr(said):
            given = options.get_all_options(retain_unknown_options=True)
        apache_beam.Pipeline(options=options)
    except SystemExit as error:
        raise UserError(f"--beam_options: {said.getvalue().strip().rpartition(' error: ')[2]}.") from error
    except (ImportError, ValueError) as error:
        raise UserError(f"--beam_options: {' '.join(str(error).split())}") from error
    unknown = given.keys() - PipelineOptions([]).get_all_options().keys()
    # Those of Flink and Spark may be known to their job server only.
    if unknown and (given["runner"] or StandardOptions.DEFAULT_RUNNER) in StandardOptions.LOCAL_RUNNERS:
        raise UserError(f"--beam_options: there is no option --{min(unknown)}.")
    return options


def each(function: Callable, items: Sequence, *arguments) -> apache_beam.PTransform:
    """What a function of a module makes of each item and the arguments, which must all be picklable."""
    return apache_beam.Create(items) | apache_beam.Reshuffle() | apache_beam.Map(function, *arguments)


def over(function: Callable, items: Sequence, folder: pathlib.Path, options: str) -> list:
    """As `list(map(function, items))`, on workers; all must be picklable.

    Args:
      function: of a module, or a functools.partial of one.
      items: what it takes, one each.
      folder: where workers can leave what they found, until it is read.
      options: of the pipeline.

    Raises:
      UserError: the options are wrong, or the function raised it.
    """
    groups = _groups(items, 256)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".beam.", dir=folder)
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror}.") from error
    with temporary as name:
        files = [pathlib.Path(name) / f"{number}.pickle" for number in range(len(groups))]
        _run(options, each(_save, list(zip(groups, files)), function))
        return [found for file in files for found in pickle.loads(file.read_bytes())]


def extract(job: Job, waiting: Sequence[Waiting], path: pathlib.Path, options: str) -> Iterator[Entry | Bad]:
    """What data_prep.extraction.outcomes yields, from all workers together and in any order, when they are done.

    Args:
      job: what to make.
      waiting: what to make it of.
      path: of the journal, beside which workers note what they have done.
      options: of the pipeline.

    Raises:
      UserError: the options are wrong, or a file cannot be written.
    """
    job, path = job.absolute(), path.absolute()
    waiting = [dataclasses.replace(one, path=one.path.absolute()) for one in waiting]
    _run(options, each(_work, _groups(waiting, 16), job, path))
    for file in worker_files(path):
        yield from files.read_json_lines(file, Entry | Bad)
        file.unlink()


def _run(options: str, steps: apache_beam.PTransform) -> None:
    """Raises UserError if the options are wrong, or a worker did."""
    try:
        with apache_beam.Pipeline(options=pipeline_options(options)) as pipeline:
            _ = pipeline | steps
    except (UserError, RuntimeError) as error:  # RuntimeError: so a runner says what another process raised
        said = re.search(r"\bUserError: (.+?)( \[while running|\n|$)", f"{type(error).__name__}: {error}")
        if said is None:
            raise
        raise UserError(said[1]) from error


def _groups(items: Sequence, size: int) -> list[Sequence]:
    """Each is what a worker takes at once."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _save(items_and_file: tuple[Sequence, pathlib.Path], function: Callable) -> None:
    items, file = items_and_file
    with files.atomic_output(file) as temporary:
        temporary.write_bytes(pickle.dumps([function(item) for item in items]))


def _work(waiting: Sequence[Waiting], job: Job, path: pathlib.Path) -> None:
    for outcome in outcomes(job, _extractor(job), waiting):
        append_line(worker_file(path, _worker()), outcome)


@functools.cache
def _extractor(job: Job):
    return job.extractor()


@functools.cache
def _worker() -> str:
    """A name that no other worker has."""
    return uuid.uuid4().hex
