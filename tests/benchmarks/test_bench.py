"""Figures of tiny data: there, positive, consistent. How fast anything is, no test says."""

import builtins
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import soundfile
from tiny import TINY_TASK, run_command, tiny_config

from sedjax.benchmarks import audio, experiment, flops, scoring, summary, throughput, timing
from sedjax.commands import bench
from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.data.records import open_records
from sedjax.models import registry
from sedjax.models.atst_frame import AtstFrame
from sedjax.models.variables import count_parameters


@pytest.fixture(scope="module")
def config(records):
    return tiny_config(data__path=str(records), optimizer__learning_rate=1e-3)


@pytest.fixture(scope="module")
def shallow(config):
    """Without the layers, which compile longest."""
    return dataclasses.replace(config, model={**config.model, "layers": 0})


@pytest.fixture(autouse=True, scope="module")
def short_turns():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "LONG_PRODUCT_SECONDS", 1e-9)
        patch.setattr(audio, "TURN_SECONDS", 1e-9)
        yield


@pytest.fixture(scope="module")
def result(records, short_turns, tmp_path_factory):
    """What the command writes."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    run_command(bench, "--config=configs/embedding_transformer.py", f"--config.data.path={records}",
                "--config.model.width=16", "--config.model.heads=2", "--config.model.layers=1",
                "--config.model.feed_forward=16", "--config.data.batch_size=8", "--config.model.positions=40",
                "--config.data.max_frames=40", "--config.data.bucket_frames=40", "--steps=2", "--sweep=batch_size",
                f"--json={path}")
    return json.loads(path.read_text())


def test_the_figures(result):
    assert result["device"] == {"platform": "cpu", "kind": "cpu", "devices": 8}
    for name in ("training", "evaluation"):
        found = result[name]
        assert found["frames_per_second"] > 0
        assert found["flops_per_second"] > 0
        assert found["flops_per_second"] == pytest.approx(
            found["ceiling_share"] * result["ceiling"]["flops_per_second"])
        assert 0 <= found["waiting_share"] <= 1
        assert 0 < found["padded_share"] < 1
    assert result["first_step_seconds"] > 0
    assert (result["placement"], result["steps_per_call"], result["parallel"]) == ("host", 1, "jit")
    assert result["peak_memory"]["bytes"] > 1e6
    assert result["scoring"]["recordings"] == 4
    assert [row["batch_size"] for row in result["sweep"]["batch_size"]] == [8, 16]
    assert all(row["frames_per_second"] > 0 for row in result["sweep"]["batch_size"])


def test_the_summary_has_every_figure(result):
    other = {"frames_per_second": 1234.5, "ratio": 0.5, "lowest_ratio": 0.4, "highest_ratio": 0.6}
    text = summary.format_result({**result, "against": {"sedjax": other, "torch, eager": other,
                                                        "torch.compile": {"error": "no compiler"}}})
    figures = dict(line[2:-2].split(" | ") for line in text.splitlines() if line.count(" | ") == 1)
    assert figures["device devices"] == "8"
    assert figures["training padded share"] == f"{result['training']['padded_share']:.1%}"
    assert figures["peak memory bytes"].endswith("iB")
    assert float(figures["first step seconds"]) == pytest.approx(result["first_step_seconds"], rel=1e-3)
    assert "|  | sedjax | torch, eager | torch.compile |" in text
    assert "| lowest ratio | 0.4 | 0.4 |  |" in text
    assert "| error |  |  | no compiler |" in text
    assert "| batch size | 8 | 16 |" in text.split("sweep batch size:")[1]
    single = {"a": None, "b": 1.5e12, "c": 12345.6, "d": 0.01234567, "e": {"f": [3, "x"]}, "fits": False,
              "in_bytes": 2048.0}
    lines = ["|  | result |", "| --- | --- |", "| a | - |", "| b | 1.5e+12 |", "| c | 12,346 |", "| d | 0.01235 |",
             "| e f | 3, x |", "| fits | **no** |", "| in bytes | 2.0 KiB |"]
    assert summary.format_result(single).splitlines() == lines


def test_padding_against_brute_force(shallow):
    shallow = dataclasses.replace(shallow, data=dataclasses.replace(shallow.data, bucket_frames=20))
    training = throughput.Training(shallow, devices=2)
    counts = []
    for number in range(training.feed.plan.batches):
        batch = training.feed.read(number)
        counts.append((batch["frame_mask"].sum(), batch["frame_mask"].size))
    real, padded = np.sum(counts, axis=0)
    found = training.stretch(training.feed.plan.batches)
    assert (found.real_frames, found.padded_frames) == (real, padded)
    assert training.padded_share == pytest.approx(1 - real / padded)
    evaluation = throughput.Evaluation(training)
    found = evaluation.stretch(evaluation.feed.plan.batches)
    assert found.real_frames == open_records(shallow.data.path, "validation").lengths.sum()


def test_the_operations_are_those_of_the_matrix_products(config):
    """A model of one known size: at least the operations of its linear layers, about three times for training."""
    training = throughput.Training(dataclasses.replace(config, model={**config.model, "feed_forward": 512}), 1)
    found = training.stretch(1)
    width, hidden, columns = 16, 512, 16
    frame = 2 * (columns * width + width * width + 4 * width * width + 2 * width * hidden + width * 8 + 8 * 3)
    assert 2.5 * frame < found.flops / found.padded_frames < 5 * frame


def test_operations_counted_by_hand():
    """Products, loops, the most expensive branch, convolutions and the gradients of both."""
    rows, weight = jax.ShapeDtypeStruct((4, 8), np.float32), jax.ShapeDtypeStruct((8, 8), np.float32)
    image, kernel = jax.ShapeDtypeStruct((1, 5, 7, 2), np.float32), jax.ShapeDtypeStruct((3, 3, 2, 6), np.float32)

    def repeated(rows, weight):
        rows = jax.lax.scan(lambda x, _: (x @ weight, None), rows, length=5)[0]
        return jax.lax.cond(rows.sum() > 0, lambda x: x, lambda x: x @ weight @ weight, rows)

    def convolved(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def counted(function, *arguments):
        return flops.count(jax.jit(function).trace(*arguments).jaxpr.jaxpr)

    product, convolution = 2 * 4 * 8 * 8, 2 * (5 * 7 * 6) * (3 * 3 * 2)
    assert counted(repeated, rows, weight) == (5 + 2) * product
    assert counted(jax.grad(lambda *x: repeated(*x).sum(), argnums=1), rows, weight) > 2 * 7 * product
    assert counted(convolved, image, kernel) == convolution
    assert counted(jax.grad(lambda *x: (convolved(*x) ** 2).sum(), argnums=1), image, kernel) == 2 * convolution


def test_what_is_timed_is_what_the_config_says(shallow):
    """From device memory, two steps a call, in parts, under pmap: the same steps and the same operations."""
    moved = dataclasses.replace(shallow, parallel="pmap", data=dataclasses.replace(shallow.data, placement="device"),
                                optimizer=dataclasses.replace(shallow.optimizer, accumulate=4),
                                train=dataclasses.replace(shallow.train, steps_per_call=2))
    one, other = (throughput.Training(case, devices=2) for case in (shallow, moved))
    assert [len(list(each.feed.calls(0, 4))) for each in (one, other)] == [4, 2]
    expected, found = (each.stretch(4) for each in (one, other))
    assert dataclasses.replace(found, seconds=0, waiting=0) == dataclasses.replace(expected, seconds=0, waiting=0)
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(other.variables)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    found = throughput.Evaluation(other).stretch(1)
    assert found.real_frames == open_records(shallow.data.path, "validation").lengths.sum()
    assert [experiment.whole_calls(moved, steps) for steps in (1, 2, 3)] == [2, 2, 4]


def test_accumulation_counts_every_part(shallow):
    parts = dataclasses.replace(shallow, data=dataclasses.replace(shallow.data, batch_size=16),
                                optimizer=dataclasses.replace(shallow.optimizer, accumulate=2))
    whole = dataclasses.replace(parts, optimizer=shallow.optimizer)
    one, two = (throughput.Training(case, devices=1).stretch(1).flops for case in (whole, parts))
    assert two == pytest.approx(one, rel=0.1)


def test_the_ceiling_takes_the_best(config):
    mesh = parallel.make_mesh(2)
    found = throughput.matmul_ceiling(mesh, "bfloat16", [(64, 32, 32)])
    assert found["flops_per_second"] > 0
    assert found["precision"] == "bfloat16"
    assert " x " in found["shape"]


def test_a_sweep_doubles():
    assert experiment._doubling(1, 8) == [1, 2, 4, 8]
    assert experiment._doubling(3, 20) == [3, 6, 12]


def test_ratios_of_injected_times():
    clock = {"sedjax": iter([2.0, 4.0, 2.0]), "peer": iter([1.0, 1.0, 4.0])}
    calls = []

    def contestant(name):
        def run():
            calls.append(name)
            return 80 / next(clock[name])

        return run

    found = timing.compare({name: contestant(name) for name in clock}, "frames_per_second", rounds=3)
    assert calls == ["sedjax", "peer"] * 3
    assert found["sedjax"] == {"frames_per_second": 40, "ratio": 1, "lowest_ratio": 1, "highest_ratio": 1}
    assert found["peer"] == {"frames_per_second": 80, "ratio": 0.5, "lowest_ratio": 0.25, "highest_ratio": 2}


def test_the_speed_of_calls(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = []

    def run():
        calls.append(now[0])
        now[0] += 0.25

    assert timing.calls_per_second(run, 1.0) == 4
    assert len(calls) == 7  # 1, 2 and 4: the third burst ends after a second
    assert timing.calls_per_second(run, 0) == 4
    assert len(calls) == 8


def test_scoring_with_arrays_is_the_evaluation(config):
    rng = np.random.default_rng(1)
    lengths = (7, 10, 23)
    probabilities = [rng.random((n, 3), np.float32) for n in lengths]
    truth = [rng.random((n, 3)) < 0.2 for n in lengths]
    outcomes = np.zeros((3, 4))
    for said, true in zip(probabilities, truth):
        for first in range(0, len(said), 10):
            for c in range(3):
                a, b = (said[first : first + 10, c] > 0.5).any(), true[first : first + 10, c].any()
                outcomes[c, {(True, True): 0, (True, False): 1, (False, False): 2, (False, True): 3}[a, b]] += 1
    expected = (outcomes / 5 * 50 * TINY_TASK.cost_matrix).sum(-1)
    np.testing.assert_allclose(scoring.with_arrays(TINY_TASK)(probabilities, truth), expected)


def test_data_frames_give_the_same_cost(config):
    pytest.importorskip("pandas")
    found = scoring.scoring(config, rounds=1)  # compares them
    assert found["ratio"] > 0


def test_mistakes(config, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--sweep .*batch_size.*'wings'"):
        experiment.bench(config, 1, sweep=["wings"])
    with pytest.raises(UserError, match="--against=torch .*embedding_transformer.* naive"):
        experiment.bench(dataclasses.replace(config, model={"name": "naive"}), 1, against=True)
    real = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(UserError, match=r"needs PyTorch: pip install 'sedjax\[bench\]'"):
        experiment.bench(config, 1, against=True)


def test_the_peer_is_the_same_architecture(config):
    torch = pytest.importorskip("torch")
    from sedjax.benchmarks import torch_peer

    training = throughput.Training(config)
    peer = torch_peer.Peer(training, compiled=False, precision="float32")
    assert peer.parameters == count_parameters(registry.build_from(config, training.task), {"embeddings": 16})
    batch = training.read(0)
    features, targets, mask = peer._batch()
    frames = batch["frame_mask"].sum(1).max()
    assert features.shape == (8, frames, 16)
    np.testing.assert_array_equal(mask, batch["frame_mask"][:, :frames])
    np.testing.assert_array_equal(targets, batch["votes"][:, :frames] > 0)
    assert torch.isfinite(peer.step(features, targets, mask))
    stretch = peer.stretch(2)
    assert 0 < stretch.real_frames <= stretch.padded_frames
    against = experiment.compare(training, 1, ["float32"])
    assert set(against) == {"sedjax", "PyTorch eager, float32", "torch.compile, float32"}
    assert against["PyTorch eager, float32"]["ratio"] > 0


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A folder with two recordings and a damaged one; and an encoder that is small."""
    rng = np.random.default_rng(0)
    for name, seconds, rate in (("a.wav", 3, 22050), ("c.flac", 12, 16000)):
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(seconds * rate), rate)
    (tmp_path / "b.mp3").write_bytes(b"no audio")
    monkeypatch.setattr(audio, "CLIPS", 4)
    monkeypatch.setattr(audio, "AtstFrame", functools.partial(AtstFrame, 1, 0, 64, 32))
    return tmp_path


def test_audio_to_features(recordings, capsys):
    run_command(bench, f"--audio={recordings}", "--steps=1", f"--json={recordings / 'bench.json'}")
    found, text = json.loads((recordings / "bench.json").read_text()), capsys.readouterr().out
    extraction = found["extraction"]
    assert (extraction["recordings"], extraction["damaged"]) == (2, 1)
    assert extraction["hours"] == pytest.approx(15 / 3600)
    assert extraction["times_real_time"] > 0
    assert set(found["frontend"]) == {"log-mel of ATST-Frame", "mel bands of 120 ms"}
    for each in found["frontend"].values():
        assert each["sedjax"]["times_real_time"] == pytest.approx(each["librosa"]["times_real_time"]
                                                                  * each["librosa"]["ratio"])
    assert [set(each) for each in found["encoder"].values()] == [{"sedjax"}] * 2
    for words in ("| extraction times real time | ", "| extraction recordings | 2 |", "| extraction damaged | 1 |",
                  "|  | log-mel of ATST-Frame | mel bands of 120 ms |", "| librosa lowest ratio | ",
                  "|  | batch 1 | batch 4 |", "| sedjax times real time | "):
        assert words in text


def test_mistakes_with_audio(recordings):
    config = "--config=configs/naive.py"
    for arguments, words in (([], "Give either --config=FILE"), ([f"--audio={recordings}", config], "Give either"),
                             ([f"--audio={recordings}", "--sweep=devices"], "--sweep needs --config")):
        with pytest.raises(UserError, match=words):
            run_command(bench, *arguments)
    for path in (recordings / "a.wav", recordings / "c.flac"):
        path.unlink()
    with pytest.raises(UserError, match="None of the 1 recordings can be read"):
        audio.bench(recordings, 1)


def test_the_peer_of_the_encoder_has_the_same_numbers():
    pytest.importorskip("torch")
    contestants = audio.encoders(AtstFrame(layers=2, width=64, feed_forward=32), against=True)
    mel = np.random.default_rng(0).standard_normal((2, 101, 64)).astype(np.float32)
    np.testing.assert_allclose(contestants["sedjax"](mel), contestants["PyTorch"](mel), atol=1e-4)
