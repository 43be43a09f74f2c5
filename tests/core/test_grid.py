import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sedjax.core import grid
from sedjax.core.task import MLPC_2025

TASKS = [MLPC_2025, *(dataclasses.replace(MLPC_2025, frame_seconds=seconds, frames_per_segment=frames)
                      for seconds, frames in [(0.1, 10), (0.04, 3), (0.0625, 1), (1 / 3, 4)])]
tasks = st.sampled_from(TASKS)


@given(st.integers(1, 10**6), tasks)
def test_segments_cover_the_frames_and_no_segment_is_empty(frames, task):
    segments = grid.num_segments(frames, task)
    assert (segments - 1) * task.frames_per_segment < frames <= segments * task.frames_per_segment


@given(st.integers(1, 16_000 * 3600))
def test_frames_cover_the_samples(samples):
    # 120 ms at 16 kHz are 1,920 samples: whole numbers, so the right answer has no rounding.
    assert grid.num_frames(samples / 16_000, MLPC_2025) == -(-samples // 1920)


@given(st.integers(0, 10**5), tasks)
def test_an_onset_is_read_back_as_its_segment(segment, task):
    assert grid.onset_segment(float(grid.onset_text(segment, task)), task) == segment


def test_onsets_are_written_as_the_challenge_does():
    assert [grid.onset_text(i, MLPC_2025) for i in (0, 1, 2, 3, 10, 24)] == ["0.0", "1.2", "2.4", "3.6", "12.0", "28.8"]


@pytest.mark.parametrize("seconds", [0.6, 1.0, 1.3, -1.2, math.nan, math.inf, -math.inf])
def test_an_onset_beside_the_grid_is_none(seconds):
    assert grid.onset_segment(seconds, MLPC_2025) is None


def test_an_onset_too_large_for_a_segment_number_is_none():
    assert grid.onset_segment(1.7e308, dataclasses.replace(MLPC_2025, frame_seconds=0.01)) is None


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=35), tasks)
def test_a_segment_is_active_if_any_of_its_frames_is(rows, task):
    frames = np.array(rows)
    padded = grid.pad_to_segments(frames, task)
    expected = [[any(column) for column in zip(*rows[i:i + task.frames_per_segment])]
                for i in range(0, len(rows), task.frames_per_segment)]
    np.testing.assert_array_equal(grid.any_frame(padded, task), expected)


def test_segments_of_a_batch_on_the_device_are_those_of_each_clip():
    frames = np.random.default_rng(0).random((3, 40, 5)) < 0.1
    on_device = grid.any_frame(jnp.asarray(frames), MLPC_2025)
    assert on_device.shape == (3, 4, 5)
    for clip, segments in zip(frames, on_device):
        np.testing.assert_array_equal(segments, grid.any_frame(clip, MLPC_2025))


def test_padding_takes_its_fill():
    padded = grid.pad_to_segments(np.zeros((11, 2)), MLPC_2025, fill=-1)
    assert padded.shape == (20, 2)
    assert (padded[11:] == -1).all()
    assert (padded[:11] == 0).all()


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=40), tasks)
def test_events_and_frames_are_two_ways_to_say_one_thing(rows, task):
    active = np.array(rows)
    found = grid.runs(active)
    rebuilt = np.zeros_like(active)
    for label, first, end in found:
        onset, offset = first * task.frame_seconds, end * task.frame_seconds
        assert not rebuilt[grid.event_frames(onset, offset, len(active), task), label].any(), "events overlap"
        rebuilt[grid.event_frames(onset, offset, len(active), task), label] = True
    np.testing.assert_array_equal(rebuilt, active)
    assert found == sorted(found)
    assert len(found) == sum((np.diff(np.append(False, column).astype(int)) == 1).sum() for column in active.T)


@given(st.floats(-5, 10), st.floats(0, 5), st.integers(1, 50))
def test_an_event_marks_the_frames_it_touches_and_no_others(onset, seconds, frames):
    onset, offset = round(onset, 3), round(onset + seconds, 3)
    marked = set(range(frames)[grid.event_frames(onset, offset, frames, MLPC_2025)])
    # In milliseconds, so that the touching itself is exact.
    a, b = round(onset * 1000), round(offset * 1000)
    touched = {i for i in range(frames) if max(a, 120 * i) < min(b, 120 * (i + 1))}
    assert touched <= marked
    assert len(marked - touched) <= (a == b), "only an event of no length may mark a frame it does not fill"
