"""PyTorch checkpoints: all tensors or none."""

import os
import pathlib

import jax
import numpy as np
import pytest
from sedjax.data_prep import import_weights
from tiny import run_command
from torch_files import save_torch

from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.inference.trained import load_model
from sedjax.models.embedding_transformer import EmbeddingTransformer
from sedjax.models.torch_weights import strip_prefix
from sedjax.models.variables import count_parameters

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
    bare = strip_prefix(tensors, "model.")
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
    model = load_model(tmp_path / "w", "last")
    assert model.task.classes == MLPC_2025.classes
    np.testing.assert_array_equal(model.variables["params"]["head"]["linear2"]["bias"],
                                  tensors["model.classifier.3.bias"])
    assert count_parameters(model.model, model.widths) == sum(t.size for t in tensors.values())
    for name, words in (("w", "exists already"), ("n" * 256, "255")):
        with pytest.raises(UserError, match=words):
            run_command(import_weights, *FLAGS, "--checkpoint=none.npz", f"--workdir={tmp_path / name}")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.npz is damaged or not an npz"):
        run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'weights.npz'}", f"--workdir={tmp_path / 'w'}")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("value", "words"), [
    (np.nan, r"weights\.npz holds NaN.*'proj\.0\.weight'"), (1e300, r"float32 in 'proj\.0\.weight'"),
    (None, r"weights\.npz is damaged"),
    ("text", r"'proj\.0\.weight' holds <U4"), (1j, r"'proj\.0\.weight' holds complex")])
def test_tensors_that_are_not_finite_numbers(tensors, tmp_path, value, words):
    np.savez(tmp_path / "weights.npz", **tensors | {"model.proj.0.weight": np.full((8, 16), value)})
    with pytest.raises(UserError, match=words):
        run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'weights.npz'}", f"--workdir={tmp_path / 'w'}")
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_a_workdir_is_whole_or_not_there(tensors, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("The disk is full")

    np.savez(tmp_path / "weights.npz", **tensors)
    monkeypatch.setattr(import_weights.checkpoint, "save", full)
    with pytest.raises(UserError, match="The disk is full"):
        run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'weights.npz'}", f"--workdir={tmp_path / 'w'}")
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_an_output_of_the_user_stays(tmp_path):
    (tmp_path / "stem.npz").write_text("mine")
    for flags in (STEM_FLAGS, ["--network=atst_frame"]):
        with pytest.raises(UserError, match=r"stem\.npz already exists"):
            run_command(import_weights, *flags, "--checkpoint=none.npz", f"--output={tmp_path / 'stem.npz'}")
    assert (tmp_path / "stem.npz").read_text() == "mine"


def test_a_lightning_checkpoint(tensors, tmp_path):
    save_torch(tmp_path / "best.ckpt", tensors, epoch=16)
    run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'best.ckpt'}", f"--workdir={tmp_path / 'w'}")
    np.testing.assert_array_equal(load_model(tmp_path / "w", "last").variables["params"]["proj1"]["bias"],
                                  tensors["model.proj.0.bias"])
    whole = (tmp_path / "best.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.ckpt is damaged or not a PyTorch checkpoint"):
        run_command(import_weights, *FLAGS, f"--checkpoint={tmp_path / 'half.ckpt'}", f"--workdir={tmp_path / 'v'}")


@pytest.fixture(scope="module")
def image_classifier():
    """What torchvision saves of a ResNet-34."""
    with np.load(pathlib.Path(__file__).parents[1] / "golden" / "resnet34.npz", allow_pickle=False) as archive:
        shapes = {str(key): tuple(map(int, str(shape).strip("()").rstrip(",").split(",")))
                  for key, shape in zip(archive["keys"], archive["shapes"])}
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    counters = {key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
                for key in shapes if key.endswith("running_mean")}
    return tensors | counters


def test_every_tensor_of_a_resnet_finds_its_place(image_classifier):
    part = import_weights.resnet34_part(image_classifier, 3)
    assert sum(value.size for name, value in part.items() if name.startswith("params/stem/")) == 21_284_672
    assert len(part) == 36 + 4 * 36  # convolutions and batch norms, nothing of the classifier
    for name, key in [("batch_stats/stem/bn1/mean", "bn1.running_mean"),
                      ("batch_stats/stem/layer4_2/bn2/var", "layer4.2.bn2.running_var"),
                      ("params/stem/layer1_0/bn1/scale", "layer1.0.bn1.weight"),
                      ("params/stem/layer2_0/downsample_bn/bias", "layer2.0.downsample.1.bias")]:
        np.testing.assert_array_equal(part[name], image_classifier[key])
    for name, key in [("conv1", "conv1"), ("layer3_5/conv2", "layer3.5.conv2"),
                      ("layer4_0/downsample_conv", "layer4.0.downsample.0")]:
        np.testing.assert_array_equal(part[f"params/stem/{name}/kernel"],
                                      image_classifier[f"{key}.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_input_channels_of_a_resnet(image_classifier, channels):
    """Equal channels excite the network as equal colours do, whatever their number."""
    kernel = import_weights.resnet34_part(image_classifier, channels)["params/stem/conv1/kernel"]
    original = image_classifier["conv1.weight"].transpose(2, 3, 1, 0)
    assert kernel.shape == (7, 7, channels, 64)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel.sum(2), original.sum(2), atol=1e-5)
    if channels == 3:
        np.testing.assert_array_equal(kernel, original)
    else:
        np.testing.assert_array_equal(kernel, np.broadcast_to(kernel[:, :, :1], kernel.shape))


@pytest.mark.parametrize("key", ["conv1.weight", "layer2.0.downsample.1.running_var"])
def test_a_missing_a_renamed_and_a_misshapen_tensor_of_a_resnet(image_classifier, key):
    others = {name: value for name, value in image_classifier.items() if name != key}
    value = image_classifier[key]
    with pytest.raises(UserError, match=rf"1 tensors are missing \['{key}'\], 0 are unexpected"):
        import_weights.resnet34_part(others, 1)
    with pytest.raises(UserError, match=rf"1 are unexpected \['{key}2'\]"):
        import_weights.resnet34_part(others | {f"{key}2": value}, 1)
    for misshapen in (value[:-1], value.ravel()[:1]):
        with pytest.raises(UserError, match=f"'{key}' has the shape"):
            import_weights.resnet34_part(others | {key: misshapen}, 1)


STEM_FLAGS = ["--config=configs/conv_transformer.py", "--config.model.stem=resnet34"]


def test_the_command_makes_a_part_of_a_model(image_classifier, tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", **image_classifier)
    flags = [*STEM_FLAGS, f"--checkpoint={tmp_path / 'weights.npz'}", f"--output={tmp_path / 'stem.npz'}"]
    run_command(import_weights, *flags, "--config.model.mfcc=(0, 1, 22)", "--config.model.mfcc_as=channels")
    assert "Loaded 180 of 218 tensors" in capsys.readouterr().out
    with np.load(tmp_path / "stem.npz") as held:
        expected = import_weights.resnet34_part(image_classifier, 4)
        assert set(held) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(held[name], value)
    run_command(import_weights, *flags, "--config.model.mfcc=(0, 1, 22)", "--config.model.mfcc_as=bands")
    with np.load(tmp_path / "stem.npz") as held:
        assert held["params/stem/conv1/kernel"].shape == (7, 7, 1, 64)
    (tmp_path / "stem.npz").unlink()
    with pytest.raises(UserError, match=r"has the shape \(64,.*is \(16,"):
        run_command(import_weights, *flags, "--config.model.resnet_width=16")
    with pytest.raises(UserError, match="must end in .npz"):
        run_command(import_weights, *flags, f"--output={tmp_path / 'stem.txt'}")
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["weights.npz"]


@pytest.mark.parametrize(("flags", "words"), [
    ((*STEM_FLAGS,), "either --workdir"),
    ((*STEM_FLAGS, "--output=out.npz", "--workdir=out"), "either --workdir"),
    ((*STEM_FLAGS, "--workdir=out"), "give --output"),
    ((*FLAGS, "--output=out.npz"), "give --workdir"),
    (("--config=configs/conv_transformer.py", "--output=out.npz"), "No PyTorch checkpoint of 'conv_transformer'"),
])
def test_workdir_or_output(flags, words):
    with pytest.raises(UserError, match=words):
        run_command(import_weights, *flags, "--checkpoint=weights.npz")


def test_a_torchvision_checkpoint(image_classifier, tmp_path):
    save_torch(tmp_path / "resnet34.pth", image_classifier)
    run_command(import_weights, *STEM_FLAGS, f"--checkpoint={tmp_path / 'resnet34.pth'}",
                f"--output={tmp_path / 'stem.npz'}")
    with np.load(tmp_path / "stem.npz") as stem:
        np.testing.assert_array_equal(stem["params/stem/layer2_0/bn1/scale"], image_classifier["layer2.0.bn1.weight"])
