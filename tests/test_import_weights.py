"""PyTorch checkpoints: all tensors or none."""

import jax
import numpy as np
import pytest
from tiny import run_command

from data_prep import import_weights
from sedjax import models, predict
from sedjax.errors import UserError
from sedjax.models.embedding_transformer import EmbeddingTransformer
from sedjax.task import MLPC_2025

MODEL = EmbeddingTransformer(num_classes=10, width=8, heads=2, layers=2, feed_forward=12, positions=40, head_width=6)
WIDTHS = {"embeddings": 16}


@pytest.fixture
def tensors():
    """What PyTorch would save of MODEL, under the prefix of a Lightning checkpoint."""
    rng = np.random.default_rng(0)
    shapes = {"pos_encoder.pe": (40, 8), "proj.0.weight": (8, 16), "proj.0.bias": (8,), "proj.2.weight": (8, 8),
              "proj.2.bias": (8,), "classifier.0.weight": (6, 8), "classifier.0.bias": (6,),
              "classifier.3.weight": (10, 6), "classifier.3.bias": (10,)}
    for i in range(2):
        layer = {"self_attn.in_proj_weight": (24, 8), "self_attn.in_proj_bias": (24,),
                 "self_attn.out_proj.weight": (8, 8), "self_attn.out_proj.bias": (8,), "linear1.weight": (12, 8),
                 "linear1.bias": (12,), "linear2.weight": (8, 12), "linear2.bias": (8,), "norm1.weight": (8,),
                 "norm1.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,)}
        shapes |= {f"transformer.layers.{i}.{key}": shape for key, shape in layer.items()}
    return {f"model.{key}": rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def convert(tensors):
    bare = import_weights.strip_prefix(tensors, "model.")
    return import_weights.convert(bare, MODEL, "embedding_transformer", WIDTHS)


def test_every_tensor_finds_its_place(tensors):
    params = convert(tensors)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(t.size for t in tensors.values())
    np.testing.assert_array_equal(params["proj1"]["kernel"], tensors["model.proj.0.weight"].T)
    np.testing.assert_array_equal(params["encoder"]["layer_1"]["norm2"]["scale"],
                                  tensors["model.transformer.layers.1.norm2.weight"])


@pytest.mark.parametrize("key", ["model.proj.2.bias", "model.transformer.layers.1.linear1.weight"])
def test_a_missing_a_renamed_and_a_misshapen_tensor(tensors, key):
    value = tensors.pop(key)
    short = key.removeprefix("model.")
    with pytest.raises(UserError, match=rf"1 tensors are missing \['{short}'\], 0 are unexpected"):
        convert(tensors)
    with pytest.raises(UserError, match=rf"1 are unexpected \['{short}2'\]"):
        convert(tensors | {f"{key}2": value})
    with pytest.raises(UserError, match=f"'{short}' has the shape"):
        convert(tensors | {key: value[:-1]})


FLAGS = ["--config=configs/embedding_transformer.py", "--config.model.width=8", "--config.model.heads=2",
         "--config.model.layers=2", "--config.model.feed_forward=12", "--config.model.positions=40",
         "--config.model.head_width=6", "--config.data.max_frames=40"]


def test_the_command_makes_a_workdir_that_predicts(tensors, tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", **tensors)
    run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'weights.npz'}", f"--workdir={tmp_path / 'w'}")
    assert "Loaded 33 of 33 tensors" in capsys.readouterr().out
    detector = predict.load(tmp_path / "w", "last")
    assert detector.task.classes == MLPC_2025.classes
    np.testing.assert_array_equal(detector.variables["params"]["head"]["linear2"]["bias"],
                                  tensors["model.classifier.3.bias"])
    assert models.count_parameters(detector.model, detector.widths) == sum(t.size for t in tensors.values())
    with pytest.raises(UserError, match="exists already"):
        run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'weights.npz'}", f"--workdir={tmp_path / 'w'}")


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a readable npz"):
        run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'weights.npz'}", f"--workdir={tmp_path / 'w'}")
    assert not (tmp_path / "w").exists()


def test_a_lightning_checkpoint(tensors, tmp_path):
    torch = pytest.importorskip("torch")
    saved = {"state_dict": {key: torch.from_numpy(value) for key, value in tensors.items()}, "epoch": 16}
    torch.save(saved, tmp_path / "best.ckpt")
    found = import_weights.read_state_dict(str(tmp_path / "best.ckpt"))
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key], value)
    torch.save({"state_dict": saved, "code": print}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="not a readable PyTorch checkpoint"):
        import_weights.read_state_dict(str(tmp_path / "evil.ckpt"))
    whole = (tmp_path / "best.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable PyTorch checkpoint"):
        import_weights.read_state_dict(str(tmp_path / "half.ckpt"))
