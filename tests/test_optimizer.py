"""Schedules, and decay rules that cover every parameter of every model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY_TASK, tiny_config

from sedjax import models, optimizer


def test_every_parameter_has_a_rule_and_biases_and_norms_do_not_decay():
    for name in models.MODELS:
        model = models.build_from(tiny_config(name), TINY_TASK)
        inputs = models.example_inputs(model, {"embeddings": 16, "melspectrogram": 64})
        params = jax.eval_shape(model.init, jax.random.key(0), *inputs).get("params", {})
        mask = optimizer.decay_mask(params)
        for path, decays in jax.tree_util.tree_leaves_with_path(mask):
            assert decays == (path[-1].key in ("kernel", "positions"))


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="new/thing"):
        optimizer.decay_mask({"new": {"thing": 1}})


def test_weight_decay_reaches_what_it_should_and_nothing_else():
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    config = tiny_config(optimizer__weight_decay=0.5, optimizer__learning_rate=0.1).optimizer
    adamw = optimizer.make_optimizer(config, 0, 10)
    updates, _ = adamw.update(jax.tree.map(jnp.zeros_like, params), adamw.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.05)
    np.testing.assert_allclose(updates["a"]["bias"], 0)


@pytest.mark.parametrize(("name", "step", "rate"), [
    ("constant", 0, 0.25), ("constant", 3, 1.0), ("constant", 99, 1.0),
    ("cosine", 0, 0.25), ("cosine", 4, 1.0), ("cosine", 12, 0.5), ("cosine", 20, 0.0),
])
def test_warmup_and_schedule(name, step, rate):
    config = tiny_config(optimizer__schedule=name, optimizer__learning_rate=1.0).optimizer
    np.testing.assert_allclose(optimizer.schedule(config, 4, 20)(step), rate, atol=1e-6)


def test_clipping_bounds_the_gradient():
    params = {"kernel": jnp.zeros(2)}
    seen = []
    for scale in (10.0, 1000.0):
        config = tiny_config(optimizer__clip_norm=1.0).optimizer
        adamw = optimizer.make_optimizer(config, 0, 10)
        _, state = adamw.update({"kernel": jnp.array([3.0, 4.0]) * scale}, adamw.init(params), params)
        seen.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state)]))
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-6)
