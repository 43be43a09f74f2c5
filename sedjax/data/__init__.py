"""From directories, labels and records to batches."""
