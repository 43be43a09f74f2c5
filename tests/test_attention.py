"""Attention without dropout: as with it, finite over padding, fused where the device can; precision of the rest."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import FEATURES, make_batch, setup
from tiny import TINY_TASK, tiny_config

from sedjax import attention, steps, workdir
from sedjax.errors import UserError
from sedjax.models.encoder import Attention


def inputs(dtype=jnp.float32):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 16)), dtype)
    return x, jnp.asarray(np.arange(12)[None] < np.array([[12], [7], [0]]))


def test_evaluation_is_training_in_which_nothing_is_dropped():
    """The two are different code; a rate of 1e-12 drops nothing."""
    x, mask = inputs()
    layer = Attention(heads=2, dropout=1e-12)
    variables = jax.jit(layer.init)(jax.random.key(0), x, mask, None)

    def loss(x, clip_id):
        found = layer.apply(variables, x, mask, clip_id, rngs={"dropout": jax.random.key(1)})
        return (found**2).sum(), found

    (found, expected) = (jax.jit(jax.value_and_grad(loss, has_aux=True))(x, ids) for ids in (None, jnp.arange(3)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert np.isfinite(a).all()  # the third clip is all padding


@pytest.mark.parametrize(("backend", "dtype", "asked"), [
    ("gpu", jnp.bfloat16, ["cudnn", "xla"]), ("gpu", jnp.float32, ["xla"]), ("tpu", jnp.bfloat16, ["xla"]),
])
def test_the_fused_kernel_is_tried_where_there_is_one(backend, dtype, asked, monkeypatch):
    """Here there is no cuDNN, so what asks for it must go on with XLA's."""
    x, mask = inputs(dtype)
    query = x.reshape(3, 12, 2, 8)
    expected = attention.fused_or_plain(query, query, query, mask)
    found = []
    original = jax.nn.dot_product_attention

    def watched(*args, implementation, **kwargs):
        found.append(implementation)
        return original(*args, implementation=implementation, **kwargs)

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax.nn, "dot_product_attention", watched)
    np.testing.assert_array_equal(attention.fused_or_plain(query, query, query, mask), expected)
    assert found == asked


def test_bfloat16_leaves_softmax_norms_loss_and_optimizer_in_float32():
    model, state, step = setup(precision="bfloat16")
    batch, key = jax.tree.map(jnp.asarray, make_batch()), jax.random.key(0)

    def forward(variables, batch):
        """With dropout and without, which are different code, and the loss."""
        dropped = model.apply(variables, batch["features"], batch["frame_mask"], train=True, clip_id=batch["clip_id"],
                              rngs={"dropout": key})
        return dropped, steps.eval_step(variables, batch, np.full((1, 3), 0.5, np.float32), model=model,
                                        weights=np.ones((2, 3), np.float32), pooling="max", task=TINY_TASK)

    made = set(re.findall(r"\w+:(\w+)\[[\d,]*\] = (\w+)", str(jax.make_jaxpr(forward)(state.weights, batch))))
    assert ("bf16", "dot_general") in made
    careful = {"exp", "log1p", "rsqrt", "logistic", "reduce_max"}
    assert {name for _, name in made} >= careful
    assert {kind for kind, name in made if name in careful} == {"f32"}
    after, _ = jax.eval_shape(step, state, batch, key)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert jnp.bfloat16 not in {x.dtype for x in jax.tree.leaves(after)}


def test_a_training_may_go_on_in_another_precision(tmp_path):
    workdir.prepare(tmp_path, tiny_config(), TINY_TASK, FEATURES)
    workdir.prepare(tmp_path, tiny_config(precision="bfloat16"), TINY_TASK, FEATURES)
    with pytest.raises(UserError, match="another config: model.heads is 2 there and 4 now"):
        workdir.prepare(tmp_path, tiny_config(model__heads=4), TINY_TASK, FEATURES)
