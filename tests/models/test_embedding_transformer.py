"""The embedding-transformer against the reference program (SPEC section 7)."""

import functools
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sedjax.data_prep.import_weights import convert

from sedjax.core.config import OptimizerConfig
from sedjax.models.embedding_transformer import EmbeddingTransformer
from sedjax.models.torch_weights import tensor_key
from sedjax.models.variables import count_parameters
from sedjax.training import optimizer, train_state, train_step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
WIDTHS = {"embeddings": 768}


def reference_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight that SPEC section 7 prescribes for a state-dict key."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    w = (0.02 * rng.standard_normal(shape)).astype(np.float32)
    return 1 + w if len(shape) == 1 and key.endswith("weight") else w


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "embedding_transformer.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def tensors(golden):
    shapes = [tuple(map(int, str(shape).strip("()").rstrip(",").split(","))) for shape in golden["shapes"]]
    return {str(key): reference_tensor(str(key), shape) for key, shape in zip(golden["keys"], shapes)}


@pytest.fixture(scope="module")
def model():
    return EmbeddingTransformer(num_classes=10, positions=5000)


@pytest.fixture(scope="module")
def params(tensors, model):
    return convert(tensors, model, "embedding_transformer", WIDTHS)


@pytest.fixture(scope="module")
def batch(golden):
    x = np.random.default_rng(1).standard_normal((2, 60, 768)).astype(np.float32)
    votes = (np.random.default_rng(2).random((2, 60, 10)) < 0.1).astype(np.float16)
    mask = np.arange(60)[None] < golden["lengths"][:, None]
    return jax.tree.map(jnp.asarray, {"features": {"embeddings": x}, "votes": votes, "frame_mask": mask,
                                      "clip_id": np.arange(2, dtype=np.int32)})


def test_logits(golden, model, params, batch):
    logits = jax.jit(model.apply)({"params": params}, batch["features"], jnp.ones((2, 60), bool))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


class SeesPadding(EmbeddingTransformer):
    """The reference program: its attention runs over padding, only its loss is masked."""

    def __call__(self, features, frame_mask, **kwargs):
        return super().__call__(features, jnp.ones_like(frame_mask), **kwargs)


def test_loss_gradients_and_four_adamw_steps(golden, params, batch):
    module = SeesPadding(num_classes=10, positions=5000, dropout=0.0)
    weights = np.stack([golden["pos_weight"], np.ones(10, np.float32)])
    adamw = optimizer.make_optimizer(OptimizerConfig(learning_rate=1e-5), warmup_steps=0, total_steps=4)
    state = train_state.TrainState(jnp.zeros((), jnp.int32), params, None, {}, adamw.init(params))
    key = jax.random.key(0)
    step = jax.jit(functools.partial(train_step.train_step, batch=batch, key=key, model=module, optimizer=adamw,
                                     weights=weights))
    with np.load(GOLDEN / "embedding_transformer_adamw.npz", allow_pickle=False) as archive:
        expected = archive["losses"]
    seen = []
    for _ in expected:
        state, scalars = step(state)
        seen.append(float(scalars["loss"]))
        if len(seen) == 1:
            gradients = convert_back(optax.tree.get(state.opt_state, "mu"))  # a tenth of them, after one step
    for name, norm in zip(golden["grad_keys"], golden["grad_norms"]):
        np.testing.assert_allclose(10 * np.linalg.norm(gradients[str(name)]), norm, rtol=1e-4)
    np.testing.assert_allclose(seen[0], golden["loss"], rtol=1e-4)
    np.testing.assert_allclose(seen, expected, rtol=1e-4)


def convert_back(tree) -> dict[str, np.ndarray]:
    """A tree like the parameters, by the reference's keys."""
    from flax import traverse_util

    return {tensor_key(path, "embedding_transformer"): np.asarray(value)
            for path, value in traverse_util.flatten_dict(tree, sep="/").items()}


def test_parameters_of_the_reports_model(model):
    assert count_parameters(model, WIDTHS) == 40_821_514
