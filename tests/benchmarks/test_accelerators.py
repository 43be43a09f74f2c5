"""Machines that are not here: every config is lowered for TPUs and GPUs; figures of what is compiled for them."""

import functools
import json
import types

import jax
import pytest
from every_config import CONFIGS
from jax.experimental import topologies
from tiny import run_command, tiny_config

from sedjax.benchmarks import chips, compile_for, suite, throughput
from sedjax.commands import bench
from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.core.numbers import readable_bytes
from sedjax.data.records import open_records


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("step", ["training", "evaluation"])
def test_every_config_lowers_for_tpus_and_gpus(name, step):
    """Whatever a platform has no rule for, such as a kernel that the compiler would have to split, fails here."""
    function, arguments = compile_for.step_of(CONFIGS[name](deep=False), compile_for.MLPC, parallel.make_mesh(8), step)
    traced = function.trace(*arguments)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "mhlo.num_partitions = 8" in text
        assert "callback" not in text


@pytest.fixture
def here(monkeypatch):
    """A machine of eight CPU devices, with the figures of a v5e."""
    machine = chips.Machine("v5e:2x4", chips.TPUS["v5e"], parallel.make_mesh(8), {})
    monkeypatch.setattr(chips, "machine", lambda name: machine)


def test_the_figures_of_a_machine(here, tmp_path, capsys):
    path = tmp_path / "figures.json"
    run_command(bench, "--config=configs/embedding_transformer.py", "--config.data.path=", "--config.model.width=16",
                "--config.model.heads=2", "--config.model.layers=0",
                "--config.data.max_frames=20", "--config.data.bucket_frames=20", "--config.data.batch_size=16",
                "--config.data.eval_batch_size=9", "--compile_for=v5e:2x4", "--sweep=batch_size", f"--json={path}")
    result = json.loads(path.read_text())
    training, evaluation = (result["steps"][step] for step in ("training", "evaluation"))
    assert training["flops"] > 2 * evaluation["flops"] > 0
    assert training["memory"]["arguments"] > 3 * 4 * 768 * 16 + 2 * 20 * 768 * 2  # first layer with AdamW's state, data
    assert training["fits"]
    assert training["seconds"]["memory"] == training["bytes"] / 819e9
    _, size = training["collectives"]["all-reduce"]
    assert training["seconds"]["interconnect"] == pytest.approx(2 * size * 7 / 8 / 200e9)
    assert training["binds"] == max(training["seconds"], key=training["seconds"].get)
    # Nine clips are padded to two for each device.
    assert evaluation["frames_per_second"] == pytest.approx(16 * 20 / max(evaluation["seconds"].values()))
    rows = result["sweep"]["batch_size"]
    assert [row["batch_size"] for row in rows] == [16, 32, 64, 128]
    assert rows[0]["bytes"] == training["bytes"]
    assert rows[3]["flops"] > 4 * rows[0]["flops"]
    table = capsys.readouterr().out
    assert f"| binds | {' | '.join(step['binds'] for step in result['steps'].values())} |" in table
    sweep = table.split("sweep batch size:")[1]
    assert "| batch size | 16 | 32 | 64 | 128 |" in sweep
    assert f"| memory temporary | {readable_bytes(rows[0]['memory']['temporary'])} | " in sweep


def test_a_batch_that_the_chips_cannot_share(here):
    with pytest.raises(UserError, match=r"data\.batch_size = 12 .* 8 devices"):
        compile_for.bench(tiny_config(data__batch_size=12, data__path=""), "v5e:2x4")


def test_a_machine_with_less_memory_does_not_hold_a_step():
    chip = chips.Chip(1e12, 1e12, 1000, 1e9, 1e9, "")
    machine = chips.Machine("small", chip, parallel.make_mesh(1), {})
    config = tiny_config(model__layers=0)
    assert not compile_for.cost(config, compile_for.MLPC, machine, "prediction")["fits"]


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:2x0", "v5e:2x", "h100:8", "h100x16", "h100x0", "", "cpu"])
def test_no_such_machine(name):
    with pytest.raises(UserError, match=f"^--compile_for={name}: "):
        chips.machine(name)


def test_the_compiler_of_a_machine_is_named_where_it_is_missing(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such\nplugin.")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(UserError, match=r"^--compile_for=v5e:2x4: no such plugin\. .*libtpu \(pip install"):
        chips.machine("v5e:2x4")
    with pytest.raises(UserError, match=r"sedjax\[cuda\]"):
        chips.machine("h100x8")


def test_smaller_machines():
    assert chips.smaller("v5e:4x4") == ["v5e:1x1", "v5e:1x2", "v5e:2x2", "v5e:2x4", "v5e:4x4"]
    assert chips.smaller("h100x8") == ["h100x1", "h100x2", "h100x4", "h100x8"]


def test_a_chip_that_is_several_devices_shares_its_figures(monkeypatch):
    monkeypatch.setattr(topologies, "get_topology_desc", lambda **_: types.SimpleNamespace(devices=jax.devices()))
    machine = chips.machine("v4:2x2x1")
    assert machine.mesh.size == 8
    assert machine.chip.bandwidth == chips.TPUS["v4"].bandwidth / 2


@pytest.mark.parametrize("arguments", [["--audio=x"], ["--against=torch"], ["--sweep=devices"]])
def test_flags_that_do_not_go_together(arguments, here):
    config = () if "--audio=x" in arguments else ("--config=configs/demo.py",)
    with pytest.raises(UserError, match="compile_for|either --config"):
        run_command(bench, *config, "--compile_for=v5e:2x4", *arguments)


def test_the_suite_measures_everything_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(suite, "BATCH_SIZES", (8,))
    monkeypatch.setattr(suite, "PLACEMENTS", (("device", 2),))
    monkeypatch.setattr(suite, "EPOCHS", 1)
    monkeypatch.setattr(suite, "FRAMES", 20)
    monkeypatch.setattr(suite, "bench", functools.partial(suite.bench, recordings=64))
    monkeypatch.setattr(throughput, "LONG_PRODUCT_SECONDS", 1e-9)
    path = tmp_path / "suite.json"
    run_command(bench, "--config=configs/embedding_transformer.py", "--config.model.width=16", "--config.model.heads=2",
                "--config.model.layers=0", "--suite", "--steps=2", f"--json={path}")
    result = json.loads(path.read_text())
    (row,) = result["training"]
    assert (row["batch_size"], row["placement"], row["steps_per_call"]) == (8, "device", 2)
    assert row["frames_per_second"] > 0
    assert result["evaluation"]["frames_per_second"] > 0
    assert result["whole_training"]["steps"] == 2
    assert result["attention"]["ratio"] > 0
    assert result["predicted"] == {"error": "UserError: there are no published figures for cpu"}
    table = capsys.readouterr().out
    assert "| whole training steps | 2 |" in table
    assert "| predicted error | UserError: " in table
    assert "| placement | device |" in table


def test_what_is_compiled_has_the_shapes_of_the_records(records):
    config = tiny_config(data__path=str(records))
    source = open_records(str(records), "train")
    _, (_, batch, _) = compile_for.step_of(config, source, parallel.make_mesh(8), "training")
    assert (batch["features"]["embeddings"].shape, batch["votes"].shape) == ((8, 40, 16), (8, 40, 3))
