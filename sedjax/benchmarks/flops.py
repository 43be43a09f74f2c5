"""Floating-point operations of matrix products and convolutions, from the trace of a function.

XLA's own count is missing or partial on a GPU, where calls of libraries are opaque to it.
"""

import math

from jax.extend import core


def count(jaxpr: core.Jaxpr) -> int:
    """FLOP of a run on all devices, two for each multiplication with its addition.

    Conditionals count their most expensive branch, and loops with an unknown number of turns one turn. Custom kernels
    count nothing: the platforms without one compute the same in another branch.
    """
    total = 0
    for equation in jaxpr.eqns:
        kind, params = equation.primitive.name, equation.params
        if kind == "dot_general":
            contracted = params["dimension_numbers"][0][0]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * depth
        elif kind == "conv_general_dilated":
            kernel, features_out = equation.invars[1].aval, params["dimension_numbers"].rhs_spec[0]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // kernel.shape[features_out])
        elif kind == "cond":
            total += max(count(branch.jaxpr) for branch in params["branches"])
        elif kind != "pallas_call":
            inner = [value for value in params.values() if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))]
            times = params["mesh"].size if kind == "shard_map" else params["length"] if kind == "scan" else 1
            total += times * sum(count(getattr(body, "jaxpr", body)) for body in inner)
    return total
