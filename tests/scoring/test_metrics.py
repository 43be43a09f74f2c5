import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_TASK

from sedjax.core import grid
from sedjax.core.task import MLPC_2025, Task
from sedjax.scoring import metrics

CLIPS, FRAMES = 3, 40  # one shape for all examples: every other one would be compiled anew


@st.composite
def scenes(draw):
    """A random task, as its fields, and a padded batch: predicted, actual (clip, frame, class), lengths."""
    classes = draw(st.sampled_from([1, 4, 10]))
    row = st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 0.1, 7.25, 15.0])] * 4)
    # The task itself is made in the test: the checker of its annotations draws random numbers of its own, which
    # hypothesis forbids in here.
    task = {"name": "random", "classes": tuple(f"class {i}" for i in range(classes)),
            "costs": tuple(draw(row) for _ in range(classes)),
            "frame_seconds": draw(st.sampled_from([0.12, 0.1, 0.04])),
            "frames_per_segment": draw(st.sampled_from([1, 10]))}
    lengths = draw(st.lists(st.integers(1, FRAMES), min_size=CLIPS, max_size=CLIPS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Rates of 0 and 1 make classes that are never or always active.
    rates = np.array([draw(st.sampled_from([0.0, 0.02, 0.3, 1.0])) for _ in range(2 * classes)])
    predicted, actual = np.split(rng.random((CLIPS, FRAMES, 2 * classes)) < rates, 2, axis=-1)
    return task, predicted, actual, lengths


@functools.partial(jax.jit, static_argnames="frames_per_segment")
def device_counts(predicted, actual, lengths, frames_per_segment):
    task = dataclasses.replace(MLPC_2025, frames_per_segment=frames_per_segment)  # of which only the grid matters here
    real = jnp.arange(FRAMES)[None] < lengths[:, None]
    frame_mask = real[:, :, None]
    segments = [grid.any_frame(x & frame_mask, task) for x in (predicted, actual)]
    return metrics.confusion_counts(*segments, grid.any_frame(frame_mask, task)[..., 0])


def brute_force(task, predicted, actual, lengths):
    """Counts (clip, class, outcome) and cost per minute, by the words of SPEC section 2 and nothing clever."""
    counts = np.zeros((len(lengths), len(task.classes), 4), int)
    for clip, length in enumerate(lengths):
        for label in range(len(task.classes)):
            for start in range(0, length, task.frames_per_segment):
                frames = range(start, min(start + task.frames_per_segment, length))
                guess = any(predicted[clip, frame, label] for frame in frames)
                truth = any(actual[clip, frame, label] for frame in frames)
                counts[clip, label, {(True, True): 0, (True, False): 1, (False, False): 2, (False, True): 3}[
                    guess, truth]] += 1
    segments = counts[:, 0].sum()
    minute = 60 / (task.frame_seconds * task.frames_per_segment)
    cost = sum(task.costs[label][outcome] * counts[:, label, outcome].sum() / segments * minute
               for label in range(len(task.classes)) for outcome in range(4))
    return counts, cost


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_counts_and_cost_are_those_of_a_loop_over_segments(scene):
    task, predicted, actual, lengths = Task(**scene[0]), *scene[1:]
    expected, cost = brute_force(task, predicted, actual, lengths)
    on_device = device_counts(predicted, actual, np.array(lengths), task.frames_per_segment)
    assert on_device.dtype == jnp.int32
    np.testing.assert_array_equal(on_device, expected)
    for counts in (np.asarray(on_device), expected):
        assert metrics.score(counts, task).cost == pytest.approx(cost, rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_numpy_and_device_count_alike(scene):
    _, predicted, actual, lengths = scene
    mask = np.arange(FRAMES) < np.array(lengths)[:, None]
    in_numpy = metrics.confusion_counts(predicted, actual, mask)
    on_device = metrics.confusion_counts(*map(jnp.asarray, (predicted, actual, mask)))
    assert in_numpy.dtype == on_device.dtype == np.int32
    np.testing.assert_array_equal(in_numpy, on_device)
    np.testing.assert_array_equal(in_numpy.sum(-1), np.repeat(np.array(lengths)[:, None], predicted.shape[-1], axis=1))


@settings(max_examples=40, deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_another_order_of_classes_or_recordings_gives_the_same_score(scene, random):
    task = Task(**scene[0])
    counts, _ = brute_force(task, *scene[1:])
    base = metrics.score(counts, task)
    order = list(range(len(task.classes)))
    random.shuffle(order)
    permuted = Task("permuted", tuple(task.classes[i] for i in order), tuple(task.costs[i] for i in order),
                    task.frame_seconds, task.frames_per_segment)
    other = metrics.score(counts[:, order], permuted)
    assert other.cost == pytest.approx(base.cost, rel=1e-12)
    assert other.interval == pytest.approx(base.interval, rel=1e-12)
    assert other.classes == base.classes

    clips = list(range(CLIPS))
    random.shuffle(clips)
    assert metrics.score(counts[clips], task).cost == pytest.approx(base.cost, rel=1e-12)


def test_predicting_nothing_costs_the_missed_segments():
    # 4 % of the segments of each class are active: 2 of a minute's 50, all of them missed.
    actual = np.zeros((100, len(MLPC_2025.classes)), bool)
    actual[:4] = True
    counts = metrics.confusion_counts(np.zeros_like(actual), actual, np.ones(100, bool))
    score = metrics.score(counts[None], MLPC_2025)
    for name, row in zip(MLPC_2025.classes, MLPC_2025.costs):
        assert score.classes[name] == pytest.approx({"cost": 2 * row[3], "TP": 0, "FP": 0, "TN": 48, "FN": 2})
    assert score.cost == pytest.approx(2 * (3 * 5 + 10 + 6 * 15))


def test_a_class_that_is_always_on_costs_its_false_alarms():
    actual = np.zeros((50, 3), bool)
    actual[:10, 1] = True
    predicted = np.zeros_like(actual)
    predicted[:, 1] = True
    score = metrics.score(metrics.confusion_counts(predicted, actual, np.ones(50, bool))[None], TINY_TASK)
    assert score.classes["Crow"] == pytest.approx({"cost": 40 * 2, "TP": 10, "FP": 40, "TN": 0, "FN": 0})
    assert score.cost == pytest.approx(80)


def test_segments_are_pooled_over_recordings_of_unequal_length():
    # One recording of 1 segment, all wrong; one of 9, all right: a tenth of all segments is missed, not a half.
    counts = np.zeros((2, 3, 4), int)
    counts[0, :, 2], counts[1, :, 2] = 1, 9
    counts[0, 0] = [0, 0, 0, 1]
    assert metrics.score(counts, TINY_TASK).cost == pytest.approx(0.1 * 50 * 5)


def test_costs_of_true_positives_and_true_negatives_count_too():
    task = Task("paid", ("A",), ((1.0, 0.0, 0.5, 0.0),))
    counts = np.array([[[10, 0, 40, 0]]])
    assert metrics.score(counts, task).cost == pytest.approx(10 * 1 + 40 * 0.5)


def test_nothing_counted_costs_nothing():
    np.testing.assert_array_equal(metrics.cost_per_class(np.zeros((3, 4), int), TINY_TASK), [0, 0, 0])


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_figures_per_class_are_those_of_scikit_learn(scene):
    task, predicted, actual, lengths = Task(**scene[0]), *scene[1:]
    mask = np.arange(FRAMES) < np.array(lengths)[:, None]
    counts = metrics.confusion_counts(predicted, actual, mask).sum(0)
    figures = metrics.detection_figures(counts, task)
    assert list(figures) == list(task.classes)
    for label, found in enumerate(figures.values()):
        truth, guess = actual[mask][:, label], predicted[mask][:, label]
        both = 0 < truth.mean() < 1
        expected = {
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(truth, guess) if both else None,
            "precision": sklearn.metrics.precision_score(truth, guess) if guess.any() else None,
            "recall": sklearn.metrics.recall_score(truth, guess) if truth.any() else None,
            "f1": sklearn.metrics.f1_score(truth, guess) if guess.any() or truth.any() else None,
        }
        assert {key: value is None for key, value in found.items()} == {k: v is None for k, v in expected.items()}
        for key, value in expected.items():
            assert found[key] == (None if value is None else pytest.approx(value, rel=1e-12)), key


def random_clip_counts(clips, seed):
    rng = np.random.default_rng(seed)
    return np.stack([metrics.confusion_counts(rng.random((20, 3)) < 0.2, rng.random((20, 3)) < 0.2, np.ones(20, bool))
                     for _ in range(clips)])


def test_interval_is_deterministic_and_contains_the_cost():
    counts = random_clip_counts(60, seed=1)
    score = metrics.score(counts, TINY_TASK)
    assert score.interval == metrics.score(counts, TINY_TASK).interval
    low, high = score.interval
    assert low < score.cost < high


def test_interval_is_that_of_resampled_recordings():
    counts = random_clip_counts(30, seed=2)
    rng = np.random.default_rng(3)
    costs = [metrics.cost_per_class(counts[rng.integers(0, 30, 30)].sum(0), TINY_TASK).sum() for _ in range(4000)]
    low, high = np.percentile(costs, [2.5, 97.5])
    found = metrics.bootstrap_interval(counts, TINY_TASK, resamples=4000)
    assert found == pytest.approx((low, high), abs=0.1 * (high - low))


def test_interval_narrows_with_more_recordings_and_closes_when_all_are_alike():
    few, many = (np.diff(metrics.score(random_clip_counts(clips, seed=4), TINY_TASK).interval)[0]
                 for clips in (20, 320))
    assert 0.15 < many / few < 0.4  # 1 / sqrt(16), give or take
    alike = metrics.score(np.repeat(random_clip_counts(1, seed=5), 10, axis=0), TINY_TASK)
    assert alike.interval == pytest.approx((alike.cost, alike.cost))


def test_score_as_a_dictionary_is_the_documented_json():
    content = metrics.score(random_clip_counts(5, seed=6), TINY_TASK).to_dict()
    assert set(content) == {"cost", "interval", "classes"}
    assert list(content["classes"]) == list(TINY_TASK.classes)
    assert all(set(figures) == {"cost", "TP", "FP", "TN", "FN"} for figures in content["classes"].values())
    assert content["cost"] == pytest.approx(sum(figures["cost"] for figures in content["classes"].values()))
