"""The ResNet-34 against torchvision's (SPEC section 7), and what padding does to it: nothing."""

import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from sedjax.data_prep.import_weights import resnet34_part

from sedjax.models.encoder import BatchNorm
from sedjax.models.resnet import ResNet34

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "resnet34.npz"
SMALL = ResNet34(width=4, blocks=(1, 1, 1))


def reference_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight that SPEC section 7 prescribes for a state-dict key of the ResNet."""
    draw = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) == 4:
        return (np.sqrt(2 / np.prod(shape[1:])) * draw).astype(np.float32)
    w = (0.02 * draw).astype(np.float32)
    if key.endswith("running_var"):
        return 1 + np.abs(w)
    return 1 + w if len(shape) == 1 and key.endswith("weight") else w


def test_stem_and_features_of_torchvision():
    with np.load(GOLDEN, allow_pickle=False) as archive:
        golden = dict(archive)
    shapes = [tuple(map(int, str(shape).strip("()").rstrip(",").split(","))) for shape in golden["shapes"]]
    part = resnet34_part({key: reference_tensor(key, shape) for key, shape in zip(golden["keys"].tolist(), shapes)}, 3)
    tree = traverse_util.unflatten_dict(part, sep="/")
    variables = {name: collection["stem"] for name, collection in tree.items()}
    x = np.random.default_rng(3).standard_normal((2, 3, 64, 96)).astype(np.float32)
    x, mask = jnp.asarray(np.moveaxis(x, 1, -1)), jnp.ones((2, 64), bool)

    def difference(network, name, places):
        apply = jax.jit(network.apply, static_argnums=3)
        found = np.moveaxis(np.asarray(apply(variables, x, mask, False)), -1, 1)[places]
        assert found.shape == golden[name].shape
        return np.abs(found - golden[name]).max() / np.abs(golden[name]).max()

    assert difference(ResNet34(time_strides=True, blocks=()), "stem", np.s_[:, ::8, ::4, ::4]) < 1e-4
    assert difference(ResNet34(time_strides=True), "features", np.s_[:, ::8]) < 1e-4


def padded(clips: list[np.ndarray], frames: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """A batch of clips with large numbers under the padding, and its mask."""
    x = 1e3 * np.random.default_rng(seed).normal(size=(len(clips), frames, *clips[0].shape[1:]))
    for i, clip in enumerate(clips):
        x[i, : len(clip)] = clip
    mask = np.arange(frames)[None] < np.array([len(clip) for clip in clips])[:, None]
    return jnp.asarray(x, jnp.float32), jnp.asarray(mask)


@pytest.fixture(scope="module")
def clips():
    """Of 24, 13, 0 and 1 frames, with 16 bands and 2 channels."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(length, 16, 2)) for length in (24, 13, 0, 1)]


@pytest.fixture(scope="module")
def variables():
    """Of SMALL, as after training: no batch norm is the identity."""
    rng = np.random.default_rng(1)
    initial = jax.jit(SMALL.init, static_argnums=3)(
        jax.random.key(0), jnp.zeros((1, 24, 16, 2)), jnp.ones((1, 24), bool), False)
    return jax.tree.map(
        lambda leaf: leaf if leaf.ndim == 4 else jnp.asarray(rng.uniform(0.5, 1, leaf.shape), jnp.float32), initial)


@pytest.mark.parametrize("time_strides", [False, True])
def test_padding_and_batch_mates_change_nothing(clips, variables, time_strides):
    apply = jax.jit(SMALL.clone(time_strides=time_strides).apply, static_argnums=3)
    together = apply(variables, *padded(clips, 29, seed=2), False)
    assert np.isfinite(together).all()
    for clip, found in zip(clips, together):
        if len(clip):
            alone = apply(variables, *padded([clip], len(clip), seed=2), False)[0]
            assert len(alone) == (-(-len(clip) // 16) if time_strides else len(clip))
            np.testing.assert_allclose(found[: len(alone)], alone, atol=1e-5 * np.abs(alone).max())


def test_padding_changes_nothing_in_training(clips, variables):
    """Neither what comes out, nor the batch statistics, nor the gradients."""
    @jax.jit
    def train(x, mask):
        def total(params):
            out, updates = SMALL.apply({**variables, "params": params}, x, mask, True, mutable=["batch_stats"])
            real = jnp.where(mask[:, :, None, None], out, 0)
            return (real**2).sum(), (real[:, :24], updates["batch_stats"])

        gradients, (out, statistics) = jax.grad(total, has_aux=True)(variables["params"])
        return {"gradients": gradients, "out": out, "statistics": statistics}

    def check(one, other):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())

    first = train(*padded(clips, 24, seed=2))
    jax.tree.map(check, first, train(*padded(clips, 30, seed=3)))
    assert all((new != old).all() for new, old in zip(jax.tree.leaves(first["statistics"]),
                                                      jax.tree.leaves(variables["batch_stats"])))


def test_batch_norm_is_that_of_the_real_frames(clips):
    norm = BatchNorm()
    x, mask = padded([2 * clip + 3 for clip in clips], 30, seed=2)
    rng = np.random.default_rng(3)
    scale, bias, mean, var = (rng.uniform(0.5, 1, 2).astype(np.float32) for _ in range(4))
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    out, updates = norm.apply(variables, x, mask, True, mutable=["batch_stats"])

    real = np.concatenate(clips).reshape(-1, 2) * 2 + 3
    of_batch = (real - real.mean(0)) / np.sqrt(real.var(0) + 1e-5) * scale + bias
    np.testing.assert_allclose(np.asarray(out)[mask].reshape(-1, 2), of_batch, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.9 * mean + 0.1 * real.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 * var + 0.1 * real.var(0, ddof=1), rtol=1e-5)

    out = norm.apply(variables, x, mask, False)
    np.testing.assert_allclose(np.asarray(out)[mask].reshape(-1, 2), (real - mean) / np.sqrt(var + 1e-5) * scale + bias,
                               rtol=1e-5, atol=1e-5)
    _, updates = norm.apply(variables, x, jnp.zeros_like(mask), True, mutable=["batch_stats"])
    np.testing.assert_array_equal(updates["batch_stats"]["mean"], mean)
    np.testing.assert_array_equal(updates["batch_stats"]["var"], var)


@pytest.mark.parametrize(("network", "shape"), [
    (ResNet34(), (2, 50, 3, 512)),
    (ResNet34(width=16), (2, 50, 3, 128)),
    (ResNet34(time_strides=True), (2, 2, 3, 512)),
])
def test_all_frames_are_kept_unless_time_is_strided(network, shape):
    def run(key, x, mask):
        return network.init_with_output(key, x, mask, False)[0]

    out = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, 50, 67, 4)), jnp.ones((2, 50), bool))
    assert out.shape == shape


@pytest.mark.parametrize(("width", "channels", "parameters"), [
    (64, 3, 21_284_672),  # torchvision's, without its last layer
    (64, 1, 21_278_400),
    (16, 1, 1_333_680),
])
def test_parameters(width, channels, parameters):
    variables = jax.eval_shape(lambda key: ResNet34(width).init(
        key, jnp.zeros((1, 10, 64, channels)), jnp.ones((1, 10), bool), False), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
