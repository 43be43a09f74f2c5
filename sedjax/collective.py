"""Sums over the global batch, for steps and layers that see either all of it or one device's share."""

import jax

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
