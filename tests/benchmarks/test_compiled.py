"""Memory traffic, collectives and transfers, read from a compiled program: by hand, and of programs compiled here."""


import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from programs import host_transfers
from step_setups import make_batch, setup

from sedjax.benchmarks import compiled
from sedjax.core import parallel
from sedjax.core.collective import AXIS
from sedjax.data import resident

# As XLA writes it for a TPU: S(1) is memory on the chip. Arrays of 1024 x 1024 float32 are 4 MiB.
TPU = """HloModule jit_step, is_scheduled=true

%fused (param_0: f32[1024,1024], param_1: f32[1024,1024]) -> f32[1024,1024] {
  %param_0 = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  ROOT %add.1 = f32[1024,1024]{1,0:T(8,128)} add(%param_0, %param_0)
}

%body (arg: (s32[], f32[1024,1024])) -> (s32[], f32[1024,1024]) {
  %arg = (s32[], f32[1024,1024]{1,0}) parameter(0)
  %x = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=0
  %double = f32[1024,1024]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused
  ROOT %tuple = (s32[], f32[1024,1024]{1,0}) tuple(%i, %double)
}

ENTRY %main (a: f32[1024,1024], b: bf16[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %b = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start.1 = (bf16[1024,1024]{1,0:T(8,128)S(1)}, bf16[1024,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %copy-done.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[1024,1024]{1,0:T(8,128)}), f32[512,1024]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a)
  %slice-done.1 = f32[512,1024]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %joined = f32[1024,1024]{1,0:T(8,128)S(1)} custom-call(%slice-done.1), custom_call_target="ConcatBitcast"
  %on_chip = f32[1024,1024]{1,0:T(8,128)S(1)} fusion(%joined, %copy-done.1), kind=kLoop, calls=%fused
  %out = (f32[1024,1024]{1,0:T(8,128)}, /*index=1*/f32[8]{0:T(128)S(1)}) fusion(%on_chip, %a), kind=kLoop, calls=%fused
  %first = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%out), index=0
  %all-reduce.1 = f32[1024,1024]{1,0:T(8,128)S(1)} all-reduce(%on_chip), replica_groups={}, to_apply=%add
  %zero = s32[] constant(0)
  %start = (s32[], f32[1024,1024]{1,0}) tuple(%zero, %first)
  %loop = (s32[], f32[1024,1024]{1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_what_passes_through_main_memory_by_hand():
    program = compiled.parse(TPU)
    mib = 1 << 20
    moved = {instruction.name: size * times for instruction, shapes, times in compiled.executed(program)
             if (size := compiled._moved(instruction, shapes))}
    assert moved == {"copy-start.1": 2 * mib,  # read once, written on the chip
                     "slice-start.1": 2 * mib,  # half of the array
                     "out": 8 * mib, "double": 3 * 8 * mib}
    assert compiled.traffic(program) == 36 * mib
    assert compiled.collectives(program) == {"all-reduce": (1, 4 * mib)}
    assert host_transfers(program) == []


def test_what_a_program_compiled_here_moves():
    """A product of matrices, and a sum over devices."""
    mesh = parallel.make_mesh(8)
    by_row, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    x, y = jnp.zeros((64, 32)), jnp.zeros((32, 16))
    one = compiled.parse(jax.jit(jnp.dot).lower(x, y).compile().as_text())
    assert compiled.traffic(one) == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert compiled.collectives(one) == {}
    total = jax.jit(lambda x: x.sum(0), out_shardings=everywhere).lower(jax.device_put(x, by_row)).compile()
    assert compiled.collectives(compiled.parse(total.as_text())) == {"all-reduce": (1, 4 * 32)}
    talking = jax.jit(lambda x: jax.debug.print("{}", x.sum()) or x).lower(x).compile()
    assert len(host_transfers(compiled.parse(talking.as_text()))) == 1


def test_a_step_adds_up_gradients_and_nothing_else():
    """Each parameter that the clips reach, once, and a few sums; no activation leaves its device."""
    _, state, step = setup()
    mesh = parallel.make_mesh(8)
    program = compiled.parse(parallel.compile_step(step, mesh).lower(*on_mesh(state, mesh)).compile().as_text())
    exchanged = compiled.collectives(program)
    assert set(exchanged) == {"all-reduce"}
    positions = state.params["encoder"]["positions"]
    unused = positions[20:].nbytes  # clips have 20 frames
    gradients = sum(x.nbytes for x in jax.tree.leaves(state.params)) - unused
    assert gradients < exchanged["all-reduce"][1] <= gradients + 16


def test_a_call_of_many_steps_never_asks_the_host():
    _, state, step = setup(model__layers=0)
    mesh = parallel.make_mesh(8)
    state, split, key = on_mesh(state, mesh)
    ids = jnp.asarray(np.arange(16).reshape(2, 8) % 8, jnp.int32)
    call = parallel.compile_step(resident.many_steps(step, [20], mesh), mesh)
    which = jnp.zeros(2, jnp.int32)
    program = compiled.parse(call.lower(state, split, ids, which, key).compile().as_text())
    assert host_transfers(program) == []
    inputs = parallel.replicate((ids, which), mesh)
    jax.block_until_ready(call(state, split, *inputs, key))
    with jax.transfer_guard("disallow"):
        after, scalars = call(state, split, *inputs, key)
    assert int(after.step) == 2
    assert scalars["loss"].shape == (2,)


def on_mesh(state, mesh) -> tuple:
    """State, batch of 16 clips and key, where a step takes them."""
    return (parallel.replicate(state, mesh), parallel.shard(make_batch(clips=16), mesh),
            parallel.replicate(jax.random.key(3), mesh))
