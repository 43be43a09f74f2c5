"""Recordings -> samples -> features."""
