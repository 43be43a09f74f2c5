"""Sums over the global batch, for steps and layers that see either all of it or one device's share."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

AXIS = "batch"


def is_mapped() -> bool:
    """Whether the code that is being traced sees one device's share of the batch: under pmap, not under jit."""
    try:
        jax.lax.axis_size(AXIS)
    except NameError:  # no such axis here
        return False
    return True


def global_sum(tree):
    """What was summed over the clips at hand -> the sum over all clips of the global batch.

    Under jit the clips at hand are the global batch and nothing is to be done. Under pmap they are a device's share,
    and the shares are added. So no model and no step has to be told how it runs, and none can forget to pass it on.
    """
    return jax.lax.psum(tree, AXIS) if is_mapped() else tree


def shares() -> int:
    """Into how many shares the clips at hand are split among devices."""
    return 1 if is_mapped() else jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def on_shares(function: Callable) -> Callable:
    """A function of arrays by clip, called by each device with its own: for what the compiler cannot split itself."""
    if shares() == 1:
        return function
    return jax.shard_map(function, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS), check_vma=False)
