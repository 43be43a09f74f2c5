"""Data in device memory: the same batches, the same numbers, and calls of many steps that end where single ones do."""

import dataclasses
import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_setups import setup
from tiny import tiny_config

from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.core.numbers import readable_bytes
from sedjax.data import resident
from sedjax.data.batches import read_batch
from sedjax.data.feed import DeviceFeed, Feed
from sedjax.data.plan import Plan, cut, order
from sedjax.data.records import Records, open_records
from sedjax.training import checkpoint, preemption
from sedjax.training.metric_writer import read_metrics
from sedjax.training.progress import saved_steps
from sedjax.training.trainer import train

KEYS = ("embeddings", "melspectrogram")


@pytest.fixture(scope="module")
def split(records):
    source = open_records(str(records), "train")
    config = tiny_config(data__bucket_frames=20)
    return source, cut(source.lengths, config.data, source.task), config


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_a_batch_from_the_device_is_that_from_the_host(split, mode, devices):
    """Bit for bit, shuffled, with places for no clip, at every length."""
    source, clips, config = split
    assert resident.bucket_lengths(clips, config.data) == [20, 40]

    def step(state, batch):
        return jax.tree.map(lengthen, batch), jnp.full(len(batch["clip_id"]), batch["votes"].shape[1])

    def lengthen(x):  # results of all lengths must have one shape
        return jnp.pad(x, [(0, 0), (0, 40 - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]) if x.ndim > 1 else x

    short = np.flatnonzero(clips.frames <= 20)
    plan = np.array([[5, -1, 0, 11, 3, 15, 1, 2], np.pad(short, (8 - len(short), 0), constant_values=-1)])
    feed = DeviceFeed(source, Plan(lambda _: (clips, plan)), KEYS, dataclasses.replace(config, parallel=mode),
                      parallel.make_mesh(devices))
    compiled = feed.compile(step, by_row=True)
    for ids, (_, inputs) in zip(plan, feed.calls(0, 2), strict=True):
        expected = read_batch(source, clips, ids, KEYS, config.data)
        found, frames = jax.device_get(compiled({}, *inputs))
        assert (frames == expected["votes"].shape[1]).all()
        expected = jax.tree.map(lambda x: np.asarray(lengthen(x)), expected)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def steps_from(split, mode, devices, per_call):
    """Six steps of which some are padded to other lengths than others."""
    source, clips, config = split
    _, state, step = setup(ema=0.9, model__layers=0)
    mesh = parallel.make_mesh(devices)
    plan = order(clips, 8, 1, 0, 0)[[0, 1, 0, 1, 1, 0]]
    state, key = parallel.replicate(jax.tree.map(np.asarray, state), mesh), parallel.replicate(jax.random.key(1), mesh)
    arguments = source, Plan(lambda _: (clips, plan)), KEYS, dataclasses.replace(config, parallel=mode), mesh
    feed = Feed(*arguments) if per_call is None else DeviceFeed(*arguments, per_call, lambda step: step == 5)
    compiled = feed.compile(step, donate_state=True)
    scalars, before = [], 0
    for last, inputs in feed.calls(0, 6):
        state, found = compiled(state, *inputs, key)
        scalars.append(jax.tree.map(lambda x, count=last - before: jnp.atleast_1d(x)[:count], found))
        before = last
    return jax.device_get(state), jax.tree.map(lambda *x: np.hstack(x), *jax.device_get(scalars))


def test_many_steps_in_a_call_are_single_steps_from_the_host(split):
    """On one device, and with pmap on eight; scalars of every step, parameters, average."""
    expected = steps_from(split, "jit", 1, None)
    assert expected[1]["loss"].shape == (6,)
    one = steps_from(split, "jit", 1, 3)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(one)):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(steps_from(split, "pmap", 8, 2))):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


class StopAfter(preemption.Stop):
    """A request to stop after a number of calls of the compiled step."""

    def __init__(self, calls: int):
        super().__init__()
        self.answers = [False] * calls + [True]

    def agreed(self) -> bool:
        return self.answers.pop(0)


def test_a_training_moves_to_fewer_devices_device_memory_pmap_and_bfloat16(records, tmp_path, monkeypatch):
    """Cut off and started again otherwise: costs, losses, entries and checkpoints stay the same."""
    common = {"data__path": str(records), "train__duration": "5 epochs", "train__log_every": "3 steps",
              "train__save_every": "5 steps", "train__evaluate_every": "4 steps"}

    def save_and_copy(manager, state, progress, save=checkpoint.save):
        save(manager, state, progress)
        manager.wait_until_finished()
        if not (tmp_path / "moved").exists():  # what a kill at the first save leaves
            shutil.copytree(tmp_path / "whole", tmp_path / "moved")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_copy)
        train(tiny_config(**common), tmp_path / "whole")
    assert [entry["step"] for entry in read_metrics(tmp_path / "moved")] == [3, 4, 4]

    read: Counter = Counter()

    def watched(self, index, keys, original=Records.read):
        read[self.split, index] += 1
        return original(self, index, keys)

    make_mesh = parallel.make_mesh
    with monkeypatch.context() as patch:
        patch.setattr(Records, "read", watched)
        patch.setattr(parallel, "make_mesh", lambda devices=None: make_mesh(2))
        train(tiny_config(**common, data__placement="device", train__steps_per_call=4, parallel="pmap"),
              tmp_path / "moved", StopAfter(calls=5))
    assert max(read.values()) <= 2  # once for the data, and one record of each split for its size
    monkeypatch.setattr(parallel, "make_mesh", lambda devices=None: make_mesh(1))
    train(tiny_config(**common, precision="bfloat16"), tmp_path / "moved")
    whole, moved = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "moved")
    assert [entry["step"] for entry in whole] == [entry["step"] for entry in moved]
    assert whole[-1]["step"] == 10
    for a, b in zip(whole, moved):
        assert a | {"seconds": 0} == pytest.approx(b | {"seconds": 0}, rel=1e-3 if a["step"] < 10 else 0.05)
    saved = [saved_steps(tmp_path / name / "checkpoints") for name in ("whole", "moved")]
    costs = {entry["step"]: entry["validation_cost"] for entry in whole if "validation_cost" in entry}
    best = min(costs, key=costs.get)
    assert saved == [sorted({8, 10, best}), sorted({9, 10, best})]  # the last two of each, and the best


@pytest.mark.parametrize("count", [1, 4, 7])
def test_calls_end_where_something_is_due(split, count):
    def due(step):
        return step % 9 == 0 or step == 40

    source, clips, config = split
    feed = DeviceFeed(source, Plan(lambda _: (clips, order(clips, 8, 1, 0, 0))), KEYS, config, parallel.make_mesh(),
                      count, due)
    ends = [end for end, _ in feed.calls(0, 40)]
    assert all(0 < after - before <= count for before, after in zip([0, *ends], ends))
    assert ends[-1] == 40
    assert set(ends) >= {step for step in range(1, 41) if due(step)}
    assert len(ends) == {1: 40, 4: 13, 7: 9}[count]  # and nowhere else


def test_a_split_that_does_not_fit(split, monkeypatch):
    source, clips, config = split
    mesh = parallel.make_mesh()
    monkeypatch.setattr(resident, "MEMORY_SHARE", 1e-9)
    with pytest.raises(UserError, match=r"takes 3\.0 KiB of .* set data.placement = 'host'"):
        resident.load(source, clips, ("embeddings",), config.data, mesh)


def test_sizes_are_readable():
    assert [readable_bytes(n) for n in (10, 2048, 3 << 20, 2.5 * 2**30)] == ["10.0 B", "2.0 KiB", "3.0 MiB", "2.5 GiB"]
