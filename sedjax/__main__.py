"""`python -m sedjax COMMAND [--flags]`."""

import importlib
import sys

from sedjax import commands
from sedjax.errors import UserError

COMMANDS = {
    "train": "trains a model, or goes on where a run was cut off",
    "evaluate": "cost and figures of a trained model on one split",
    "predict": "what a trained model hears in recordings: events, segments, pictures",
    "score": "cost of a submission CSV, or a check of its format",
    "sweep": "trains the systems of a study with several seeds and compares them",
    "bench": "how fast all of it is here, and against what",
    "report": "compares trained models: tables and figures",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help", "--helpfull"):
        print("usage: python -m sedjax COMMAND [--flags]\n")
        print("\n".join(f"  {command:10} {purpose}" for command, purpose in COMMANDS.items()))
        print("\n`python -m sedjax COMMAND --help` lists the flags of a command.")
        sys.exit(0 if name else commands.USER_ERROR_STATUS)

    def unknown(argv):
        raise UserError(f"There is no command {name!r}; the commands are {', '.join(COMMANDS)}.")

    if name not in COMMANDS:
        commands.run(unknown, sys.argv[:1])
    command = importlib.import_module(f"sedjax.{name}")
    command.define_flags()
    commands.run(command.main, [f"sedjax {name}", *sys.argv[2:]])


if __name__ == "__main__":
    main()
