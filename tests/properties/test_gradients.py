"""What the gradient of a clip depends on, and how often a step is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_setups import make_batch, setup
from tiny import tiny_config

from sedjax.benchmarks import throughput


@pytest.mark.parametrize("name", ["embedding_transformer", "conv_transformer"])
def test_no_gradient_crosses_the_padding_or_reaches_another_clip(name):
    """In training mode, with dropout: a clip learns from its real frames alone."""
    model, state, _ = setup(name)
    batch = jax.tree.map(jnp.asarray, make_batch())
    mask = np.asarray(batch["frame_mask"])
    clip = int(np.argmin(np.where(mask.any(1), mask.sum(1), 99)))
    key = model.inputs[0]

    def loss(features):
        logits = model.apply(state.eval_variables, {**batch["features"], key: features}, batch["frame_mask"],
                             train=True, clip_id=batch["clip_id"], rngs={"dropout": jax.random.key(0),
                                                                         "augment": jax.random.key(1)})
        return jnp.where(batch["frame_mask"][clip, :, None], logits[clip], 0).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(batch["features"][key], jnp.float32)))
    gradient = gradient.copy()
    assert np.abs(gradient[clip][mask[clip]]).max() > 0
    gradient[clip][mask[clip]] = 0
    np.testing.assert_array_equal(gradient, 0)


def test_nothing_is_compiled_again_within_an_epoch(records):
    training = throughput.Training(tiny_config(data__path=str(records), model__layers=0), devices=1)
    training.warm_up(2 * training.feed.plan.batches)
    training.stretch(1)
    compiled = []

    def listen(event: str, seconds: float, **_) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        training.stretch(2 * training.feed.plan.batches - 1)
        assert compiled == []
        jax.jit(lambda x: x + 1)(np.arange(7))
        assert compiled, "so a compilation would have been seen"
    finally:
        jax.monitoring.clear_event_listeners()
