import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sedjax.commands import rule_flags
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.scoring.event_rules import EventRules, changed, find_events, smoothed

TASK = dataclasses.replace(MLPC_2025, classes=MLPC_2025.classes[:2], costs=MLPC_2025.costs[:2])


def rules(threshold=0.5, **others):
    return EventRules(*(np.full(2, value) for value in [threshold]),
                      **{name: np.broadcast_to(value, 2) for name, value in others.items()})


def column(*values):
    """Probabilities of a recording whose second class is silent."""
    return np.stack([np.array(values), np.zeros(len(values))], 1)


def brute_force(probabilities, thresholds, low, gap_frames, min_frames):
    """Frame by frame: which frames belong to an event of a class."""
    frames, events = len(probabilities), []
    for label in range(probabilities.shape[1]):
        active = [False] * frames
        for t in range(frames):
            if probabilities[t, label] > thresholds[label]:
                for step in (1, -1):
                    u = t
                    while 0 <= u < frames and probabilities[u, label] > low[label]:
                        active[u] = True
                        u += step
        for t in range(frames):
            before, after = ([u for u in side if active[u]] for side in (range(t), range(t + 1, frames)))
            if not active[t] and before and after and after[0] - before[-1] - 1 <= gap_frames:
                active[t] = None  # a gap to fill
        t = 0
        while t < frames:
            end = t
            while end < frames and active[end] is not False:
                end += 1
            if end - t >= max(min_frames, 1):
                events.append((label, t, end))
            t = max(end, t + 1)
    return events


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(0.05, 0.95),
       st.floats(0, 1), st.integers(0, 4), st.integers(0, 4))
def test_events_are_those_of_a_walk_over_the_frames(rows, threshold, share, gap, shortest):
    probabilities, low = np.array(rows), threshold * share
    expected = brute_force(probabilities, [threshold] * 2, [low] * 2, gap, shortest)
    seconds = TASK.frame_seconds
    assert find_events(probabilities, rules(threshold, low_thresholds=low, merge_gap=gap * seconds,
                                            min_duration=shortest * seconds), TASK) == expected


def test_without_other_rules_events_are_runs_of_frames_above_the_threshold():
    assert find_events(column(0.6, 0.4, 0.5, 0.7), rules(), TASK) == [(0, 0, 1), (0, 3, 4)]


def test_the_median_filter_removes_single_frames_and_bridges_single_gaps():
    probabilities = column(0, 0.9, 0, 0, 0, 0.9, 0.9, 0, 0.9, 0.9)
    assert find_events(probabilities, rules(median=0.36), TASK) == [(0, 5, 10)]
    np.testing.assert_array_equal(smoothed(probabilities, np.full(2, 0.12), TASK), probabilities)


def test_gaps_are_merged_before_short_events_are_dropped():
    probabilities = column(0.9, 0, 0.9, 0, 0, 0, 0.9)
    assert find_events(probabilities, rules(merge_gap=0.12, min_duration=0.3), TASK) == [(0, 0, 3)]


def test_rules_differ_by_class():
    probabilities = np.full((4, 2), 0.6)
    assert find_events(probabilities, changed(rules(), TASK, threshold={"Shout": 0.7}), TASK) == [(0, 0, 4)]


@pytest.mark.parametrize(("text", "expected"), [("0.4", [0.4, 0.4]), ("Shout=0.7", [0.5, 0.7]),
                                                ("Speech=0.1, Shout=0.2", [0.1, 0.2])])
def test_values_by_class(text, expected):
    np.testing.assert_array_equal(changed(rules(), TASK, threshold=rule_flags.parse("flag", text)).thresholds,
                                  np.float32(expected))


@pytest.mark.parametrize(("text", "key"), [("Shoot=1", "Shout"), ("much", "NUMBER"), ("Shout=", "NUMBER"), ("-1", "-1"),
                                           ("nan", "nan"), ("", "NUMBER"), ("Shout=1,", "NUMBER"), ("1.5", "1.5")])
def test_bad_values_are_refused(text, key):
    with pytest.raises(UserError, match=key):
        changed(rules(), TASK, threshold=rule_flags.parse("flag", text))


@pytest.mark.parametrize("text", ["-1", "inf", "nan"])
def test_durations_are_finite(text):
    with pytest.raises(UserError, match=f"{text}.*duration|duration.*{text}"):
        changed(rules(), TASK, merge_gap=rule_flags.parse("flag", text))


def test_a_low_threshold_above_the_threshold_is_refused():
    with pytest.raises(UserError, match="low threshold"):
        rules(0.5, low_thresholds=0.6)
