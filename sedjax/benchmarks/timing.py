"""Timing: the speed of a function, and fair comparisons, in which contestants take turns in one run."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from sedjax.core.errors import UserError

ROUNDS = 5


def calls_per_second(run: Callable, seconds: float) -> float:
    """The speed of a compiled function that is called for at least `seconds`, and waits for its last result only."""
    calls, burst, began, taken = 0, 1, time.perf_counter(), 0.0
    while taken < seconds or not calls:
        for _ in range(burst):
            result = run()
        jax.block_until_ready(result)
        calls, burst, taken = calls + burst, 2 * burst, time.perf_counter() - began
    return calls / taken


def compare(contestants: Mapping[str, Callable[[], float]], unit: str, rounds: int = ROUNDS) -> dict[str, dict]:
    """The median speed of each contestant, under the key `unit`, and the median and range of the first one's / its own.

    With turns A B A B, other load slows all alike.
    """
    turns = [[run() for run in contestants.values()] for _ in range(rounds)]
    result = {}
    for name, speeds in zip(contestants, np.transpose(turns)):
        ratio = np.divide([turn[0] for turn in turns], speeds)
        result[name] = {unit: float(np.median(speeds)), "ratio": float(np.median(ratio)),
                        "lowest_ratio": float(ratio.min()), "highest_ratio": float(ratio.max())}
    return result


def require_torch() -> None:
    """Raises UserError if PyTorch, whose speed is compared with, is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError("--against=torch needs PyTorch: pip install 'sedjax[bench]'.") from error
