"""Schedules, and decay rules that cover every parameter of every model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from tiny import TINY_TASK, tiny_config

from sedjax.models import registry
from sedjax.models.variables import example_inputs
from sedjax.training import optimizer


def test_every_parameter_has_a_rule_and_biases_and_norms_do_not_decay():
    for name in registry.MODELS:
        model = registry.build_from(tiny_config(name), TINY_TASK)
        inputs = example_inputs(model, {"embeddings": 16, "melspectrogram": 64, "audio": 1920})
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


def encoder_params() -> dict:
    """Of a model with an ATST-Frame of three blocks, a layer of a transformer after it, and a head; all ones."""
    places = ("patch_embed/kernel", "pos_embed", "mask_embed", "block_0/qkv/kernel", "block_1/fc1/bias",
              "block_2/norm1/scale", "norm_frame/scale")
    flat = {**{f"atst/{name}": jnp.ones(3) for name in places}, "encoder/layer_0/linear1/kernel": jnp.ones(3),
            "head/linear2/kernel": jnp.ones(3)}
    return traverse_util.unflatten_dict(flat, sep="/")


RATES = {"atst/patch_embed/kernel": 4, "atst/pos_embed": 4, "atst/mask_embed": 4, "atst/block_0/qkv/kernel": 3,
         "atst/block_1/fc1/bias": 2, "atst/block_2/norm1/scale": 1, "atst/norm_frame/scale": 0,
         "encoder/layer_0/linear1/kernel": 0, "head/linear2/kernel": 0}


def test_each_layer_below_learns_slower():
    """Three steps of optax.adamw at the rate of each parameter, by hand."""
    config = tiny_config("atst_frame", optimizer__layer_decay=0.5, optimizer__weight_decay=0.1,
                         optimizer__learning_rate=0.01).optimizer
    params = encoder_params()
    chain = optimizer.make_optimizer(config, 0, 10)
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=3), jnp.float32), params) for _ in range(3)]

    def run(optimizer, params, gradients):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    found = traverse_util.flatten_dict(run(chain, params, gradients), sep="/")
    by_path = [traverse_util.flatten_dict(gradient, sep="/") for gradient in gradients]
    assert found.keys() == RATES.keys()
    for path, power in RATES.items():
        alone = optax.adamw(0.01 * 0.5**power, weight_decay=0.1 if path.endswith("kernel") else 0)
        np.testing.assert_allclose(found[path], run(alone, jnp.ones(3), [each[path] for each in by_path]), rtol=1e-6)


def test_the_depth_of_every_parameter_of_the_encoder_is_known():
    with pytest.raises(ValueError, match="atst/new/kernel"):
        optimizer.layer_rates({"atst": {"new": {"kernel": 1}}}, 0.5)
    assert optimizer.layer_rates({"head": {"kernel": 1}}, 0.5) == {"head": {"kernel": 1.0}}


def test_a_frozen_encoder_keeps_its_bits_until_it_thaws():
    config = tiny_config("atst_frame", optimizer__weight_decay=0.1, optimizer__learning_rate=0.01).optimizer
    chain, plain = optimizer.make_optimizer(config, 0, 10, frozen_steps=2), optimizer.make_optimizer(config, 0, 10)
    first = params = encoder_params()
    state, plain_state = chain.init(params), plain.init(params)
    for step in range(4):
        gradient = jax.tree.map(lambda x: jnp.full_like(x, 0.3), params)
        if step < 2:
            gradient["atst"]["pos_embed"] = jnp.full(3, jnp.inf)
        updates, state = jax.jit(chain.update)(gradient, state, params)
        expected, plain_state = plain.update(gradient, plain_state, params)
        params = optax.apply_updates(params, updates)
        if step < 2:
            jax.tree.map(np.testing.assert_array_equal, params["atst"], first["atst"])
        else:
            np.testing.assert_allclose(updates["atst"]["block_0"]["qkv"]["kernel"],
                                       expected["atst"]["block_0"]["qkv"]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(updates["head"]["linear2"]["kernel"], expected["head"]["linear2"]["kernel"],
                                   rtol=1e-6)
