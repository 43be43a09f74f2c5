"""The version of sedjax."""

__version__ = "0.1.0"
