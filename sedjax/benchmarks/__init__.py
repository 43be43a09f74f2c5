"""Benchmarks of speed, against ceilings and peers, and compilation for other machines."""
