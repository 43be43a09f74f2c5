"""`sedjax train`: trains until the cost on the validation split stops falling; the same command resumes."""

import pathlib
from collections.abc import Sequence

from absl import flags

from sedjax.commands import config_flag
from sedjax.commands.cli import require_no_arguments
from sedjax.core import parallel
from sedjax.training import preemption
from sedjax.training.trainer import train


def define_flags() -> None:
    config_flag.define_flag()
    parallel.define_flags()
    flags.DEFINE_string("workdir", None, "Run directory for checkpoints and metrics; an existing one is resumed.",
                        required=True)


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    parallel.start()
    with preemption.listen() as stop:
        train(config_flag.from_flag(), pathlib.Path(flags.FLAGS.workdir), stop)
