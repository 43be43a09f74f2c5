"""From recordings to samples to features."""
