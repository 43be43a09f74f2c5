"""Speeds that are compared fairly: the contestants take turns in one run."""

from collections.abc import Callable

import numpy as np


def take_turns(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The speed of each contestant in each round. A B A B: what slows the machine down slows all."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            found[name].append(run())
    return found


def ratios(speeds: dict[str, list[float]], ours: str, unit: str) -> dict[str, dict[str, float]]:
    """For each contestant its median speed, named `unit`, and the median of ours / theirs, with its range."""
    found = {}
    for name, values in speeds.items():
        each = np.divide(speeds[ours], values)
        found[name] = {unit: float(np.median(values)), "ratio": float(np.median(each)),
                       "lowest_ratio": float(each.min()), "highest_ratio": float(each.max())}
    return found
