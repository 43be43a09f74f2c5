"""Recordings to events, with a trained model."""
