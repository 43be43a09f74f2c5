"""`sedjax devices`: the devices JAX computes on; status 1 if it overlooks an accelerator of this machine."""

import sys
from collections.abc import Sequence

from sedjax.commands.cli import require_no_arguments
from sedjax.core import parallel


def define_flags() -> None:
    parallel.define_flags()


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    parallel.start()  # warns of overlooked accelerators
    if parallel.is_process_zero():
        print(f"JAX sees {parallel.describe_devices()}.")
    if parallel.overlooked():
        sys.exit(1)
