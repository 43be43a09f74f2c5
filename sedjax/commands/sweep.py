"""`sedjax sweep`: trains the systems of a study with several seeds and compares them; the same command resumes.

A study is a config file: a list of systems, most of which change a few keys of another one (configs/sweeps/).
"""

import logging
import pathlib
from collections.abc import Sequence

from absl import flags

from sedjax.commands import config_flag
from sedjax.commands.cli import require_no_arguments
from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.studies import study
from sedjax.studies import sweep as sweep_lib
from sedjax.training import preemption

log = logging.getLogger("sedjax")


def define_flags() -> None:
    config_flag.define_flag()
    flags.DEFINE_string("workdir", None, "Folder of the sweep: one folder per system with one per seed, and report/.",
                        required=True)
    flags.DEFINE_list("only", [], "Comma-separated names of the systems to train. Default: all.")


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    parallel.cache_compilations()
    options = flags.FLAGS
    sweep, folder = config_flag.from_flag(sweep_lib.freeze), pathlib.Path(options.workdir)
    if unknown := [name for name in options.only if name not in {row.name for row in sweep.rows}]:
        raise UserError(f"--only: there is no system {unknown[0]!r}; choose from {[row.name for row in sweep.rows]}.")
    study.require_replaceable(sweep.figures, folder)
    chosen = [row for row in sweep.rows if not options.only or row.name in options.only]
    with preemption.listen() as stop:
        not_run, failed = sweep_lib.run(chosen, folder, stop)
        failed |= sweep_lib.of_others([row for row in sweep.rows if row not in chosen], folder)
    if stop:
        log.info("Stopped by %s: run the same command to resume.", stop.signal)
        return
    page = study.write(sweep.rows, sweep.figures, folder, not_run | failed)
    print(page.read_text(encoding="utf-8") + f"\nWrote {page}.")
    if failed:
        raise UserError(f"{len(failed)} runs failed: " + "; ".join(f"{name}: {text}" for name, text in failed.items()))
