"""The train and evaluation steps: any number of devices, any split of the batch, the same numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from step_setups import make_batch, setup
from tiny import TINY_TASK, tiny_config

from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.scoring import decisions, losses, metrics
from sedjax.scoring.evaluator import eval_step


def run(step, state, devices: int, count: int = 2):
    mesh = parallel.make_mesh(devices)
    compiled = parallel.compile_step(step, mesh)
    state = parallel.replicate(state, mesh)
    scalars = []
    for number in range(count):
        state, found = compiled(state, parallel.shard(make_batch(number), mesh),
                                parallel.replicate(jax.random.key(3), mesh))
        scalars.append(jax.device_get(found))
    return jax.device_get(state), scalars


def test_an_accumulated_batch_is_the_whole_batch():
    """Also where clips are mixed in pairs, which are in different parts."""
    _, state, step = setup(mixup=0.4)
    whole, parts = run(step, state, 1), run(functools.partial(step, accumulate=4), state, 1)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_the_step_needs_no_jit_and_learns():
    _, state, step = setup(model__dropout=0.0, model__layers=0)
    batch = jax.tree.map(jnp.asarray, make_batch())
    first = None
    for _ in range(3):
        state, scalars = step(state, batch, jax.random.key(3))
        first = first or float(scalars["loss"])
    assert int(state.step) == 3
    assert float(scalars["loss"]) < first


def test_a_batch_of_padding_has_finite_gradients_and_no_loss():
    _, state, step = setup()
    batch = jax.tree.map(jnp.asarray, make_batch())
    batch |= {"frame_mask": jnp.zeros((8, 20), bool), "clip_id": jnp.full(8, -1)}
    after, scalars = jax.jit(step)(state, batch, jax.random.key(3))
    assert float(scalars["loss"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_the_average_follows_the_parameters():
    _, state, step = setup(ema=0.5)
    batch = jax.tree.map(jnp.asarray, make_batch())
    after, _ = jax.jit(step)(state, batch, jax.random.key(3))
    # After the first step the decay is still (1 + 0) / (10 + 0).
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, state.params, after.params)
    for a, b in zip(jax.tree.leaves(after.ema["params"]), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert after.eval_variables["params"] is after.ema["params"]


class Given(nn.Module):
    """A model whose logits are its input."""

    def __call__(self, features, frame_mask):
        return features["logits"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pooling=st.sampled_from(["max", "mean"]), density=st.sampled_from([0, 0.1, 0.6]))
def test_cost_from_the_device_is_brute_force(seed, pooling, density):
    """Counted by loops over recordings whose lengths are no multiple of a segment, with classes that never occur."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 31, 3)
    logits = rng.normal(size=(3, 30, 3)).astype(np.float32)
    votes = (rng.random((3, 30, 3)) < density).astype(np.float16)
    thresholds = np.array([[0.5, 0.4, 0.6]], np.float32)
    batch = {"features": {"logits": jnp.asarray(logits)}, "votes": jnp.asarray(votes), "clip_id": jnp.arange(3),
             "frame_mask": jnp.asarray(np.arange(30)[None] < lengths[:, None])}
    found = eval_step({}, batch, thresholds, model=Given(), weights=np.ones((2, 3), np.float32),
                 pooling=pooling, task=TINY_TASK)

    probability = np.asarray(jax.nn.sigmoid(logits))
    segments, frames = np.zeros((2, 3, 4), np.int64)
    for clip, length in enumerate(lengths):
        for label in range(3):
            for start in range(0, length, 10):
                unit = slice(start, min(start + 10, length))
                pooled = getattr(probability[clip, unit, label], pooling)()
                segments[label, outcome(pooled > thresholds[0, label], votes[clip, unit, label].any())] += 1
            for frame in range(length):
                frames[label, outcome(probability[clip, frame, label] > thresholds[0, label],
                                      votes[clip, frame, label] > 0)] += 1
    counts = np.asarray(found["segments"])[:, 0].sum(0)
    np.testing.assert_array_equal(counts, segments)
    np.testing.assert_array_equal(np.asarray(found["frames"])[:, 0].sum(0), frames)
    if lengths.any():
        total = segments[0].sum()
        expected = sum(TINY_TASK.costs[c][o] * segments[c, o] / total * 50 for c in range(3) for o in range(4))
        assert abs(metrics.cost_per_class(counts, TINY_TASK).sum() - expected) < 1e-9


def outcome(predicted, actual) -> int:
    """TP, FP, TN, FN."""
    return {(True, True): 0, (True, False): 1, (False, False): 2, (False, True): 3}[bool(predicted), bool(actual)]


def test_loss_is_the_written_formula():
    logits = jnp.array([[[0.5, -1.0, 80.0]]])
    targets = jnp.array([[[1.0, 0.0, 0.0]]])
    weights = jnp.array([[5.0, 2.0, 3.0], [1.0, 0.5, 1.0]])
    found = losses.weighted_bce(logits, targets, weights)[0, 0]
    np.testing.assert_array_equal(losses.weighted_bce(logits[0], targets[0], weights)[0], found)  # any shape before
    np.testing.assert_allclose(found, [5 * np.log1p(np.exp(-0.5)), 0.5 * np.log1p(np.exp(-1.0)), 80.0], rtol=1e-6)


def test_class_weights():
    config = tiny_config(loss__class_factors={"Drum": 2.0}, loss__absolute_costs=True).loss
    np.testing.assert_allclose(losses.class_weights(TINY_TASK, **vars(config)), [[2.5, 5, 15], [0.5, 1, 1.5]])
    none = tiny_config(loss__pos_weight="none").loss
    np.testing.assert_allclose(losses.class_weights(TINY_TASK, **vars(none)), np.ones((2, 3)))


def test_a_false_alarm_that_costs_nothing_is_refused_only_where_its_cost_divides():
    free = dataclasses.replace(TINY_TASK, costs=((0, 1, 0, 5), (0, 0, 0, 10), (0, 3, 0, 15)))
    config = tiny_config(loss__pos_weight="none").loss
    np.testing.assert_allclose(losses.class_weights(free, **vars(config)), np.ones((2, 3)))
    for changes in ({}, {"loss__pos_weight": "none", "loss__absolute_costs": True}):
        with pytest.raises(UserError, match=r"loss\.(pos_weight|absolute_costs) = .*'Crow'"):
            losses.class_weights(free, **vars(tiny_config(**changes).loss))


def test_thresholds_are_tuned_per_class_for_cost():
    candidates = np.repeat(np.array([[0.2], [0.5], [0.8]], np.float32), 3, axis=1)
    counts = np.zeros((3, 3, 4), int)
    counts[..., 2] = 10
    counts[0, 0, 3], counts[1, 0, 1], counts[2, 0, 3] = 1, 1, 2  # class 0: a miss, a false alarm, two misses
    counts[:2, 1, 1] = 1  # class 1: false alarms at 0.2 and 0.5; class 2: no difference
    chosen, cost = decisions.tune(counts, candidates, TINY_TASK)
    np.testing.assert_allclose(chosen, [0.5, 0.8, 0.5])
    assert cost == pytest.approx(metrics.cost_per_class(counts[1], TINY_TASK)[0], abs=1e-9)


@pytest.mark.parametrize(("cheap", "chosen"), [([0, 4], 0), ([0, 2, 3, 4], 3), ([1, 2, 4], 2), ([0, 1, 2, 3, 4], 2)])
def test_of_ties_that_are_apart_the_middle_of_the_longest_run_is_taken(cheap, chosen):
    candidates = np.repeat(np.linspace(0.1, 0.9, 5, dtype=np.float32)[:, None], 3, axis=1)
    counts = np.zeros((5, 3, 4), int)
    counts[..., 2], counts[..., 3] = 10, 1
    counts[cheap, :, 3] = 0
    np.testing.assert_array_equal(decisions.tune(counts, candidates, TINY_TASK)[0], candidates[chosen])


@pytest.mark.parametrize(("thresholds", "default"), [((0.05, 0.5, 0.9), 0.5), ((0.9, 0.05, 0.3), 0.3), ((0.4,), 0.4)])
def test_a_model_that_was_not_evaluated_has_the_middle_threshold(thresholds, default):
    found = decisions.default(tiny_config(decision__thresholds=thresholds).decision, TINY_TASK)
    np.testing.assert_array_equal(found, np.full(3, default, np.float32))


def test_an_evaluation_counts_what_is_not_finite_and_frames_if_asked():
    """In real frames: what a model makes of padding is nobody's business."""
    logits = np.zeros((2, 10, 3), np.float32)
    logits[0, 2, 1], logits[0, 3, 1], logits[1, 9] = np.nan, -np.inf, np.nan
    batch = {"features": {"logits": jnp.asarray(logits)}, "votes": jnp.zeros((2, 10, 3)), "clip_id": jnp.arange(2),
             "frame_mask": jnp.asarray(np.arange(10)[None] < np.array([[10], [9]]))}
    found = eval_step({}, batch, np.full((1, 3), 0.5, np.float32), model=Given(),
                            weights=np.ones((2, 3), np.float32), pooling="max", task=TINY_TASK, frame_counts=False)
    assert found["non_finite"].tolist() == [2, 0]
    assert "frames" not in found
