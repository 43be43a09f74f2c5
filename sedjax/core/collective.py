"""Sums over the global batch, for steps and layers that see either the whole batch or one device's share of it."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

AXIS = "batch"


def is_mapped() -> bool:
    """Whether the code being traced sees one device's share of the batch: under pmap, not under jit."""
    try:
        jax.lax.axis_size(AXIS)
    except NameError:  # no such axis here
        return False
    return True


def global_sum(tree):
    """Sums over the local clips -> sums over all clips of the global batch.

    Under jit the local clips are the global batch, and the sums are returned unchanged. Under pmap they are one
    device's share, and the shares are added up. So models and steps need not know, or pass on, how they run.
    """
    return jax.lax.psum(tree, AXIS) if is_mapped() else tree


def shares() -> int:
    """Number of devices that the compiler splits the traced clips across; 1 under pmap."""
    return 1 if is_mapped() else jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def on_shares(function: Callable) -> Callable:
    """A function of per-clip arrays, run by each device on its own clips: for code that the compiler cannot split."""
    if shares() == 1:
        return function
    return jax.shard_map(function, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS), check_vma=False)
