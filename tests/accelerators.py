"""Full-size configs compiled for machines that are not present: `make test-accelerators`, which takes about an hour.

Runs in a separate environment with libtpu and the CUDA plugin of JAX.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from every_config import CONFIGS
from jax.sharding import NamedSharding, PartitionSpec
from programs import host_transfers

from sedjax.benchmarks import chips, compile_for, compiled
from sedjax.core import parallel
from sedjax.core.collective import AXIS
from sedjax.models import attention, tpu_attention


@pytest.fixture(autouse=True)
def as_users_compile(monkeypatch):
    """Turns on the compiler optimizations that conftest.py turns off for other tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
@pytest.mark.parametrize(("heads", "size", "frames", "dtype"), [
    (4, 256, 250, jnp.bfloat16), (12, 64, 250, jnp.float32), (4, 24, 100, jnp.bfloat16), (6, 170, 250, jnp.bfloat16),
])
def test_every_tpu_takes_the_attention_kernel(name, heads, size, frames, dtype):
    """Forward and backward, with dropout, for heads that do not fill a register."""
    mesh = chips.machine(name).mesh
    by_clip = NamedSharding(mesh, PartitionSpec(AXIS))
    shapes = [((16, frames, 3 * heads * size), dtype), ((16, frames), jnp.bool_), ((16, 2), jnp.uint32)]
    assert tpu_attention.fits(frames, 3 * heads * size, jnp.dtype(dtype))

    def gradient(qkv, mask, seeds):
        def total(qkv):
            return attention.self_attention(qkv, mask, heads, seeds, 0.2).astype(jnp.float32).sum()

        return jax.grad(total)(qkv)

    step = parallel.compile_step(gradient, mesh)
    text = step.lower(*(jax.ShapeDtypeStruct(*shape, sharding=by_clip) for shape in shapes)).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') >= 1


@pytest.mark.parametrize("name", ["v5e:2x4", "h100"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_training_step_fits(config, name):
    for precision in ("bfloat16", "float32") if config == "embedding_transformer" else ("bfloat16",):
        cost = compile_for.cost(dataclasses.replace(CONFIGS[config](), precision=precision), compile_for.MLPC,
                                chips.machine(name), "training")
        assert cost["fits"]
        assert cost["flops"] > 0 or config.endswith("naive")


@pytest.mark.parametrize(("batch_size", "bytes_at_most"), [(32, 3.0e9), (512, 1.9e10)])
def test_memory_binds_the_report_s_step_by_no_more_than_a_quarter(batch_size, bytes_at_most):
    config = CONFIGS["embedding_transformer"]()
    config = dataclasses.replace(config, precision="bfloat16",
                                 data=dataclasses.replace(config.data, batch_size=batch_size))
    cost = compile_for.cost(config, compile_for.MLPC, chips.machine("v5e:2x4"), "training")
    assert cost["bytes"] < bytes_at_most
    # Gradients in bfloat16, once: one operation per type, since XLA does not merge types.
    count, size = cost["collectives"]["all-reduce"]
    assert count <= 2
    assert size < 2.01 * 36.0e6


@pytest.mark.parametrize("name", ["v5e:16x16", "h100x8"])
def test_no_step_talks_to_the_host(name):
    config = CONFIGS["embedding_transformer"]()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=512))
    machine = chips.machine(name)
    function, arguments = compile_for.step_of(config, compile_for.MLPC, machine.mesh, "training")
    program = compiled.parse(function.lower(*arguments).compile(machine.options).as_text())
    assert host_transfers(program) == []
