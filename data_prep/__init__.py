"""From recordings to records."""

from sedjax.core import interrupts

if interrupts.starts_command():
    interrupts.end_at_once()  # the imports of a command take seconds
