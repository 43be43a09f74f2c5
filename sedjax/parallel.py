"""The one place that knows devices and processes: data parallelism over one mesh axis, `batch`."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sedjax.errors import UserError

AXIS = "batch"


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of the first `devices`."""
    chosen = jax.devices()[:devices]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def require_divisible(batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises UserError, naming the nearest sizes that do, unless the devices share a batch evenly."""
    devices = mesh.size
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{key} = {batch_size} cannot be shared by {devices} devices; the nearest is {nearest}.")


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process reads."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def replicate(tree, mesh: Mesh):
    """The same values on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch, mesh: Mesh):
    """This process's rows -> global arrays, split over the devices along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def to_devices(batches: Iterable, mesh: Mesh, ahead: int = 2) -> Iterator:
    """Sends batches to the devices, `ahead` of them before they are needed."""
    queue: deque = deque()
    for batch in batches:
        queue.append(shard(batch, mesh))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def compile_step(step: Callable, mesh: Mesh, donate_state: bool = False) -> Callable:
    """Compiles step(state, batch, ...) for the global batch: state and results replicated, the batch sharded."""
    return jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec()),
                   donate_argnums=(0,) if donate_state else ())
