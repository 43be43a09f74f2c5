"""Statistics of features over recordings, computed from the sums of each recording."""

from collections.abc import Iterable

import numpy as np

from sedjax.audio.frontend import power_to_db

Sums = tuple[int, np.ndarray, bool]  # rows; column sums of values, squares, levels, squared levels; if values >= 0


def column_sums(value: np.ndarray) -> Sums:
    """The inputs of `column_statistics` from a (T, D) array: rows, sums, and whether no value is negative."""
    value = value.astype(np.float64)
    decibels = power_to_db(value)
    sums = np.stack([value.sum(0), (value**2).sum(0), decibels.sum(0), (decibels**2).sum(0)])
    return len(value), sums, bool((value >= 0).all())


def column_statistics(sums: Iterable[Sums]) -> dict:
    """Width, and mean and standard deviation per column over all rows of some (T, D) arrays.

    For a power (no negative values), also those of its level in decibels: `level_mean` and `level_std`.
    """
    all_rows, all_sums, powers = zip(*sums)
    frames, power = sum(all_rows), all(powers)
    mean, square, level_mean, level_square = sum(all_sums) / frames

    def deviation(square: np.ndarray, mean: np.ndarray) -> list[float]:
        # A constant column carries no information: dividing by 1 keeps it at 0.
        variance = np.maximum(square - mean**2, 0)
        return np.where(variance > 1e-12, np.sqrt(variance), 1.0).tolist()

    statistics = {"width": len(mean), "mean": mean.tolist(), "std": deviation(square, mean)}
    if power:
        statistics |= {"level_mean": level_mean.tolist(), "level_std": deviation(level_square, level_mean)}
    return statistics
