"""Directories, labels and records -> batches."""
