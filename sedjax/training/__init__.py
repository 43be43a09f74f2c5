"""Batches -> parameters."""
