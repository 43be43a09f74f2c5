"""Devices and processes: jit and pmap, one process and two give the same numbers; files come from process 0 only."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from test_steps import FEATURES, make_batch, setup
from tiny import TINY_TASK

from sedjax import parallel, steps, train_state
from sedjax.models.encoder import BatchNorm, Dense


class Normed(nn.Module):
    """A model with batch norm, in depth, so that gradients flow through its statistics."""

    features: ClassVar[tuple[str, ...]] = ("embeddings",)

    @nn.compact
    def __call__(self, features, frame_mask, *, train=False, clip_id=None):
        x = BatchNorm(name="norm1")(Dense(8)(features["embeddings"].astype(jnp.float32)), frame_mask, train)
        return Dense(3)(nn.relu(BatchNorm(name="norm2")(x**2, frame_mask, train)))


def run(step, state, mode: str, devices: int = 8, count: int = 2, clips: int = 16):
    mesh = parallel.make_mesh(devices)
    compiled = parallel.compile_step(step, mesh, donate_state=True, mode=mode)
    state = parallel.replicate(jax.tree.map(np.asarray, state), mesh)
    key = parallel.replicate(jax.random.key(3), mesh)
    scalars = []
    for number in range(count):
        state, found = compiled(state, parallel.shard(make_batch(number, clips), mesh, mode), key)
        scalars.append(found)
    return jax.device_get((state, scalars))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("name", "accumulate"), [("embedding_transformer", 1), ("conv_transformer", 2)])
def test_pmap_is_jit(name, accumulate):
    """Parameters, average and scalars of two steps, with dropout; one device has a clip that is all padding."""
    _, state, step = setup(name, ema=0.9, accumulate=accumulate)
    assert_same(run(step, state, "jit"), run(step, state, "pmap"))


def test_batch_norm_has_the_statistics_of_the_global_batch_under_pmap_too():
    model, sgd = Normed(), optax.sgd(0.1)
    state = train_state.create(model, sgd, FEATURES, False, 0)
    step = functools.partial(steps.train_step, model=model, optimizer=sgd, weights=np.ones((2, 3), np.float32))
    one = run(step, state, "jit", devices=1)
    assert set(one[0].model_state) == {"batch_stats"}
    assert (one[0].model_state["batch_stats"]["norm1"]["mean"] != 0).any()
    for mode in parallel.MODES:
        assert_same(one, run(step, state, mode))


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_results_by_clip_are_those_of_jit_in_the_same_order(name):
    model, state, _ = setup()
    thresholds = np.array([[0.3] * 3, [0.5] * 3], np.float32)
    if name == "evaluate":
        step = functools.partial(steps.eval_step, model=model, weights=np.ones((2, 3), np.float32), pooling="max",
                                 task=TINY_TASK)
        others = (thresholds,)
    else:
        step, others = functools.partial(steps.predict_step, model=model, pooling="max", task=TINY_TASK), ()
    found = {}
    for mode in parallel.MODES:
        mesh = parallel.make_mesh()
        compiled = parallel.compile_step(step, mesh, mode=mode, by_row=True)
        variables = parallel.replicate(state.weights, mesh)
        found[mode] = jax.device_get(compiled(variables, parallel.shard(make_batch(0, 16), mesh, mode), *others))
    assert all(len(value) == 16 for value in found["pmap"].values())
    assert_same(found["jit"], found["pmap"])
