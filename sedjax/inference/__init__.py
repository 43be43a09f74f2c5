"""Recordings -> events."""
