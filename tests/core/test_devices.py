"""What JAX computes on, and the accelerator that it overlooks."""

import logging

import jax
import pytest

from sedjax.commands import devices
from sedjax.core import parallel


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes this machine one with a GPU or a TPU, and these packages; JAX looks for accelerators."""
    monkeypatch.setattr(jax, "config", type("Config", (), {"jax_platforms": None}))

    def make(kind: str | None, **packages: str) -> None:
        versions = {"jax": jax.__version__, "jaxlib": "0.12.0", **{k.replace("_", "-"): v for k, v in packages.items()}}
        monkeypatch.setattr(parallel, "_accelerator", lambda: kind)
        monkeypatch.setattr(parallel, "_version", versions.get)

    return make


@pytest.mark.parametrize(("kind", "packages", "words"), [
    ("GPU", {}, "its plugin is not installed: pip install 'jax[cuda12]'"),
    ("GPU", {"jax_cuda12_plugin": "0.7.2"},
     "jaxlib 0.12.0: pip install 'jax[cuda12]'"),
    ("GPU", {"jax_cuda12_plugin": "0.12.0"}, "JAX's messages above say why"),
    ("GPU", {"jax_cuda13_plugin": "0.12.0", "jax_cuda12_plugin": "0.7.2"}, "JAX's messages above say why"),
    ("GPU", {"jax": "0.1"}, "it was imported before another version was installed: restart the runtime"),
    ("TPU", {}, "its plugin is not installed: pip install 'jax[tpu]'"),
    ("TPU", {"libtpu": "0.0.1"}, "tpu"),
])
def test_an_accelerator_that_jax_does_not_see(kind, packages, words, machine):
    machine({"GPU": parallel.GPU, "TPU": parallel.TPU}[kind], **packages)
    text = parallel.overlooked()
    assert text.startswith(f"This machine has {'an NVIDIA GPU' if kind == 'GPU' else 'a TPU'}, but JAX computes on ")
    assert words in text
    assert text.endswith(".")
    assert "\n" not in text


def test_nothing_is_overlooked_without_one_or_where_the_cpu_is_asked_for(machine, monkeypatch):
    machine(None)
    assert parallel.overlooked() is None
    machine(parallel.GPU)
    monkeypatch.setattr(jax.config, "jax_platforms", "cpu")
    assert parallel.overlooked() is None


def test_signs_of_an_accelerator(tmp_path, monkeypatch):
    for name in ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = []
    monkeypatch.setattr(parallel.glob, "glob", lambda pattern: [name for name in found if name.startswith(pattern[:8])])
    assert parallel._accelerator() is None
    for shown, there in (("No devices were found", None), ("GPU 0: Tesla T4", parallel.GPU)):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {shown}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert parallel._accelerator() == there
    (tmp_path / "nvidia-smi").unlink()
    for name, version, kind in (("/dev/nvidia0", None, parallel.GPU), ("/dev/accel0", None, parallel.TPU),
                                ("/dev/vfio/0", None, None), ("/dev/vfio/0", "0.0.50", parallel.TPU)):
        found[:] = [name]
        monkeypatch.setattr(parallel, "_version", lambda package, version=version: version)
        assert parallel._accelerator() == kind
    found.clear()
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    assert parallel._accelerator() == parallel.TPU


@pytest.mark.parametrize("text", [None, "This machine has a TPU, but JAX computes on the CPU: why."])
def test_the_command_says_what_jax_sees_and_fails_where_it_overlooks_something(text, monkeypatch, capsys, caplog):
    monkeypatch.setattr(parallel, "overlooked", lambda: text)
    monkeypatch.setattr(parallel, "initialize", lambda *options: None)
    monkeypatch.setattr(parallel, "cache_compilations", lambda: None)
    monkeypatch.setattr(parallel, "flags", type("Flags", (), {"FLAGS": type("Options", (), dict.fromkeys(
        ("distributed", "coordinator_address", "num_processes", "process_id")))}))
    monkeypatch.setattr(logging.getLogger("sedjax"), "propagate", True)
    if text:
        with pytest.raises(SystemExit, match="1"):
            devices.main(["devices"])
    else:
        devices.main(["devices"])
    assert capsys.readouterr().out == "JAX sees 8 x CPU.\n"
    assert [record.message for record in caplog.records] == [text] * bool(text)
