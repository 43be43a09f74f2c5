"""Flags of the rules by which probabilities become events, the same in all commands."""

from absl import flags

from sedjax.core.errors import UserError, printable
from sedjax.scoring.event_rules import DEFAULTS, Value

SECONDS = " in seconds; a number, or CLASS=NUMBER,CLASS=NUMBER. Default: {}."
FLAGS = {
    "threshold": "Probability that events, and active segments, exceed; a number, or CLASS=NUMBER,CLASS=NUMBER. "
                 "Default: the model's.",
    "low_threshold": "Probability down to which an event extends on both sides (hysteresis). Default: the threshold.",
    "median": "Length of the median filter that smooths probabilities before events are found,"
              + SECONDS.format(DEFAULTS["median"]),
    "merge_gap": "Longest gap between two events of a class that are merged," + SECONDS.format(DEFAULTS["merge_gap"]),
    "min_duration": "Shortest event," + SECONDS.format(DEFAULTS["min_duration"]),
}
ONLY_EVENTS = tuple(name for name in FLAGS if name != "threshold")


def define_flags() -> None:
    for name, text in FLAGS.items():
        flags.DEFINE_string(name, None, text)


def changes() -> dict[str, Value]:
    """What the flags change, as for event_rules.changed. Raises UserError that names the flag."""
    return {name: parse(name, flags.FLAGS[name].value) for name in FLAGS if flags.FLAGS[name].value is not None}


def parse(name: str, text: str) -> Value:
    """The number, or the numbers by class, in "0.4" or "Siren=0.3,Dog Bark=0.6", the value of the flag `name`."""
    by_class = {}
    try:
        for part in text.split(","):
            label, equals, number = part.rpartition("=")
            if not equals:
                return float(text)
            by_class[label.strip()] = float(number)
    except ValueError:
        raise UserError(f"--{name}={printable(text)}: write one number, or CLASS=NUMBER,CLASS=NUMBER.") from None
    return by_class
