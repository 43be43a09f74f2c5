"""What every model promises: padding and batch mates change nothing, sizes are checked, statistics are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from sedjax import models
from sedjax.config import base_config, freeze
from sedjax.errors import UserError
from sedjax.models.encoder import Dropout
from sedjax.task import MLPC_2025

WIDTHS = {"embeddings": 16, "melspectrogram": 64}
TRANSFORMERS = ("embedding_transformer", "conv_transformer")


def initialised(name: str, **changes):
    model = models.build_from(tiny_config(name, **changes), MLPC_2025)
    variables = model.init(jax.random.key(0), *models.example_inputs(model, WIDTHS))
    return model, variables


def features(rng: np.random.Generator, clips: int, frames: int, name: str) -> dict[str, jax.Array]:
    key = "embeddings" if name == "embedding_transformer" else "melspectrogram"
    return {key: jnp.asarray(rng.exponential(size=(clips, frames, WIDTHS[key])).astype(np.float32))}


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_padding_and_batch_mates_change_no_logit(name, norm):
    model, variables = initialised(name, model__norm=norm)
    apply = jax.jit(model.apply)
    rng = np.random.default_rng(0)
    lengths = [40, 23, 0, 7]
    mask = jnp.asarray(np.arange(40)[None] < np.array(lengths)[:, None])
    batch = features(rng, 4, 40, name)  # what lies under the padding is no zeros
    together = apply(variables, batch, mask)
    assert np.isfinite(together).all()
    for clip, length in enumerate(lengths):
        if length:
            alone = apply(variables, {key: value[clip : clip + 1, :length] for key, value in batch.items()},
                          jnp.ones((1, length), bool))
            np.testing.assert_allclose(together[clip, :length], alone[0], atol=1e-5)


def test_all_models_give_one_finite_logit_per_frame_and_class():
    for name in models.MODELS:
        model, variables = initialised(name)
        inputs = {key: jnp.ones((2, 20, width)) for key, width in WIDTHS.items()}
        logits = model.apply(variables, inputs, jnp.ones((2, 20), bool))
        assert logits.shape == (2, 20, 10)
        assert logits.dtype == jnp.float32
        assert np.isfinite(logits).all()


def test_positions_tell_frames_apart_and_only_with_them():
    for positions, differs in ((40, True), (0, False)):
        model, variables = initialised("embedding_transformer", model__positions=positions)
        same = jnp.broadcast_to(jnp.arange(16.0)[None, None], (1, 20, 16))
        logits = model.apply(variables, {"embeddings": same}, jnp.ones((1, 20), bool))
        assert (np.abs(logits[0] - logits[0, :1]).max() > 1e-4) == differs


def test_too_many_frames_for_the_positions():
    model, variables = initialised("embedding_transformer")
    with pytest.raises(UserError, match="50 frames but the model has 40 positions"):
        model.apply(variables, {"embeddings": jnp.ones((1, 50, 16))}, jnp.ones((1, 50), bool))


def test_bfloat16_keeps_float32_parameters_and_logits():
    model, variables = initialised("embedding_transformer", precision="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    inputs, mask = {"embeddings": jnp.ones((1, 20, 16))}, jnp.ones((1, 20), bool)
    logits = model.apply(variables, inputs, mask)
    full = initialised("embedding_transformer")[0].apply(variables, inputs, mask)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - full).max() < 0.05


def test_dropout_follows_the_clip_and_the_step_not_the_place():
    layer = Dropout(0.3)
    x, key = jnp.ones((3, 50, 40)), jax.random.key(1)

    def drop(clip_id, key=key):
        return np.asarray(layer.apply({}, x, jnp.asarray(clip_id), rngs={"dropout": key}))

    dropped = drop([5, 6, 7])
    np.testing.assert_array_equal(dropped[[2, 0, 1]], drop([7, 5, 6]))
    assert (dropped[0] != dropped[1]).any()
    assert (dropped != drop([5, 6, 7], jax.random.key(2))).any()
    assert np.allclose(np.unique(dropped), [0, 1 / 0.7])
    # 6000 independent entries: the share that is kept is within 4 standard deviations, and so is its correlation.
    kept = (dropped > 0).astype(float)
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.21 / kept.size)
    neighbours = np.corrcoef(kept[..., 1:].ravel(), kept[..., :-1].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(kept.size)
    assert layer.apply({}, x, None) is x


def test_statistics_standardize():
    model, variables = initialised("embedding_transformer", model__standardize=True)
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=16).astype(np.float32), rng.uniform(1, 2, 16).astype(np.float32)
    filled = models.fill_statistics(variables, {"embeddings": {"mean": mean.tolist(), "std": std.tolist()}})
    x = jnp.asarray(rng.normal(size=(1, 20, 16)), jnp.float32)
    mask = jnp.ones((1, 20), bool)
    shifted = model.apply(filled, {"embeddings": x * std[None, None] + mean[None, None]}, mask)
    np.testing.assert_allclose(shifted, model.apply(variables, {"embeddings": x}, mask), atol=1e-4)


def test_level_needs_a_power():
    _, variables = initialised("conv_transformer")
    with pytest.raises(UserError, match="no power"):
        models.fill_statistics(variables, {"melspectrogram": {"mean": [0.0] * 64, "std": [1.0] * 64}})


@pytest.mark.parametrize(("changes", "words"), [
    ({"model__heads": 3}, "cannot be divided"),
    ({"model__norm": "middle"}, "'post' or 'pre'"),
])
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        tiny_config(**changes)


@pytest.mark.parametrize(("name", "changes", "widths", "parameters"), [
    ("embedding_transformer", {"model.positions": 5000}, {"embeddings": 768}, 40_821_514),
    ("embedding_transformer", {}, {"embeddings": 1024}, 36_219_658),
    ("embedding_transformer", {"model.norm": "pre"}, {"embeddings": 1024}, 36_221_706),
    ("conv_transformer", {"model.positions": 0}, {"melspectrogram": 64}, 13_158_282),
    ("conv_transformer", {}, {"melspectrogram": 64}, 13_286_282),
    ("naive", {}, {}, 0),
])
def test_parameters_of_full_size_models(name, changes, widths, parameters):
    config = base_config(name)
    config.update_from_flattened_dict(changes)
    assert models.count_parameters(models.build_from(freeze(config.to_dict()), MLPC_2025), widths) == parameters
