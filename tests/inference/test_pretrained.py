"""Pretrained detectors: rows by absolute time, chosen and grouped classes, and the same outputs as any detector."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import soundfile
from pretrained_files import SMALL, small_tensors
from tiny import run_command
from torch_files import save_torch

import sedjax
from sedjax.commands import predict
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.inference import fetch, figures, pretrained
from sedjax.inference.pretrained import all_classes, load_pretrained, read_groups
from sedjax.models.pretrained import Network
from sedjax.scoring.submission import read_submission

NAME = "frame_mn06_strong"
# All three lengths end within a frame of 120 ms, in its first, second and third row.
LENGTHS = {"long.wav": 16000 * 22 + 1920 * 4 + 100, "one.wav": 8 * 1920 + 700, "short.wav": 1920 * 2 + 1900}


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pretrained.NETWORKS, NAME, Network(SMALL.encoder, "frame_mn"))
        yield


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """Those of a detector that is sure of something."""
    tensors = small_tensors()
    tensors["strong_head.weight"] = tensors["strong_head.weight"] * 30
    return tensors


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "a.pt"
    save_torch(path, tensors)
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Noise that gets louder."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, samples in LENGTHS.items():
        noise = np.random.default_rng(samples).standard_normal(samples) * np.linspace(0, 0.2, samples)
        soundfile.write(folder / name, noise, 16000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def detector(weights):
    return load_pretrained(NAME, weights)


def test_rows_by_absolute_time(detector, recordings):
    model = detector.model
    assert detector.task.classes == all_classes()
    apply = jax.jit(lambda window: model.model.apply(model.variables, {"samples": window[None]},
                                                     jnp.ones((1, 250), bool))[0])
    results = detector.detect([recordings / name for name in LENGTHS], keep=("melspectrogram",))
    for name, result in zip(LENGTHS, results):
        samples, _ = soundfile.read(recordings / name, dtype="float32")
        rows = -(-len(samples) // 640)
        windows = np.pad(samples, (0, -len(samples) % 160_000)).reshape(-1, 250, 640)
        logits = np.concatenate([np.asarray(apply(window)) for window in windows])
        np.testing.assert_allclose(result.frames, scipy.special.expit(logits[:rows]), atol=1e-3)
        smooth = scipy.ndimage.median_filter(result.frames, (9, 1), mode="nearest")
        assert len(result.segments) == -(-len(samples) // 19_200)
        np.testing.assert_array_equal(result.segments[0], smooth[:30].max(axis=0))
        np.testing.assert_array_equal(result.segments[-1], smooth[30 * (len(result.segments) - 1) :].max(axis=0))
        assert len(result.features["melspectrogram"]) == rows
        assert result.seconds == len(samples) / 16000
        assert 0 < len(result.events) < result.frames.size
        for event in result:
            assert event.offset <= result.seconds
            assert min(round(event.onset / 0.04, 3) % 1, result.seconds - event.offset) == pytest.approx(0, abs=1e-3)


def test_an_array_and_chosen_classes(detector, weights, recordings):
    some = sedjax.load(NAME, weights=weights, classes=["Siren", "Air horn, truck horn"])
    samples, _ = soundfile.read(recordings / "one.wav", dtype="float32")
    of_some, of_all = some(samples, sample_rate_hz=16000), detector(recordings / "one.wav")
    assert of_some.task.classes == ("Siren", "Air horn, truck horn")
    numbers = [all_classes().index(name) for name in of_some.task.classes]
    np.testing.assert_allclose(of_some.frames, of_all.frames[:, numbers], atol=1e-6)


def test_the_command_and_the_classes_of_mlpc(detector, weights, recordings, tmp_path):
    run_command(predict, f"--model={NAME}", f"--weights={weights}", "--map=mlpc", str(recordings),
                f"--output={tmp_path}", "--formats=csv,tsv,audacity,json,png", "--frames")
    with np.load(tmp_path / "long.npz") as archive:
        frames, seconds = archive["probabilities"], float(archive["frame_seconds"])
    assert (seconds, frames.shape) == (0.04, (-(-LENGTHS["long.wav"] // 640), 10))
    submission = read_submission(tmp_path / "predictions.csv", MLPC_2025)
    assert {name: len(active) for name, active in submission.items()} == {
        name: -(-samples // 19_200) for name, samples in LENGTHS.items()}
    smooth = scipy.ndimage.median_filter(frames, (9, 1), mode="nearest")
    np.testing.assert_array_equal(submission["long.wav"][3], (smooth[90:120] > 0.5).any(axis=0))
    content = json.loads((tmp_path / "long.json").read_text())
    assert content["model"]["name"] == NAME
    assert (tmp_path / "long.png").stat().st_size > 10_000


def test_a_picture_of_many_classes(detector, recordings):
    result = next(detector.detect([recordings / "one.wav"], keep=("melspectrogram",)))
    figure = figures.draw_recording(result.features["melspectrogram"], result)
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(names) == 40
    assert all_classes()[int(result.frames.max(axis=0).argmax())] in names
    assert result._repr_html_().count("<tr>") == len({event.label for event in result}) < 447


def test_tables_of_groups(tmp_path):
    groups = read_groups("mlpc")
    assert tuple(groups) == MLPC_2025.classes
    assert {member for members in groups.values() for member in members} <= set(all_classes())
    assert len(all_classes()) == 447
    (tmp_path / "a.json").write_text(json.dumps({"Horn": ["Foghorn", "Train horn"], "Dog": ["Dog"]}))
    (tmp_path / "a.csv").write_text("class,member\nHorn,Foghorn\nDog,Dog\nHorn,Train horn\n")
    assert read_groups(tmp_path / "a.csv") == read_groups(tmp_path / "a.json") == {
        "Horn": ("Foghorn", "Train horn"), "Dog": ("Dog",)}


@pytest.mark.parametrize(("options", "words"), [
    ({"classes": ["sirens"]}, "'sirens'; did you mean 'Siren'"), ({"classes": ["Qqqq"]}, "audioset_strong.json lists"),
    ({"groups": "a.txt"}, "mlpc or a .json or .csv"),
    ({"groups": "missing.json"}, "no file missing.json"), ({"groups": "mlpc", "classes": ["Dog"]}, "either"),
    ({"groups": "empty.json"}, "Horn.* has no members"), ({"groups": "wrong.csv"}, "wrong.csv: .*'Dogg'.*'Dog'"),
    ({"groups": "none.json"}, "invalid")])
def test_classes_that_do_not_exist(tmp_path, monkeypatch, weights, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text('{"Horn": []}')
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "wrong.csv").write_text("class,member\nDog,Dogg\n")
    with pytest.raises(UserError, match=words):
        load_pretrained(NAME, weights, **options)


@pytest.mark.parametrize(("flags", "words"), [
    (["a.wav"], "either --workdir.*--model"), (["a.wav", "--workdir=w", f"--model={NAME}"], "either --workdir"),
    (["a.wav", "--workdir=w", "--map=mlpc"], "--map is for --model"),
    (["a.wav", f"--model={NAME}", "--checkpoint=last"], "--checkpoint is for --workdir"),
    (["--source=s", f"--model={NAME}"], "--model is for recordings")])
def test_flags_that_do_not_fit(flags, words):
    with pytest.raises(UserError, match=words):
        run_command(predict, "--output=o", *flags)


@pytest.mark.parametrize("options", [{"weights": "a.pt"}, {"classes": ["Dog"]}, {"groups": "mlpc"}])
def test_options_of_the_other_kind_of_detector(options):
    with pytest.raises(UserError, match="not for a trained model"):
        sedjax.load("workdir", **options)
    with pytest.raises(UserError, match="neither checkpoints"):
        sedjax.load(NAME, "last")


def test_weights_of_another_network_are_not_kept(tensors, tmp_path, monkeypatch):
    """Fetched ones are checked before they enter the cache; a file at hand is named."""
    monkeypatch.setenv(fetch.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_download", lambda address, path: save_torch(path, {"a": np.zeros(3)}))
    for weights in (None, tmp_path / "other.pt"):
        save_torch(tmp_path / "other.pt", tensors | {"more": np.zeros(3)})
        with pytest.raises(UserError, match="does not fit"):
            load_pretrained(NAME, weights)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(fetch, "_download", lambda address, path: save_torch(path, tensors))
    assert load_pretrained(NAME).model.workdir == tmp_path / "cache" / "frame_mn06_strong_1.pt"


def test_the_stream_is_closed(detector, recordings):
    """Nothing reads on after the first of many recordings."""
    with contextlib.closing(detector.detect([recordings / "short.wav"] * 100)) as results:
        assert next(results).recording.endswith("short.wav")
