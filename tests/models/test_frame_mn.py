"""PretrainedSED's detectors against its own numbers (SPEC sections 7 and 8), and which checkpoints fit them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import read_golden, reference_tensors, reference_waveform
from pretrained_files import SMALL, small_tensors

from sedjax.audio.frontend import frame_mn_log_mel
from sedjax.core.errors import UserError
from sedjax.models.pretrained import NETWORKS, PretrainedNetwork, variables_from

GOLDEN = {"atst_strong": "atst_frame_strong", "frame_mn06_strong": "frame_mn06", "frame_mn10_strong": "frame_mn10"}


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return small_tensors(SMALL)


def close(actual, expected) -> None:
    """Within 1e-4 of the largest value."""
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_log_mel_of_frame_mobilenet():
    log_mel = jax.jit(frame_mn_log_mel)(jnp.asarray(reference_waveform())[None])
    assert log_mel.shape == (1, 1000, 128)
    close(log_mel[0].T[:, ::10], read_golden("frame_mn06")["mel"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_golden_numbers(name):
    golden = read_golden(GOLDEN[name])
    network = NETWORKS[name]
    model = PretrainedNetwork(network.encoder)
    variables = variables_from(reference_tensors(golden), model, network.rules)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == golden["parameters"]
    window = {"samples": jnp.asarray(reference_waveform()).reshape(1, 250, 640)}
    apply = jax.jit(lambda variables, window: model.apply(variables, window, jnp.ones((1, 250), bool),
                                                          mutable=["intermediates"]))
    logits, collections = apply(variables, window)
    rows = collections["intermediates"]["embeddings"][0]
    assert rows.shape == (1, 250, network.encoder.width)
    if "sequence" in golden:
        close(rows[0, ::10, ::4], golden["sequence"])
    close(logits[0].T[::4, ::10], golden["strong"])


def test_every_tensor_finds_its_place(tensors):
    more = {"mel.window": np.zeros(3), "model.frame_mn.features.0.1.num_batches_tracked": np.zeros((), np.int64)}
    variables = variables_from(tensors | more, SMALL, "frame_mn")
    block, prefix = variables["params"]["encoder"]["features_14"], "model.frame_mn.features.14.block."
    np.testing.assert_array_equal(block["block_0"]["conv"]["kernel"][0, 0].T, tensors[f"{prefix}0.0.weight"][..., 0, 0])
    np.testing.assert_array_equal(block["block_1"]["conv"]["kernel"][:, 1, 0, 2],
                                  tensors[f"{prefix}1.0.weight"][2, 0, :, 1])
    np.testing.assert_array_equal(block["block_2"]["fc1"]["kernel"].T,
                                  tensors[f"{prefix}2.conc_se_layers.0.fc1.weight"])
    np.testing.assert_array_equal(variables["batch_stats"]["encoder"]["features_16"]["norm"]["var"],
                                  tensors["model.frame_mn.features.16.1.running_var"])


@pytest.mark.parametrize("key", ["weak_head.weight", "model.frame_mn.features.14.block.2.conc_se_layers.0.fc1.weight"])
def test_a_missing_a_renamed_a_misshapen_and_an_infinite_tensor(tensors, key):
    others = {name: value for name, value in tensors.items() if name != key}
    short = key.removeprefix("model.frame_mn.")
    for changed, words in ((others, rf"1 tensors are missing \['{short}'\], 0 are unexpected"),
                           (others | {f"{key}2": tensors[key]}, "are unexpected"),
                           (others | {key: tensors[key][..., :-1]}, f"'{short}' has the shape"),
                           (others | {key: tensors[key] * np.nan}, f"NaN.*'{short}'"),
                           ({"other": tensors[key]}, "are missing")):
        with pytest.raises(UserError, match=words):
            variables_from(changed, SMALL, "frame_mn")


def test_the_maximum_over_a_group_of_classes(tensors):
    variables = variables_from(tensors, SMALL, "frame_mn")
    window = {"samples": jnp.asarray(reference_waveform()).reshape(1, 250, 640)[:, :25]}
    mask = jnp.ones((1, 25), bool)
    logits = jax.jit(SMALL.apply)(variables, window, mask)
    grouped = jax.jit(SMALL.clone(groups=((5,), (0, 446, 3))).apply)(variables, window, mask)
    np.testing.assert_allclose(grouped[..., 0], logits[..., 5], rtol=1e-6)
    np.testing.assert_allclose(grouped[..., 1], logits[..., jnp.array([0, 446, 3])].max(-1), rtol=1e-6)
