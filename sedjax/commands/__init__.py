"""One file per command: its flags and its output."""
