"""What every model promises: padding and batch mates change nothing, sizes are checked, statistics are used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny import drawn, tiny_config

from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.models import registry
from sedjax.models.embedding_transformer import DepthwiseConv, EmbeddingTransformer
from sedjax.models.encoder import Dropout
from sedjax.models.variables import count_parameters, fill_statistics, fill_weights
from sedjax.training import train_state
from sedjax.training.configs import base_config, freeze

WIDTHS = {"embeddings": 16, "melspectrogram": 64, "mfcc": 24, "audio": 1920}
TRANSFORMERS = ("embedding_transformer", "conv_transformer")
VARIANTS = [("embedding_transformer", {"model__norm": "post"}), ("embedding_transformer", {"model__norm": "pre"}),
            ("embedding_transformer", {"model__stem": "conv"}),
            ("conv_transformer", {"model__norm": "post"}), ("conv_transformer", {"model__norm": "pre"}),
            ("conv_transformer", {"model__mfcc": (0, 1, 22), "model__mfcc_as": "bands"}),
            ("conv_transformer", {"model__mfcc": (0, 1, 22), "model__mfcc_as": "channels"})]


def initialised(name: str, **changes):
    model = registry.build_from(tiny_config(name, **changes), MLPC_2025)
    return model, drawn(model, WIDTHS)


def features(rng: np.random.Generator, clips: int, frames: int, model) -> dict[str, jax.Array]:
    return {key: jnp.asarray(rng.exponential(size=(clips, frames, WIDTHS[key])).astype(np.float32))
            for key in model.inputs}


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_padding_and_batch_mates_change_no_logit(name, changes):
    model, variables = initialised(name, **changes)
    apply = jax.jit(model.apply)
    rng = np.random.default_rng(0)
    lengths = [40, 23, 0, 7]
    mask = jnp.asarray(np.arange(40)[None] < np.array(lengths)[:, None])
    batch = features(rng, 4, 40, model)  # what lies under the padding is no zeros
    together = apply(variables, batch, mask)
    assert np.isfinite(together).all()
    for clip, length in ((1, 23), (3, 7)):
        alone = apply(variables, {key: value[clip : clip + 1, :length] for key, value in batch.items()},
                      jnp.ones((1, length), bool))
        np.testing.assert_allclose(together[clip, :length], alone[0], atol=1e-5)


def test_all_models_give_one_logit_per_frame_and_class():
    for name in registry.MODELS:
        model = registry.build_from(tiny_config(name), MLPC_2025)
        inputs = {key: jnp.ones((2, 20, width)) for key, width in WIDTHS.items()}
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), inputs, jnp.ones((2, 20), bool))
        assert logits.shape == (2, 20, 10)
        assert logits.dtype == jnp.float32


def test_positions_tell_frames_apart_and_only_with_them():
    for positions, differs in ((40, True), (0, False)):
        model, variables = initialised("embedding_transformer", model__positions=positions)
        same = jnp.broadcast_to(jnp.arange(16.0)[None, None], (1, 20, 16))
        logits = jax.jit(model.apply)(variables, {"embeddings": same}, jnp.ones((1, 20), bool))
        assert (np.abs(logits[0] - logits[0, :1]).max() > 1e-4) == differs


def test_too_many_frames_for_the_positions():
    model, variables = initialised("embedding_transformer")
    with pytest.raises(UserError, match="50 frames but the model has 40 positions"):
        model.apply(variables, {"embeddings": jnp.ones((1, 50, 16))}, jnp.ones((1, 50), bool))


def test_bfloat16_keeps_float32_parameters_and_logits():
    model, variables = initialised("embedding_transformer", precision="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    inputs, mask = {"embeddings": jnp.ones((1, 20, 16))}, jnp.ones((1, 20), bool)
    logits = jax.jit(model.apply)(variables, inputs, mask)
    full = jax.jit(initialised("embedding_transformer")[0].apply)(variables, inputs, mask)
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
    filled = fill_statistics(variables, {"embeddings": {"mean": mean.tolist(), "std": std.tolist()}})
    x = jnp.asarray(rng.normal(size=(1, 20, 16)), jnp.float32)
    mask = jnp.ones((1, 20), bool)
    apply = jax.jit(model.apply)
    shifted = apply(filled, {"embeddings": x * std[None, None] + mean[None, None]}, mask)
    np.testing.assert_allclose(shifted, apply(variables, {"embeddings": x}, mask), atol=1e-4)


def test_mfcc_are_the_chosen_ones_standardized_and_beside_the_mel_bands():
    rng = np.random.default_rng(0)
    x = {"melspectrogram": jnp.ones((1, 20, 64)), "mfcc": jnp.asarray(rng.normal(size=(1, 20, 24)), jnp.float32)}
    mask = jnp.ones((1, 20), bool)
    for mfcc_as in ("bands", "channels"):
        model, variables = initialised("conv_transformer", model__mfcc=(0, 22), model__mfcc_as=mfcc_as)
        apply = jax.jit(model.apply)
        logits = apply(variables, x, mask)
        for column, differs in ((0, True), (1, False), (22, True)):
            moved = {**x, "mfcc": x["mfcc"].at[..., column].add(1.0)}
            assert (np.abs(apply(variables, moved, mask) - logits).max() > 1e-4) == differs
        filled = jax.tree.map(jnp.copy, variables)
        filled["statistics"]["mfcc_mean"] += 3.0
        moved = {**x, "mfcc": x["mfcc"] + 3.0}
        np.testing.assert_allclose(apply(filled, moved, mask), logits, atol=1e-5)
    with pytest.raises(UserError, match=r"model.mfcc = \(0, 24\).* 0 to 23"):
        initialised("conv_transformer", model__mfcc=(0, 24))


@pytest.mark.parametrize("size", [3, 4, 7])
def test_a_depthwise_convolution_is_a_grouped_one(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 6)), jnp.float32)
    layer = DepthwiseConv(size)
    variables = layer.init(jax.random.key(0), x)
    grouped = nn.Conv(6, (size,), feature_group_count=6, use_bias=False)
    np.testing.assert_allclose(layer.apply(variables, x), grouped.apply(variables, x), atol=1e-5)


def test_depthwise_convolutions_see_their_frames_only_and_each_column_alone():
    model = EmbeddingTransformer(num_classes=2, stem="conv", width=4, heads=1, layers=0, positions=0, head_width=0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, 6)), jnp.float32)
    mask = jnp.ones((1, 40), bool)
    variables, apply = drawn(model, {"embeddings": 6}), jax.jit(model.apply)
    logits = apply(variables, {"embeddings": x}, mask)
    moved = apply(variables, {"embeddings": x.at[0, 20].add(5.0)}, mask)
    changed = np.flatnonzero(np.abs(moved - logits).max((0, 2)))
    assert (changed.min(), changed.max()) == (14, 26)  # (7 - 1) / 2 + (5 - 1) / 2 + (3 - 1) / 2 frames on each side
    assert {name: value["kernel"].shape for name, value in variables["params"]["stem"].items() if "conv" in name} == {
        "conv1": (7, 1, 6), "conv2": (5, 1, 6), "conv3": (3, 1, 6)}


def test_masks_of_augmentation_are_for_training_only():
    model, variables = initialised("conv_transformer", model__time_masks=2, model__band_masks=2, model__dropout=0.0)
    inputs, mask = features(np.random.default_rng(0), 2, 40, model), jnp.ones((2, 40), bool)
    plain = initialised("conv_transformer", model__dropout=0.0)[0]

    @functools.partial(jax.jit, static_argnames=("module", "train"))
    def apply(module, key, **train):
        return module.apply(variables, inputs, mask, rngs={"augment": key}, **train)

    def logits(module, key: int, **train):
        return np.asarray(apply(module, jax.random.key(key), **train))

    training = {"train": True, "clip_id": jnp.arange(2)}
    np.testing.assert_array_equal(logits(model, 0), logits(plain, 0))
    np.testing.assert_array_equal(logits(model, 0, **training), logits(model, 0, **training))
    assert (logits(model, 0, **training) != logits(model, 1, **training)).any()
    assert (logits(model, 0, **training) != logits(plain, 0, **training)).any()


def test_initial_weights_replace_a_whole_part_or_nothing(tmp_path):
    model, variables = initialised("conv_transformer")
    held = {f"params/stem/conv{i}/{name}": np.full(value.shape, float(i), np.float32)
            for i in (1, 2) for name, value in variables["params"]["stem"][f"conv{i}"].items()}
    np.savez(tmp_path / "stem.npz", **held)
    filled = fill_weights(variables, tmp_path / "stem.npz")
    assert (filled["params"]["stem"]["conv2"]["kernel"] == 2).all()
    np.testing.assert_array_equal(filled["params"]["head"]["linear2"]["kernel"],
                                  variables["params"]["head"]["linear2"]["kernel"])
    state = train_state.create(model, optax.sgd(1.0), {"melspectrogram": {
        "width": 64, "level_mean": [0.0] * 64, "level_std": [1.0] * 64}}, True, 0, str(tmp_path / "stem.npz"))
    for params in (state.params, state.ema["params"]):
        assert (params["stem"]["conv1"]["kernel"] == 1).all()
    name = "params/stem/conv1/kernel"
    for broken, words in (({**held, name: held[name][1:]}, r"conv1/kernel is \(2, 3, 1, 2\) there and \(3, 3, 1, 2\)"),
                          ({**held, "params/stem/conv3/bias": np.ones(3)}, "missing in the model"),
                          ({key: value for key, value in held.items() if key != name}, "kernel is missing there"),
                          ({**held, name: np.full_like(held[name], np.nan)}, "conv1/kernel is not .* finite"),
                          ({**held, name: np.full(held[name].shape, 1e300)}, "conv1/kernel is not .* finite"),
                          ({**held, name: held[name].astype(str)}, "conv1/kernel is not .* finite")):
        np.savez(tmp_path / "broken.npz", **broken)
        with pytest.raises(UserError, match=words):
            fill_weights(variables, tmp_path / "broken.npz")
    for content in (b"", b"no zip"):
        (tmp_path / "damaged.npz").write_bytes(content)
        with pytest.raises(UserError, match="damaged or not an npz file"):
            fill_weights(variables, tmp_path / "damaged.npz")
    with pytest.raises(UserError, match="no file .*none.npz"):
        fill_weights(variables, tmp_path / "none.npz")


def test_level_needs_a_power():
    _, variables = initialised("conv_transformer")
    with pytest.raises(UserError, match="melspectrogram.*model.log_scale"):
        fill_statistics(variables, {"melspectrogram": {"mean": [0.0] * 64, "std": [1.0] * 64}})


@pytest.mark.parametrize(("changes", "words"), [
    ({"model__heads": 3}, "model.heads = 3"),
    ({"model__norm": "middle"}, "model.norm must be .post. or .pre., not"),
    ({"model__stem": "resnet34"}, "model.stem must be .linear. or .conv., not"),
    ({"model__heads": 6, "model__width": 1024}, "model.width = 1024 .*model.heads = 6"),
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
    ("conv_transformer", {"model.stem": "resnet34"}, {"melspectrogram": 64}, 34_545_866),
    ("conv_transformer", {"model.mfcc": (0, 1, 22)}, {"melspectrogram": 64, "mfcc": 32}, 13_319_050),
    ("embedding_transformer", {"model.stem": "conv", "model.width": 512, "model.head_width": 0}, {"embeddings": 768},
     13_152_522),
    ("atst_frame", {}, {"audio": 1920}, 85_419_264 + 7_690),
    ("atst_hybrid", {}, {"audio": 1920}, 85_419_264 + 35_957_514),
    ("naive", {}, {}, 0),
])
def test_parameters_of_full_size_models(name, changes, widths, parameters):
    config = base_config(name)
    config.update_from_flattened_dict(changes)
    assert count_parameters(registry.build_from(freeze(config.to_dict()), MLPC_2025), widths) == parameters
