"""Prepares data: features, checks, records and imported weights."""

from sedjax.core import interrupts

if interrupts.starts_command():
    interrupts.end_at_once()  # the imports of a command take seconds
