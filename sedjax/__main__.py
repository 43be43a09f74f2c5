"""`sedjax COMMAND [--flags]`, also as `python -m sedjax`."""

import importlib
import sys
from collections.abc import Sequence

import sedjax
from sedjax.core import interrupts
from sedjax.core.errors import UserError

COMMANDS = {
    "Data": {
        "soundscapes": ("sedjax.data_prep.soundscapes", "synthesises a data set with exact labels"),
        "labels": ("sedjax.data_prep.labels", "makes a directory in MLPC layout of recordings and tables of events"),
        "extract": ("sedjax.data_prep.extract", "computes features of recordings"),
        "check": ("sedjax.data_prep.check", "checks a directory in MLPC layout"),
        "records": ("sedjax.data_prep.records", "builds the records that models are trained on"),
        "truth": ("sedjax.data_prep.ground_truth", "writes the ground truth of a directory to score against"),
        "import-weights": ("sedjax.data_prep.import_weights", "converts pretrained weights and published checkpoints"),
    },
    "Training": {
        "train": ("sedjax.commands.train", "trains a model, or resumes an interrupted training"),
        "sweep": ("sedjax.commands.sweep", "trains the systems of a study with several seeds and compares them"),
    },
    "Results": {
        "evaluate": ("sedjax.commands.evaluate", "computes cost and figures of a trained model on one split"),
        "predict": ("sedjax.commands.predict", "detects events in recordings"),
        "score": ("sedjax.commands.score", "scores predictions, or checks the format of a submission"),
        "report": ("sedjax.commands.report", "compares trained models in tables and figures"),
    },
    "Machines": {
        "bench": ("sedjax.commands.bench", "measures speed, or compiles for machines that are not present"),
        "devices": ("sedjax.commands.devices", "shows what JAX computes on, and whether it misses an accelerator"),
    },
}
MODULES = {name: module for commands in COMMANDS.values() for name, (module, _) in commands.items()}


def main() -> None:
    interrupts.end_at_once()
    from sedjax.commands import cli  # the first slow import

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in MODULES:
        cli.run(overview, [sys.argv[0], "--", name])
        return
    command = importlib.import_module(MODULES[name])
    cli.run(command.main, [f"sedjax {name}", *sys.argv[2:]], command.define_flags)


def overview(argv: Sequence[str]) -> None:
    """Prints the version, or the commands by group. Raises UserError for an unknown command."""
    from sedjax.core.bounds import shown, unknown

    name = argv[-1]
    if name == "--version":
        print(f"sedjax {sedjax.__version__}")
    elif name in ("", "-h", "--help", "--helpfull"):
        print("usage: sedjax COMMAND [--flags]")
        for stage, commands in COMMANDS.items():
            print(f"\n{stage}\n" + "\n".join(f"  {command:15} {purpose}" for command, (_, purpose) in commands.items()))
        print("\n`sedjax COMMAND --help` lists the flags of a command, `sedjax --version` prints the version.")
        sys.exit(0 if name else 2)
    else:
        raise UserError(f"There is no command {shown(name)}{unknown(name, MODULES)}")


if __name__ == "__main__":
    main()
