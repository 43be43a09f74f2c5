"""Real processes that are killed, preempted, robbed of files and of disk space: nothing is lost, no bit differs."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from runs import STEPS, finish, read_state, start

from sedjax.training import checkpoint
from sedjax.training.metric_writer import read_metrics

KILLS = int(os.environ.get("SEDJAX_KILLS", "2"))
SEED = int(os.environ.get("SEDJAX_SEED", time.time_ns()))


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """The workdir of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert "Crops have 20 frames but model.positions is 40" in finish(start(records, folder))
    return folder


def require_same_end(found: pathlib.Path, expected: pathlib.Path) -> None:
    (found_state, step), (expected_state, _) = read_state(found), read_state(expected)
    assert step == STEPS
    assert jax.tree.structure(found_state) == jax.tree.structure(expected_state)
    for a, b in zip(jax.tree.leaves(found_state), jax.tree.leaves(expected_state)):
        np.testing.assert_array_equal(a, b)
    costs = [[(entry["step"], entry["validation_cost"]) for entry in read_metrics(folder) if "validation_cost" in entry]
             for folder in (found, expected)]
    assert costs[0] == costs[1]
    _, found_best, found_step = checkpoint.load_weights(found)
    _, expected_best, expected_step = checkpoint.load_weights(expected)
    assert (found_best, found_step) == (expected_best, expected_step)


def wait_for(path: pathlib.Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_at_random_moments(records, whole, tmp_path):
    """SIGKILL, again and again; it loses the steps since the last save at most, and ends with the same bits."""
    rng = random.Random(SEED)
    print(f"The moments are those of SEDJAX_SEED={SEED}.")  # pytest shows it if the test fails
    folder, saved, kills = tmp_path / "0", 0, 0
    while True:
        last = kills == KILLS
        begun = _inode(folder / "metrics.jsonl")  # written anew when the loop begins
        process = start(records, folder, seconds=0.0 if last else 0.1)
        if not last:
            target = rng.randrange(saved, STEPS + 1)
            while process.poll() is None and (_inode(folder / "metrics.jsonl") == begun or _newest(folder) < target):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
        log = process.communicate(timeout=120)[1]
        print(f"--- after {kills} kills, step {saved} saved:\n{log}")
        assert "damaged" not in log
        assert not saved or f"Resuming at step {saved}." in log
        if process.returncode == 0:
            require_same_end(folder, whole)
            for a, b in zip(read_metrics(folder), read_metrics(whole), strict=True):
                assert a | {"seconds": 0} == b | {"seconds": 0}
            assert not list((folder / "checkpoints").glob("*tmp*"))
            if last:
                return
            folder, saved = tmp_path / str(kills), 0  # it was faster than the kill
        else:
            assert process.returncode == -signal.SIGKILL
            kills += 1
            steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
            assert max(steps, default=0) >= saved
            saved = max(steps, default=0)
            entries = read_metrics(folder)
            assert len(entries) == len((folder / "metrics.jsonl").read_text().splitlines())
            # At most one save is under way, and every third step is saved.
            assert _newest(folder) <= saved + 6


def _newest(folder: pathlib.Path) -> int:
    return max((entry["step"] for entry in read_metrics(folder)), default=0)


def _inode(path: pathlib.Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def test_preempted_in_training_and_in_evaluation(records, whole, tmp_path):
    folder = tmp_path / "run"
    log = finish(start(records, folder, signal_at="train 5"))
    assert log.count("Stopped by SIGTERM after step") == 1
    assert "to resume" in log
    stopped = read_state(folder)[1]
    assert 1 <= stopped <= 6
    log = finish(start(records, folder, signal_at="validation 2"))
    assert f"Resuming at step {stopped}." in log
    interrupted = read_state(folder)[1]
    assert f"Stopped by SIGTERM after step {interrupted}:" in log
    assert interrupted % 4 == 0
    assert not [entry for entry in read_metrics(folder) if entry["step"] == interrupted and "validation_cost" in entry]
    log = finish(start(records, folder))
    assert log.count(f"Step {interrupted}, ") == 1  # the evaluation is done again
    require_same_end(folder, whole)
    steps = [entry["step"] for entry in read_metrics(folder) if "loss" in entry]
    assert steps == sorted(set(steps))


def test_damaged_last_checkpoints(records, whole, tmp_path):
    """Training resumes from the one before those, and saves the damaged steps again."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before, zeroed, truncated = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    for step in (zeroed, truncated):
        for path in (folder / "checkpoints" / str(step)).rglob("*"):
            if path.is_file():
                size = path.stat().st_size
                path.write_bytes(path.read_bytes()[: size // 2] if step == truncated else bytes(size))
    log = finish(start(records, folder))
    for step in (zeroed, truncated):
        assert f"The checkpoint of step {step} in {folder / 'checkpoints'} is damaged" in log
    assert f"Resuming at step {before}." in log
    require_same_end(folder, whole)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs the right to mount a file system")
def test_a_disk_that_fills_up_while_training(records, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        process = start(records, disk / "run", seconds=0.2)
        wait_for(disk / "run" / "checkpoints" / "3", process)
        with open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(bytes(4096))
                except OSError:
                    break
        log = finish(process, status=2)
        assert log.strip().splitlines()[-1].startswith("Error: The disk is full")
        assert "Traceback" not in log
        (disk / "filler").unlink()
        log = finish(start(records, disk / "run"))
        assert "Resuming at step" in log
        require_same_end(disk / "run", whole)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_second_signal_of_the_same_kind_ends_the_process():
    """SIGTERM and SIGINT together are one request, however close they are."""
    code = ("import os, signal\nfrom sedjax.training import preemption\nwith preemption.listen() as stop:\n"
            "  os.kill(os.getpid(), signal.SIGTERM)\n  os.kill(os.getpid(), signal.SIGINT)\n"
            "  assert stop.signal == 'SIGTERM'\n  print('goes on', flush=True)\n"
            "  os.kill(os.getpid(), signal.SIGINT)")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "goes on\n")
    assert "Traceback" not in ended.stderr
