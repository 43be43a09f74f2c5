"""ATST-Frame in a model: the windows of the extractor, whatever the padding; pretrained weights, all or none."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import TINY_TASK, change_npz, drawn, embed_alone, tiny_config

from sedjax.audio import reader
from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.inference import extractors
from sedjax.inference.trained import embed_step
from sedjax.models import registry
from sedjax.models.atst_frame import AtstFrame
from sedjax.models.variables import example_inputs, fill_weights

SECONDS = (1 / 16000, 0.5, 9.99, 10, 10.01, 24, 30)
NAMES = ("atst_frame", "atst_hybrid")


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """16-bit recordings that are louder and softer by turns."""
    rng = np.random.default_rng(0)
    found = []
    for seconds in SECONDS:
        samples = round(seconds * 16000)
        envelope = np.repeat(rng.random(samples // 5000 + 1), 5000)[:samples]
        found.append(np.rint(8000 * envelope * rng.standard_normal(samples)).clip(-32767, 32767).astype(np.int16))
    return found


def padded(clips: list[np.ndarray], frames: int) -> tuple[dict, jax.Array]:
    """Features and frame mask of a batch; under the padding is no silence."""
    lengths = np.array([-(-len(clip) // 1920) for clip in clips])
    audio = np.full((len(clips), frames * 1920), 1234, np.int16)
    for row, clip, length in zip(audio, clips, lengths):
        row[: length * 1920] = np.pad(clip, (0, length * 1920 - len(clip)))
    return ({"audio": jnp.asarray(audio.reshape(len(clips), frames, 1920))},
            jnp.asarray(np.arange(frames)[None] < lengths[:, None]))


def initialised(name: str, **changes):
    """A tiny model and its variables."""
    model = registry.build_from(tiny_config(name, **changes), TINY_TASK)
    return model, drawn(model, {"audio": 1920})


@pytest.mark.parametrize("hop_seconds", [9.6, 4.8])
def test_a_batch_has_the_rows_of_the_extractor(clips, hop_seconds):
    """And so of each recording alone, of any length, on one device or, as here, on eight.

    See test_atst_frame for the extractor against brute force.
    """
    model, variables = initialised("atst_frame", model__hop_seconds=hop_seconds)
    mesh = parallel.make_mesh()
    embed = parallel.compile_step(functools.partial(embed_step, model=model), mesh, by_row=True)
    features, mask = padded([*clips, np.zeros(0, np.int16)], 250)
    batch = parallel.shard({"features": features, "frame_mask": mask}, mesh)
    found = np.asarray(embed(parallel.replicate(variables, mesh), batch)["frames"])
    assert np.isfinite(found).all()
    encoder = AtstFrame(layers=1, width=64, feed_forward=16)
    extractor = extractors.AtstExtractor(encoder, variables["params"]["atst"], round(hop_seconds * 16000), batch_size=1)
    for clip, rows in zip(clips, found):
        expected = embed_alone(extractor, (clip / reader.FULL_SCALE).astype(np.float32), 16000)
        np.testing.assert_allclose(rows[: len(expected)], expected, atol=5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_batch_mates_and_the_type_of_samples_change_no_logit(clips, name):
    """With dropout in the head, as in training; that of the hybrid's attention is drawn for the padded length."""
    changes = {"model__hop_seconds": 4.8} if name == "atst_frame" else {"model__positions": 100}
    model, variables = initialised(name, **changes)
    train = name == "atst_frame"

    @jax.jit
    def logits(features, mask, clip_id):
        return model.apply(variables, features, mask, train=train, clip_id=clip_id,
                           rngs={"dropout": jax.random.key(1)})

    chosen = [clips[1], clips[4][: 80 * 1920]]
    together = logits(*padded(chosen, 100), jnp.array([7, 8]))
    assert together.dtype == jnp.float32
    features, mask = padded(chosen[1:], 80)
    alone = logits({"audio": features["audio"].astype(jnp.float32)}, mask, jnp.array([8]))
    np.testing.assert_allclose(together[1, :80], alone[0], atol=1e-5)
    assert np.abs(together[1, :80] - together[0, :80]).max() > 0.1


@pytest.mark.parametrize(("changes", "words"), [
    ({"model__width": 100}, "model.width must be a multiple of 64"),
    ({"model__drop_layers": 1}, "model.drop_layers = 1 .*model.layers = 1"),
    ({"model__drop_layers": -1}, "model.drop_layers must be greater"),
    ({"model__hop_seconds": 5.0}, "model.hop_seconds must be one of 9.6, 4.8, not 5.0"),
    ({"model": "atst_hybrid", "model__atst_width": 16}, "model.atst_width must be a multiple of 64"),
    ({"model": "atst_hybrid", "model__standardize": True}, "model.standardize must be False"),
    ({"model": "atst_hybrid", "model__heads": 3}, "model.heads = 3"),
])
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        tiny_config(**{"model": "atst_frame", **changes})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as data_prep.import_weights writes it, of three layers, with the strong head."""
    encoder = AtstFrame(layers=3, width=64, feed_forward=16)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 1001, 64)))["params"]
    flat = traverse_util.flatten_dict(shapes, sep="/")
    path = tmp_path_factory.mktemp("weights") / "atst.npz"
    np.savez(path, **{f"params/atst/{name}": np.full(leaf.shape, 0.5, np.float32) for name, leaf in flat.items()},
             **{"params/strong_head/kernel": np.zeros((64, 447)), "params/strong_head/bias": np.zeros(447)})
    return path


def filled(name: str, path, **changes) -> dict:
    """What variables.fill_weights returns for the abstract variables of a model, by path."""
    prefix = "" if name == "atst_frame" else "atst_"
    model = registry.build_from(tiny_config(name, **{f"model__{prefix}{key}": value for key, value in changes.items()}),
                              TINY_TASK)
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, {"audio": 1920}))
    return traverse_util.flatten_dict(fill_weights(variables, path, model.unused_weights), sep="/")


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_encoder_and_what_the_model_leaves_out(name, weights, caplog):
    for dropped, unused in ((0, "params/strong_head/"), (1, "params/atst/block_2/, params/strong_head/")):
        caplog.clear()
        with caplog.at_level(logging.INFO, "sedjax"):
            found = filled(name, weights, layers=3, drop_layers=dropped)
        assert [record.getMessage().endswith(f": {unused}.") for record in caplog.records] == [True]
        assert ("params/atst/block_2/qkv/kernel" in found) == (dropped == 0)
        for path, value in found.items():
            assert isinstance(value, jax.ShapeDtypeStruct) != path.startswith("params/atst/")


@pytest.mark.parametrize(("changes", "words"), [
    ({"params/atst/pos_embed": np.zeros((1, 101, 64))}, r"pos_embed is \(1, 101, 64\) there and \(1, 251, 64\)"),
    ({"params/atst/block_0/fc1/bias": None}, "block_0/fc1/bias is missing there"),
    ({"params/atst/block_3/fc1/bias": np.zeros(16)}, "block_3/fc1/bias is .* missing in the model"),
    ({"params/strong_head2/bias": np.zeros(447)}, "params/strong_head2/bias is .* missing in the model"),
])
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, changes, words):
    (tmp_path / "b.npz").write_bytes(weights.read_bytes())
    change_npz(tmp_path / "b.npz", **changes)
    with pytest.raises(UserError, match=words):
        filled("atst_frame", tmp_path / "b.npz", layers=3)


def test_weights_of_other_sizes_and_of_a_head_alone(weights, tmp_path):
    with pytest.raises(UserError, match="block_2/fc1/bias is .* missing in the model"):
        filled("atst_hybrid", weights, layers=2)
    np.savez(tmp_path / "head.npz", **{"params/strong_head/bias": np.zeros(447)})
    with pytest.raises(UserError, match="head.npz"):
        filled("atst_frame", tmp_path / "head.npz")
