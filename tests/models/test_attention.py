"""Attention: the same on every platform, finite over padding, with weights dropped or not; precision of the rest."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from step_setups import FEATURES, make_batch, setup
from tiny import TINY_TASK, tiny_config

from sedjax.core import parallel
from sedjax.core.collective import AXIS
from sedjax.core.errors import UserError
from sedjax.models import attention, tpu_attention
from sedjax.models.dropout import clip_seeds
from sedjax.models.encoder import Attention
from sedjax.scoring.evaluator import eval_step
from sedjax.training import workdir


def inputs(dtype=jnp.float32):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 16)), dtype)
    return x, jnp.asarray(np.arange(12)[None] < np.array([[12], [7], [0]]))


def test_evaluation_is_training_in_which_nothing_is_dropped():
    """A rate of 1e-12 drops nothing."""
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


@pytest.mark.parametrize(("frames", "heads", "size", "dtype", "rate"), [
    (50, 2, 64, jnp.float32, 0.2), (128, 1, 128, jnp.float32, 0.0), (130, 3, 64, jnp.bfloat16, 0.2),
])
def test_the_kernel_of_a_tpu_computes_the_same(frames, heads, size, dtype, rate):
    """Result and gradient, interpreted; with frames that fill no block, padding, and a clip that is all padding."""
    rng = np.random.default_rng(0)
    qkv, gradient = (jnp.asarray(rng.normal(size=(3, frames, n * heads * size)), dtype) for n in (3, 1))
    mask = jnp.asarray(np.arange(frames)[None] < np.array([[frames], [frames // 3], [0]]))
    seeds = clip_seeds(jax.random.key(1), jnp.arange(3))
    assert tpu_attention.fits(*qkv.shape[1:], qkv.dtype)

    def both(function):
        found, backward = jax.vjp(function, qkv)
        return [np.asarray(x, np.float32) for x in (found, *backward(gradient))]

    found = both(lambda qkv: tpu_attention.self_attention(qkv, mask, seeds, heads, rate, True))
    expected = both(lambda qkv: attention.self_attention(qkv, mask, heads, seeds if rate else None, rate))
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=2e-6 if dtype == jnp.float32 else 0.04)


def test_long_clips_have_no_room_on_a_chip():
    assert tpu_attention.fits(250, 3 * 1024, jnp.dtype(jnp.bfloat16))
    assert not tpu_attention.fits(1000, 3 * 1024, jnp.dtype(jnp.bfloat16))


@pytest.mark.parametrize(("platform", "dtype", "rate", "kernel", "asked"), [
    ("tpu", jnp.bfloat16, 0.2, True, set()), ("tpu", jnp.bfloat16, 0.0, True, {"cudnn"}),
    ("cuda", jnp.bfloat16, 0.0, False, {"cudnn"}), ("cuda", jnp.float32, 0.0, False, set()),
    ("cpu", jnp.float32, 0.2, False, set()),
])
def test_the_platform_that_it_is_compiled_for_decides(platform, dtype, rate, kernel, asked, monkeypatch):
    """Here there is no cuDNN, so what asks for it gets XLA's."""
    implementations = set()
    original = jax.nn.dot_product_attention

    def watched(*args, implementation, **kwargs):
        implementations.add(implementation)
        return original(*args, implementation=implementation, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", watched)
    qkv, mask = jnp.zeros((2, 20, 48), dtype), jnp.ones((2, 20), bool)
    step = jax.jit(lambda qkv: attention.self_attention(qkv, mask, 2, jnp.zeros((2, 2), jnp.uint32), rate))
    text = step.trace(qkv).lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" in text) == kernel
    assert implementations == asked


def test_on_many_tpus_each_takes_its_own_clips():
    """The compiler cannot split a kernel: it must be told to run it on the clips of each device."""
    mesh = parallel.make_mesh(8)
    step = parallel.compile_step(lambda _, qkv: attention.self_attention(qkv, jnp.ones((8, 20), bool), 2), mesh)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    qkv = jax.ShapeDtypeStruct((8, 20, 48), jnp.float32, sharding=sharding)
    text = step.trace((), qkv).lower(lowering_platforms=("tpu",)).as_text()
    assert re.search(r"tpu_custom_call\(.*tensor<1x20x48xf32>\) -> tensor<1x20x16xf32>", text)


@pytest.mark.parametrize(("name", "changes"), [("embedding_transformer", {}), ("atst_frame", {"model__layers": 2})])
def test_what_is_computed_again_is_the_same(name, changes):
    """Loss, gradient norm and parameters of a step with model.remat, dropout included."""
    audio = np.random.default_rng(0).integers(-9999, 9999, (8, 20, 1920), np.int16)
    batch = make_batch()
    if name == "atst_frame":
        batch["features"] = {"audio": audio}
    found = []
    for remat in (False, True):
        _, state, step = setup(name, model__remat=remat, **changes)
        text = str(jax.make_jaxpr(step)(state, batch, jax.random.key(0)))
        assert ("remat2[" in text or "checkpoint[" in text) or not remat
        found.append(jax.device_get(jax.jit(step)(state, batch, jax.random.key(3))))
    for a, b in zip(*map(jax.tree.leaves, found)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16_leaves_softmax_norms_loss_and_optimizer_in_float32():
    model, state, step = setup(precision="bfloat16")
    batch, key = jax.tree.map(jnp.asarray, make_batch()), jax.random.key(0)

    def forward(variables, batch):
        """With dropout and without, which are different code, and the loss."""
        dropped = model.apply(variables, batch["features"], batch["frame_mask"], train=True, clip_id=batch["clip_id"],
                              rngs={"dropout": key})
        return dropped, eval_step(variables, batch, np.full((1, 3), 0.5, np.float32), model=model,
                                        weights=np.ones((2, 3), np.float32), pooling="max", task=TINY_TASK)

    made = set(re.findall(r"\w+:(\w+)\[[\d,]*\] = (\w+)", str(jax.make_jaxpr(forward)(state.eval_variables, batch))))
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
