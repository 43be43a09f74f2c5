"""Fair speed comparisons: contestants take turns in one run."""

from collections.abc import Callable

import numpy as np

ROUNDS = 5


def take_turns(contestants: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """The speed of each contestant in each round; with turns A B A B, other load slows all alike."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            speeds[name].append(run())
    return speeds


def ratios(speeds: dict[str, list[float]], ours: str, unit: str) -> dict[str, dict[str, float]]:
    """The median speed of each contestant, under the key `unit`, and the median and range of ours / theirs."""
    result = {}
    for name, values in speeds.items():
        ratio = np.divide(speeds[ours], values)
        result[name] = {unit: float(np.median(values)), "ratio": float(np.median(ratio)),
                        "lowest_ratio": float(ratio.min()), "highest_ratio": float(ratio.max())}
    return result
