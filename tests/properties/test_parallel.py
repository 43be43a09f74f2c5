"""Devices and processes: jit and pmap, one process and two give the same numbers; files come from process 0 only."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from runs import read_state
from step_setups import make_batch, setup
from tiny import TINY_TASK, run_command, tiny_config
from worker import SMALL

from sedjax.commands import predict, train
from sedjax.core import files, parallel
from sedjax.core.errors import UserError
from sedjax.data.plan import cut, order
from sedjax.data.records import open_records
from sedjax.inference.trained import load_model, predict_step
from sedjax.scoring.evaluator import eval_step
from sedjax.studies.results import evaluate_workdir
from sedjax.training import checkpoint, trainer
from sedjax.training.metric_writer import read_metrics


def run(step, state, mode: str, devices: int = 8, count: int = 2, clips: int = 16):
    mesh = parallel.make_mesh(devices)
    compiled = parallel.compile_step(step, mesh, donate_state=True, mode=mode)
    state = parallel.replicate(jax.tree.map(np.asarray, state), mesh)
    key = parallel.replicate(jax.random.key(3), mesh)
    scalars = []
    for number in range(count):
        state, found = compiled(state, parallel.shard(make_batch(number, clips), mesh, mode), key)
        scalars.append(found)
    return jax.device_get((state, scalars))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("name", "accumulate", "mixup", "changes"), [
    ("embedding_transformer", 1, 0.0, {"model__stem": "conv"}),  # with batch norms in depth
    ("conv_transformer", 2, 0.4, {"model__time_masks": 1, "model__band_masks": 1}),
])
def test_one_device_is_eight_and_pmap_is_jit(name, accumulate, mixup, changes):
    """Loss, gradient norm and, through two steps, parameters, average and batch statistics; with dropout.

    One device has a clip that is all padding.
    """
    _, state, step = setup(name, ema=0.9, accumulate=accumulate, mixup=mixup, **changes)
    one = run(step, state, "jit", devices=1)
    for mode in ("jit", "pmap"):
        assert_same(one, run(step, state, mode))
    if "batch_stats" in state.model_state:
        assert all((x != 0).any() for x in jax.tree.leaves(one[0].model_state["batch_stats"]))


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_results_by_clip_are_those_of_one_device_in_the_same_order(name):
    model, state, _ = setup()
    thresholds = np.array([[0.3] * 3, [0.5] * 3], np.float32)
    if name == "evaluate":
        step = functools.partial(eval_step, model=model, weights=np.ones((2, 3), np.float32), pooling="max",
                                 task=TINY_TASK)
        others = (thresholds,)
    else:
        step, others = functools.partial(predict_step, model=model, pooling="max", task=TINY_TASK), ()

    def run(mode, devices):
        mesh = parallel.make_mesh(devices)
        compiled = parallel.compile_step(step, mesh, mode=mode, by_row=True)
        variables = parallel.replicate(state.eval_variables, mesh)
        return jax.device_get(compiled(variables, parallel.shard(make_batch(0, 16), mesh, mode), *others))

    one = run("jit", 1)
    assert all(len(value) == 16 for value in one.values())
    for mode in ("jit", "pmap"):
        assert_same(one, run(mode, 8))


def test_two_processes_of_four_devices_are_one_of_eight(source, records, tmp_path):
    """Real processes over loopback: parameters, costs, counts and predictions; each reads its own share only.

    A signal to one stops both after the same step, and what goes on from there ends with the same bits. Where one
    cannot begin, none does.
    """
    workers = start_workers(source, records, tmp_path)
    run_command(train, *SMALL, f"--config.data.path={records}", f"--workdir={tmp_path / 'one'}",
                "--config.train.duration=2 epochs")
    outputs, logs = finish(workers)

    for mode, which in (("jit", "4"), ("pmap", "2")):
        expected, _, _ = checkpoint.load_weights(tmp_path / "one", which)
        found, _, _ = checkpoint.load_weights(tmp_path / mode, which)
        assert_same(expected, found)
        for a, b in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / mode)):
            assert a | {"seconds": 0} == pytest.approx(b | {"seconds": 0}, rel=1e-4)
    assert len(read_metrics(tmp_path / "jit")) == len(read_metrics(tmp_path / "one"))

    for (path, a), (_, b) in zip(*(jax.tree.leaves_with_path(read_state(tmp_path / name))
                                     for name in ("jit", "stopped"))):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert ["SIGTERM: stopping after this step." in log for log in logs] == [False, True]
    for words in ("Stopped by a signal to another process after step 2:", "Resuming at step 2."):
        assert words in logs[0]

    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"one", "jit", "pmap", "stopped", "cache", "0.json", "0.csv", files.OUTPUTS}
    counts = json.loads((tmp_path / "0.json").read_text())
    expected = evaluate_workdir(tmp_path / "jit", "test", which="last")
    assert counts["classes"] == {name: pytest.approx(row) for name, row in expected["classes"].items()}
    predict.submission.write_submission(
        tmp_path / "one.csv", (detector := load_model(tmp_path / "pmap")).task,
        {name: found.active for name, found in predict.predict_directory(detector, source, "test").items()})
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "0.csv").read_text()

    assert outputs[0].count("Process 1 failed;") == 3
    for words in ("There are no records in", "There is no recording or folder", "is not the workdir"):
        assert words in outputs[1]
    assert "Cannot write" in outputs[0]
    assert "Process 0 failed;" in outputs[1]
    split = open_records(str(records), "train")
    config = load_model(tmp_path / "one").config.data
    clips = cut(split.lengths, config, split.task)
    for process, output in enumerate(outputs):
        own = [order(clips, 8, config.pool_batches, 0, epoch)[:, 4 * process : 4 * process + 4]
               for epoch in range(2)]
        first = own[0].ravel()[:1]  # read once more, for its types
        assert Counter(json.loads(output.splitlines()[-1])) == Counter([*first, *np.concatenate(own).ravel()])


def start_workers(source, records, folder) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                   "PYTHONPATH": os.pathsep.join([os.getcwd(), "tests/helpers"]),
                   "JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    worker = pathlib.Path(__file__).parents[1] / "helpers" / "worker.py"
    return [subprocess.Popen([sys.executable, str(worker), str(source), str(records), str(folder),
                              f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2",
                              f"--process_id={number}"], env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for number in range(2)]


def finish(processes: list[subprocess.Popen]) -> tuple[list[str], list[str]]:
    try:
        found = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, found):
        assert process.returncode == 0, errors
    return tuple(map(list, zip(*found)))


@pytest.mark.parametrize(("given", "environment", "words"), [
    ({"coordinator_address": "10.0.0.1:1234"}, {}, "--num_processes"),
    ({"num_processes": 2, "process_id": 0}, {}, "--coordinator_address"),
    ({"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 2}, {}, "below --num_processes = 2"),
    ({"coordinator_address": "10.0.0.1", "num_processes": 2, "process_id": 0}, {}, "must be IP:PORT"),
    ({"num_processes": 2, "process_id": 0}, {"JAX_COORDINATOR_ADDRESS": "here"}, "must be IP:PORT, not 'here'"),
    ({}, {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "whole numbers"),
    ({"distributed": True}, {}, "set --coordinator_address"),
])
def test_a_cluster_that_cannot_be(given, environment, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        parallel.initialize(**given)


def test_one_process_needs_nothing_and_the_first_runs_what_only_one_may():
    parallel.initialize()
    ran = []
    parallel.on_process_zero(lambda: ran.append(1))
    assert ran == [1]
    with pytest.raises(UserError, match="no room"):
        parallel.on_process_zero(lambda: (_ for _ in ()).throw(UserError("no room")))


def test_pmap_needs_a_share_for_each_part_of_each_device():
    mesh = parallel.make_mesh()
    parallel.require_divisible(24, mesh, "data.batch_size")
    with pytest.raises(UserError, match="= 24 .* 8 devices in 2 parts each; use 16 or 32"):
        parallel.require_divisible(24, mesh, "data.batch_size", parts=2)


def test_what_was_compiled_is_kept(tmp_path):
    """In a process of its own, where the folder can be written and where it cannot."""
    code = ("import jax; from sedjax.core import parallel; parallel.cache_compilations(); "
            "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0); "
            "print(jax.jit(lambda x: x * 2)(3.0), jax.config.jax_compilation_cache_dir)")
    blocked = tmp_path / "file"
    blocked.write_text("")
    kept = tmp_path / "cache" / "sedjax" / "xla"
    for cache, words in ((tmp_path / "cache", f"6.0 {kept}"), (tmp_path / "cache", f"6.0 {kept}"),
                         (blocked, "6.0 None")):
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "1"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        result = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True,
                                text=True)
        assert (result.stdout.strip(), result.stderr) == (words, "")
    assert len([path for path in kept.iterdir() if path.name.endswith("-cache")]) == 1


def test_the_host_never_waits_for_the_step_it_has_just_sent(records, tmp_path, monkeypatch):
    """Losses are fetched for entries only, once a further step was sent; at once where a checkpoint follows."""
    sent, fetched = [], []

    class Scalar:
        def __init__(self, value):
            self.value, self.step = value, len(sent)

        def __array__(self, dtype=None, copy=None):
            fetched.append((self.step, len(sent)))
            return np.asarray(self.value)

    compile_step = parallel.compile_step

    def watched(step, mesh, donate_state=False, **kwargs):
        compiled = compile_step(step, mesh, donate_state, **kwargs)

        def run(*args):
            state, scalars = compiled(*args)
            sent.append(None)
            return state, {"loss": Scalar(scalars["loss"])}

        return run if donate_state else compiled

    monkeypatch.setattr(parallel, "compile_step", watched)
    trainer.train(tiny_config(data__path=str(records), train__log_every="3 steps", train__evaluate_every="8 steps",
                            train__save_every="8 steps", model__layers=0), tmp_path / "run")
    assert fetched == [(1, 4), (2, 4), (3, 4), (4, 7), (5, 7), (6, 7), (7, 8), (8, 8)]


def test_the_devices_of_a_process_are_neighbours(monkeypatch):
    """As its rows of a batch are; on a TPU pod the ids of the devices alternate between hosts."""
    class Device:
        platform = "tpu"

        def __init__(self, process_index, number):
            self.process_index, self.id = process_index, number

    monkeypatch.setattr(jax, "devices", lambda: [Device(0, 0), Device(1, 1), Device(0, 2), Device(1, 3)])
    assert [device.id for device in parallel.make_mesh().devices] == [0, 2, 1, 3]
