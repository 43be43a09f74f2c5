"""ATST-Frame against PretrainedSED (SPEC section 7), and its windows on the grid of frames."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from golden import read_golden, reference_tensor, reference_tensors, reference_waveform
from sedjax.data_prep import extract, import_weights
from tiny import change_npz, embed_alone, run_command
from torch_files import save_torch

from sedjax.audio import reader
from sedjax.core import grid
from sedjax.core.errors import UserError
from sedjax.data.layout import read_layout
from sedjax.inference import extractors
from sedjax.models import atst_frame
from sedjax.models.atst_frame import AtstFrame
from sedjax.models.encoder import Dense
from sedjax.models.torch_weights import split_heads

SMALL = AtstFrame(layers=2, width=64, feed_forward=32)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return read_golden("atst_frame")


@pytest.fixture(scope="module")
def tensors(golden) -> dict[str, np.ndarray]:
    """Of the encoder, by key without prefix."""
    return reference_tensors(golden)


@pytest.fixture(scope="module")
def bare(tensors, tmp_path_factory) -> pathlib.Path:
    """The encoder alone, without prefix."""
    path = tmp_path_factory.mktemp("bare") / "a.npz"
    np.savez(path, **tensors)
    return path


def heads() -> dict[str, np.ndarray]:
    shapes = {"weight": (447, 768), "bias": (447,)}
    return {f"{head}_head.{name}": reference_tensor(head + name, shape)
            for head in ("strong", "weak") for name, shape in shapes.items()}


def test_parameters():
    variables = jax.eval_shape(AtstFrame().init, jax.random.key(0), jnp.zeros((1, 1001, 64)))
    leaves = jax.tree.leaves(variables)
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == (138, 85_419_264)


def test_the_command_and_the_golden_features(tmp_path, golden, tensors, bare, capsys):
    """With and without a prefix and heads."""
    save_torch(tmp_path / "a.pt", {f"model.atst.{key}": value for key, value in tensors.items()} | heads())
    for checkpoint, output, more, of_heads in ((tmp_path / "a.pt", tmp_path / "b.npz", ["--strong_head"], "2 of 4"),
                                               (bare, tmp_path / "c.npz", [], "0 of 0")):
        run_command(import_weights, f"--checkpoint={checkpoint}", "--network=atst_frame", f"--output={output}", *more)
        printed = capsys.readouterr().out
        assert "Loaded 138 of 138 tensors of the encoder, 85,419,264 parameters" in printed
        assert f"and {of_heads} tensors of heads" in printed
    model, params = atst_frame.load(tmp_path / "b.npz")
    assert model == AtstFrame()
    jax.tree.map(np.testing.assert_array_equal, atst_frame.load(tmp_path / "c.npz")[1], params)
    found = atst_frame.encode(model, params, jnp.asarray(reference_waveform())[None])
    assert found.shape == (1, 250, 768)
    np.testing.assert_allclose(np.asarray(found)[0, ::10, ::8], golden["features"], atol=1e-3)
    np.testing.assert_allclose(np.asarray(found)[0].mean(axis=0), golden["features_mean"], atol=1e-3)
    with np.load(tmp_path / "b.npz") as held:
        head = {name: held[f"params/strong_head/{name}"] for name in ("kernel", "bias")}
    np.testing.assert_array_equal(head["kernel"], heads()["strong_head.weight"].T)
    logits = Dense(atst_frame.STRONG_CLASSES).apply({"params": head}, found[:, :3])
    expected = np.asarray(found)[:, :3] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize("key", ["mask_embed", "blocks.11.attn.qkv.weight"])
def test_a_missing_a_renamed_and_a_misshapen_tensor(tensors, key):
    def convert(changed):
        encoder, _ = split_heads({f"model.atst.{k}": v for k, v in changed.items()}, "atst_frame")
        import_weights.atst_part(encoder, AtstFrame())

    others = {name: value for name, value in tensors.items() if name != key}
    with pytest.raises(UserError, match=rf"1 tensors are missing \['{key}'\], 0 are unexpected"):
        convert(others)
    with pytest.raises(UserError, match=rf"1 are unexpected \['{key}2'\]"):
        convert(others | {f"{key}2": tensors[key]})
    with pytest.raises(UserError, match=f"'{key}' has the shape"):
        convert(others | {key: tensors[key][..., :-1]})


@pytest.mark.parametrize(("flags", "words"), [
    (("--output=b.npz",), "Give either --config"),
    (("--network=atst_frame", "--config=configs/naive.py", "--output=b.npz"), "Give either --config"),
    (("--network=atst_frame", "--workdir=w"), "give --output=FILE.npz"),
    (("--network=atst_frame", "--output=b.pt"), "must end in .npz"),
    (("--config=configs/conv_transformer.py", "--strong_head"), "--strong_head .*--network=atst_frame")])
def test_flags_that_do_not_fit(flags, words):
    with pytest.raises(UserError, match=words):
        run_command(import_weights, "--checkpoint=a.npz", *flags)


def test_a_strong_head_that_is_not_there(bare, tmp_path):
    with pytest.raises(UserError, match="2 tensors are missing"):
        import_weights.import_atst(str(bare), tmp_path / "b.npz", strong_head=True)
    assert not (tmp_path / "b.npz").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    """A small ATST-Frame as data_prep.import_weights would write it, with positions that matter."""
    path = tmp_path_factory.mktemp("atst") / "small.npz"
    params = SMALL.init(jax.random.key(0), jnp.zeros((1, 1001, 64)))["params"]
    params["pos_embed"] = params["pos_embed"] * 50
    flat = {"/".join(str(key.key) for key in keys): np.asarray(leaf)
            for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    np.savez(path, **{f"params/atst/{name}": leaf for name, leaf in flat.items()})
    return path


def test_last_layers_can_be_left_out(small):
    model, params = atst_frame.load(small)
    assert model == SMALL
    shorter, same = atst_frame.load(small, drop_layers=1)
    sound = jnp.asarray(reference_waveform())[None, :32000]
    found = atst_frame.encode(shorter, same, sound)
    one_layer = AtstFrame(layers=1, width=64, feed_forward=32)
    np.testing.assert_array_equal(found, atst_frame.encode(one_layer, params, sound))
    assert np.abs(found - atst_frame.encode(model, params, sound)).max() > 0.1
    for dropped in (-1, 2):
        with pytest.raises(UserError, match="layers: .* dropped"):
            atst_frame.load(small, drop_layers=dropped)


def test_more_than_ten_seconds_at_once_is_an_error(small):
    with pytest.raises(UserError, match="250 tokens .*not 251"):
        atst_frame.encode(*atst_frame.load(small), jnp.zeros((1, 251 * 640)))


@pytest.mark.parametrize("change", [{"params/atst/pos_embed": None}, {"params/atst/block_0/qkv/kernel": None},
                                    {"params/atst/fc": np.zeros(3)}, {"params/atst/mask_embed": np.zeros(3)},
                                    {"params/atst/pos_embed": np.zeros((1, 3, 0))}])
def test_a_file_that_is_not_whole(small, tmp_path, change):
    (tmp_path / "b.npz").write_bytes(small.read_bytes())
    change_npz(tmp_path / "b.npz", **change)
    with pytest.raises(UserError, match=r"b\.npz (does not hold an ATST-Frame|do not fit)"):
        atst_frame.load(tmp_path / "b.npz")
    (tmp_path / "b.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"b\.npz is damaged"):
        atst_frame.load(tmp_path / "b.npz")


@pytest.fixture(scope="module", params=[9.6, 4.8])
def extractor(request, small) -> extractors.AtstExtractor:
    return extractors.load_extractor(str(small), request.param, 0)


@pytest.mark.parametrize("samples", [1, 639, 641, 8000, 159840, 160000, 160160, 307_200, 1_000_001])
def test_rows_are_frames_of_120_ms_whatever_the_length(extractor, samples):
    found = embed_alone(extractor, 0.1 * np.ones(samples, np.float32), 16000)
    assert found.shape == (-(-samples // 1920), 64)
    assert np.isfinite(found).all()


def test_windows_are_stitched_by_absolute_time(extractor, small):
    """The rows of 37 s are, frame by frame, the mean over the tokens of all windows that see the frame: brute force."""
    rng = np.random.default_rng(0)
    sound = (rng.standard_normal(37 * 16000 + 100) * np.repeat(rng.random(38), 16000)[: 37 * 16000 + 100]).astype("f4")
    whole = np.pad(sound, (0, -len(sound) % 1920))  # silence fills up the last frame
    model, params = atst_frame.load(small)
    hop = extractor.hop_samples
    tokens: dict[int, list[np.ndarray]] = {}
    start = 0
    while True:
        window = np.zeros((1, 160000), np.float32)
        window[0, : len(whole[start : start + 160000])] = whole[start : start + 160000]
        for i, token in enumerate(np.asarray(atst_frame.encode(model, params, jnp.asarray(window)))[0]):
            if start + 640 * i < len(whole):
                tokens.setdefault(start // 640 + i, []).append(token)
        if start + 160000 >= len(whole):
            break
        start += hop
    means = [np.mean(tokens[i], axis=0) for i in range(len(tokens))]
    expected = [np.mean(means[i : i + 3], axis=0) for i in range(0, len(means), 3)]
    np.testing.assert_allclose(embed_alone(extractor, sound, 16000), expected, atol=1e-4)


def test_a_click_is_in_its_frame_wherever_it_is():
    """With tokens that only look at themselves, segments do not drift however long the recording is."""
    for hop_tokens in (240, 120):
        clicks = np.array([0, 79, 80, 83, 84, 160, 819, 999, 4321])
        sound = np.zeros(5000 * 1920, np.float32)
        sound[clicks * 1920 + 5] = 1
        windows = reader.windows(iter([sound]), 160000, hop_tokens * 640)
        rows = grid.stitch((window.reshape(250, 640).max(axis=1, keepdims=True)[: -(-real // 640)]
                            for window, real in windows), hop_tokens)
        frames = np.concatenate([grid.mean_by_group(each, 3) for each in rows])
        np.testing.assert_array_equal(np.flatnonzero(frames[:, 0]), clicks)
        np.testing.assert_allclose(frames[clicks], 1 / 3, atol=1e-6)
        assert len(frames) == 5000


def test_the_command_embeds_recordings(small, tmp_path):
    (tmp_path / "audio").mkdir()
    sound = {"a.wav": reference_waveform()[:50000], "b.wav": np.tile(reference_waveform(), 3)}
    for name, samples in sound.items():
        soundfile.write(tmp_path / "audio" / name, samples, 16000, subtype="FLOAT")
    flags = [f"--audio={tmp_path / 'audio'}", f"--output={tmp_path / 'out'}", "--features=mfcc,embeddings",
             f"--embeddings_from={small}"]
    found = {}
    for more in ([], ["--hop_seconds=4.8"], ["--drop_layers=1"]):
        run_command(extract, *flags, *more)
        layout = read_layout(tmp_path / "out")
        found[tuple(more)] = [layout.features(name, ("mfcc", "embeddings"))["embeddings"] for name in sound]
    for name, held in zip(sound, found[()]):
        expected = embed_alone(extractors.load_extractor(str(small), 9.6, 0), sound[name], 16000)
        np.testing.assert_allclose(held, expected, atol=2e-3)  # float16
    assert not np.array_equal(found[()][1], found["--hop_seconds=4.8",][1])
    assert not np.array_equal(found[()][0], found["--drop_layers=1",][0])
