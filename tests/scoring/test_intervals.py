"""Intervals hold their level: verdicts on systems that are equal, simulated.

`python -c "import test_intervals; test_intervals.show()"` in this folder prints the long version: minutes.
"""

import numpy as np
import pytest
from tiny import TINY_TASK

from sedjax.scoring import metrics

RECORDINGS = 120
SPREADS = (0.02, 0.06, 0.12, 0.25)


def simulate(rng: np.random.Generator, studies: int, runs: tuple[int, int], spread: float, own: float,
             ratio: float = 1.0, recordings: int = RECORDINGS) -> tuple[np.ndarray, np.ndarray]:
    """Counts (study, run, recording, class, outcome) of two systems, of which one costs `ratio` times the other.

    Recordings have 14 to 25 segments, and most classes are silent in most of them. A class is missed with a
    probability of its own in each recording. Each run moves it a little, and by a factor that is its seed's.

    Args:
      rng: where all of it comes from.
      studies: how many.
      runs: of each system.
      spread: standard deviation of the factor.
      own: standard deviation, in logits, of what a system, whatever its seed, does on a recording.
      ratio: of the costs.
      recordings: in a study.
    """
    shape = (studies, 1, recordings, len(TINY_TASK.classes))
    segments = rng.integers(14, 26, size=(studies, 1, recordings, 1))
    active = rng.binomial(segments, rng.beta(0.15, 1, size=shape))
    shared = rng.normal(-1.2, 1.5, size=shape)
    sides = []
    for count, factor in zip(runs, (ratio, 1.0)):
        logits = shared + own * rng.normal(size=shape) + 0.3 * rng.normal(size=(studies, count, *shape[2:]))
        seeds = np.exp(spread * rng.normal(size=(studies, count, 1, 1)))
        missed = rng.binomial(active, np.minimum(factor * seeds / (1 + np.exp(-logits)), 1))
        zeros = np.zeros_like(missed)
        sides.append(np.stack([active - missed, zeros, segments - active + zeros, missed], axis=-1))
    return sides[0], sides[1]


def verdicts(runs: tuple[int, int], spread: float, own: float, ratio: float = 1.0, studies: int = 600,
             interval=metrics.difference_interval) -> float:
    """The share of studies whose interval is without 0."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(0, studies, 100):
        for pair in zip(*simulate(rng, 100, runs, spread, own, ratio)):
            low, high = interval(*pair, TINY_TASK)
            found += low > 0 or high < 0
    return found / studies


def show(studies: int = 10_000, interval=metrics.difference_interval) -> None:
    """Prints the share of verdicts in percent: on equal systems, and on two of which one costs 15 % less."""
    for ratio in (1.0, 0.85):
        for runs in ((3, 3), (2, 2), (5, 5), (3, 1), (1, 1)):
            for own in (0, 0.5, 1):
                rates = [f"{100 * verdicts(runs, spread, own, ratio, studies, interval):5.1f}" for spread in SPREADS]
                print(f"cost x {ratio}, runs {runs}, own {own}, spreads {SPREADS}: {' '.join(rates)}", flush=True)


@pytest.mark.parametrize("own", [0, 0.5])
@pytest.mark.parametrize("spread", SPREADS)
def test_two_equal_systems_get_a_verdict_in_5_percent_of_studies(spread, own):
    studies = 600
    error = np.sqrt(0.05 * 0.95 / studies)
    assert 0.03 - error < verdicts((3, 3), spread, own, studies=studies) < 0.07 + error


def test_a_difference_of_15_percent_is_seen_where_seeds_spread_little():
    assert verdicts((3, 3), 0.02, 0.0, ratio=0.85, studies=200) > 0.6
    assert verdicts((3, 3), 0.25, 0.0, ratio=0.85, studies=200) < 0.3


def test_a_system_with_one_run_borrows_the_spread_of_the_other():
    # The spread of one run does not show: without it, four of ten such studies had a verdict.
    assert verdicts((3, 1), 0.25, 0.0, studies=400) < 0.1
    assert verdicts((1, 1), 0.25, 0.0, studies=400) > 0.3  # recordings only, as the docstring has it


def study(runs: tuple[int, int], spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    one, other = simulate(np.random.default_rng(seed), 1, runs, spread, 0.5)
    return one[0], other[0]


def test_an_interval_is_that_of_the_textbook_where_only_one_variance_is_there():
    # With no spread between recordings the t interval of three costs against three, with their common freedom of 4.
    counts = np.zeros((6, 50, 3, 4), int)
    missed = np.array([1, 2, 3, 2, 3, 4])
    counts[..., 2], counts[..., 0, 3] = 20, missed[:, None]
    counts[..., 0, 2] -= missed[:, None]
    costs = missed / 20 * 50 * 5
    half = 2.7764451 * np.sqrt(costs[:3].var(ddof=1) / 3 + costs[3:].var(ddof=1) / 3)
    found = metrics.difference_interval(counts[:3], counts[3:], TINY_TASK)
    np.testing.assert_allclose(found, (-12.5 - half, -12.5 + half), rtol=1e-6)

    # One run each: the paired t interval over recordings, all as long.
    one, other = study((1, 1))
    for counts in (one, other):
        counts[..., 2] += 25 - counts.sum(-1)
    change = (one - other)[0, :, :, 3] @ TINY_TASK.cost_matrix[:, 3] / 25 * 50
    half = 1.9801 * change.std(ddof=1) / np.sqrt(RECORDINGS)
    np.testing.assert_allclose(metrics.difference_interval(one, other, TINY_TASK),
                               (change.mean() - half, change.mean() + half), rtol=1e-4)


def test_the_same_counts_are_no_difference_at_all():
    one, _ = study((1, 1))
    for runs in (1, 3, 7, 10):
        assert metrics.difference_interval(np.repeat(one, runs, axis=0), one, TINY_TASK) == (0, 0)


def test_a_difference_turned_round_has_the_interval_turned_round():
    one, other = study((3, 2))
    low, high = metrics.difference_interval(one, other, TINY_TASK)
    assert metrics.difference_interval(other, one, TINY_TASK) == pytest.approx((-high, -low))
    order = np.random.default_rng(1).permutation(RECORDINGS)
    assert metrics.difference_interval(one[:, order], other[:, order], TINY_TASK) == pytest.approx((low, high))


def test_one_recording_tells_nothing():
    one, other = study((3, 3))
    assert metrics.difference_interval(one[:, :1], other[:, :1], TINY_TASK) == (-np.inf, np.inf)


def test_the_bootstrap_takes_bounded_memory_and_agrees_with_the_normal_interval(monkeypatch):
    counts = study((1, 1), seed=3)[0][0]
    whole = metrics.bootstrap_interval(counts, TINY_TASK)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 1000)  # blocks of 8 resamples draw what one block draws
    assert metrics.bootstrap_interval(counts, TINY_TASK) == pytest.approx(whole, rel=1e-12)
    monkeypatch.setattr(metrics, "MOST_DRAWN", 100)
    normal = metrics.bootstrap_interval(counts, TINY_TASK)
    assert normal == pytest.approx(whole, abs=0.15 * (whole[1] - whole[0]))
    many = np.tile(counts, (100, 1, 1))
    np.testing.assert_allclose(np.diff(metrics.bootstrap_interval(many, TINY_TASK)), np.diff(normal) / 10, rtol=0.01)
