"""Apache Beam: what one process does to one recording after another, workers do to many (extra `beam`).

Recordings and outputs lie where every worker sees them under the same path: on this machine, or on a file system that
all machines mount.
"""

import functools
import pathlib
import re
import shlex
import uuid
from collections.abc import Iterator, Sequence

from data_prep.extraction import Job, Waiting, outcomes
from data_prep.journal import append_line, read_lines, worker_file, worker_files
from sedjax.errors import UserError

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    raise UserError("--beam_options needs Apache Beam, which is not installed: install the extra `beam`, as "
                    "data_prep/README.md says.") from error

GROUP = 16  # recordings that a worker takes at once


def pipeline_options(text: str) -> PipelineOptions:
    """Options as on a command line, such as "--runner=FlinkRunner --flink_master=host:8081".

    Raises UserError for one that Beam does not know.
    """
    known = PipelineOptions(shlex.split(text))
    return known


def extract(job: Job, waiting: Sequence[Waiting], path: pathlib.Path, options: str) -> Iterator[dict]:
    """What data_prep.extraction.outcomes yields, from all workers together and in any order, when they are done.

    Args:
      job: what to make.
      waiting: what to make it of.
      path: of the journal, beside which workers note what they have done.
      options: of the pipeline.

    Raises:
      UserError: the options are wrong, or a file cannot be written.
    """
    groups = [waiting[start : start + GROUP] for start in range(0, len(waiting), GROUP)]
    try:
        with apache_beam.Pipeline(options=pipeline_options(options)) as pipeline:
            _ = pipeline | apache_beam.Create(groups) | apache_beam.Reshuffle() | apache_beam.Map(_work, job, path)
    except RuntimeError as error:  # so a runner wraps what a worker raises
        if said := re.search(r"\bUserError: (.+?)( \[while running|\n|$)", str(error)):
            raise UserError(said[1]) from error
        raise
    for each in worker_files(path):
        yield from read_lines(each)
        each.unlink()


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
