"""`python -m sedjax COMMAND [--flags]`."""

import importlib
import sys
from collections.abc import Sequence

import sedjax
from sedjax import interrupts
from sedjax.errors import UserError

COMMANDS = {
    "train": "trains a model, or resumes where a run was interrupted",
    "evaluate": "cost and figures of a trained model on one split",
    "predict": "what a trained model hears in recordings: events, segments, pictures",
    "score": "cost of a submission CSV, or a check of its format",
    "sweep": "trains the systems of a study with several seeds and compares them",
    "bench": "how fast all of it is here, and against what",
    "devices": "what JAX computes on here, and whether it overlooks an accelerator",
    "report": "compares trained models: tables and figures",
}


def main() -> None:
    interrupts.end_at_once()
    from sedjax import commands  # the first import that takes a while

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        commands.run(overview, [sys.argv[0], "--", name])
        return
    command = importlib.import_module(f"sedjax.{name}")
    commands.run(command.main, [f"sedjax {name}", *sys.argv[2:]], command.define_flags)


def overview(argv: Sequence[str]) -> None:
    """Prints the version, or what the commands are. Raises UserError for a command that there is not."""
    from sedjax.bounds import shown, unknown

    name = argv[-1]
    if name == "--version":
        print(f"sedjax {sedjax.__version__}")
    elif name in ("", "-h", "--help", "--helpfull"):
        print("usage: sedjax COMMAND [--flags]\n")
        print("\n".join(f"  {command:10} {purpose}" for command, purpose in COMMANDS.items()))
        print("\n`sedjax COMMAND --help` lists the flags of a command, `sedjax --version` is the version.")
        sys.exit(0 if name else 2)
    else:
        raise UserError(f"There is no command {shown(name)}{unknown(name, COMMANDS)}")


if __name__ == "__main__":
    main()
