"""From recordings to records."""
