"""Sweeps: lists of experiments; `get_config()` returns one as a ConfigDict."""
