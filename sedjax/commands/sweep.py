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
from sedjax.studies import report
from sedjax.studies import sweep as sweep_lib
from sedjax.training import preemption
from sedjax.training.progress import is_finished

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
    if unknown := [name for name in options.only if name not in sweep.systems]:
        raise UserError(f"--only: there is no system {unknown[0]!r}; choose from {list(sweep.systems)}.")
    report.require_replaceable(folder / "report", sweep.figures)
    chosen = {run for name in options.only or sweep.systems for run in sweep.folders(name)}
    runs = {run: config for run, config in sweep.runs.items() if run in chosen or is_finished(folder / run)}
    with preemption.listen() as stop:
        not_run, failed = sweep_lib.run(runs, folder, stop)
    if stop:
        log.info("Stopped by %s: run the same command to resume.", stop.signal)
        return
    page = sweep_lib.write(sweep, folder, not_run | failed)
    print(page.read_text(encoding="utf-8") + f"\nWrote {page}.")
    if failed:
        raise UserError(f"{len(failed)} runs failed: " + "; ".join(f"{name}: {text}" for name, text in failed.items()))
