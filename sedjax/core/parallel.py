"""Devices and processes: data parallelism over a single mesh axis, `batch`. No other module handles them."""

import collections
import contextlib
import functools
import glob
import importlib.metadata
import logging
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sedjax.core.collective import AXIS
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div

# Environment variables instead of the flags, for clusters started by a script.
ENVIRONMENT = {"coordinator_address": "JAX_COORDINATOR_ADDRESS", "num_processes": "JAX_NUM_PROCESSES",
               "process_id": "JAX_PROCESS_ID"}
GPU, TPU = "an NVIDIA GPU", "a TPU"
PLUGINS = {GPU: (("jax-cuda12-plugin", "jax-cuda13-plugin"), "cuda12"), TPU: (("libtpu",), "tpu")}
SHUTDOWN_WAIT_SECONDS = 120  # how long an exiting process waits for the others before it assumes they died
log = logging.getLogger("sedjax")


def define_flags() -> None:
    """Defines the flags of `start`."""
    flags.DEFINE_bool("distributed", False, "Run as one of several processes that find each other: Cloud TPU pods, "
                                            "Slurm, Open MPI. Start the same command on every host.")
    flags.DEFINE_string("coordinator_address", None, "IP:PORT of process 0, to run as one of several processes. Or "
                                                     "set JAX_COORDINATOR_ADDRESS.")
    flags.DEFINE_integer("num_processes", None, "Number of processes. Or set JAX_NUM_PROCESSES.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0. Or set JAX_PROCESS_ID.")


def start() -> None:
    """Sets up a command before its first computation: compilation cache, and the cluster given by the flags.

    Warns if the command will run on the CPU of a machine that has an accelerator.
    """
    options = flags.FLAGS
    cache_compilations()
    initialize(options.distributed, options.coordinator_address, options.num_processes, options.process_id)
    if text := overlooked():
        log.warning("%s", text)


def describe_devices() -> str:
    """The devices of all processes, such as "2 x NVIDIA A100-SXM4-40GB"."""
    kinds = collections.Counter("CPU" if device.platform == "cpu" else device.device_kind for device in jax.devices())
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def overlooked() -> str | None:
    """Why JAX does not see this machine's accelerator, and what to do; None if it sees one or there is none.

    None also where JAX_PLATFORMS asks for the CPU.
    """
    if jax.config.jax_platforms == "cpu" or jax.default_backend() != "cpu" or not (kind := _accelerator()):
        return None
    names, extra = PLUGINS[kind]
    jaxlib = _version("jaxlib")
    plugins = {name: _version(name) for name in names if _version(name)}
    if jax.__version__ != _version("jax"):
        reason = "it was imported before another version was installed: restart the runtime"
    elif not plugins:
        reason = f"its plugin is not installed: pip install 'jax[{extra}]'"
    elif kind == GPU and jaxlib not in plugins.values():
        others = " and ".join(f"{name} {version}" for name, version in plugins.items())
        reason = f"{others} is not compatible with jaxlib {jaxlib}: pip install 'jax[{extra}]'"
    else:
        reason = _failure(kind)
    return f"This machine has {kind}, but JAX computes on the CPU: {reason}."


def _failure(kind: str) -> str:
    """Why JAX does not start on a device whose plugin is installed."""
    if kind == GPU:
        return "JAX's messages above say why; the driver may be too old or missing"
    try:
        jax.devices("tpu")
    except RuntimeError as error:
        return " ".join(str(error).split())[:400].rstrip(".")
    return "JAX_PLATFORMS lists the CPU first"


def _accelerator() -> str | None:
    """The accelerator of this machine, GPU or TPU, whether JAX sees it or not; None if there is none."""
    if glob.glob("/dev/nvidia[0-9]*"):
        return GPU
    if shutil.which("nvidia-smi"):  # under WSL the devices have different names
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, timeout=30).stdout
            if listed.startswith(b"GPU"):
                return GPU
    if any(name in os.environ for name in ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")) or glob.glob("/dev/accel[0-9]*"):
        return TPU
    if glob.glob("/dev/vfio/[0-9]*") and _version("libtpu"):  # other devices also have such names
        return TPU
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cache_compilations() -> None:
    """Caches compiled steps for later runs in ~/.cache/sedjax/xla (under XDG_CACHE_HOME if set).

    Does nothing if JAX_COMPILATION_CACHE_DIR is set or the folder is not writable.
    """
    if jax.config.jax_compilation_cache_dir is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "sedjax" / "xla"
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(path))
    else:
        log.info("Compiled steps are not cached: %s is not writable.", existing)


def initialize(distributed: bool = False, coordinator_address: str | None = None, num_processes: int | None = None,
               process_id: int | None = None) -> None:
    """Joins this process to a cluster if one is configured and not yet joined; call it before any computation.

    Args:
      distributed: let the processes find each other, as on a Cloud TPU pod, under Slurm or Open MPI.
      coordinator_address: IP:PORT of process 0, or JAX_COORDINATOR_ADDRESS.
      num_processes: number of processes, or JAX_NUM_PROCESSES.
      process_id: index of this process, or JAX_PROCESS_ID.

    Raises:
      UserError: the arguments are incomplete or wrong, or no cluster is found.
    """
    options = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    options = {name: os.environ.get(ENVIRONMENT[name]) if value is None else value for name, value in options.items()}
    missing = [name for name, value in options.items() if value in (None, "")]
    if (not distributed and len(missing) == len(options)) or jax.distributed.is_initialized():
        return
    if not distributed and missing:
        raise UserError(f"To run several processes, also set --{missing[0]} (or {ENVIRONMENT[missing[0]]}).")
    try:
        numbers = {name: int(value) for name, value in options.items() if name[0] != "c" and name not in missing}
    except ValueError as error:
        raise UserError(f"JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers: {error}.") from error
    if not missing and not 0 <= numbers["process_id"] < numbers["num_processes"]:
        raise UserError(f"--process_id = {numbers['process_id']} must be at least 0 and below --num_processes = "
                        f"{numbers['num_processes']}.")
    address = options["coordinator_address"] or None
    if address and not address.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator_address must be IP:PORT, not {address!r}.")
    try:
        jax.distributed.initialize(address, shutdown_timeout_seconds=SHUTDOWN_WAIT_SECONDS, **numbers)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"Cannot join the other processes ({reason}): set --coordinator_address, --num_processes and "
                        "--process_id.") from error
    if not is_process_zero():
        log.setLevel(logging.WARNING)


def is_process_zero() -> bool:
    """Whether this is process 0, which writes files and logs."""
    return jax.process_index() == 0


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """A block that fails in all processes if it fails in one, so that no process waits for one that is gone.

    The block must not run joint computations. Raises UserError in processes where only another one failed.
    """
    failure = None
    try:
        yield
    except Exception as error:  # raised below, after the other processes know
        failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failed.any() and failure is None:
            raise UserError(f"Process {int(np.argmax(failed))} failed; see its log.")
    if failure is not None:
        raise failure


def on_process_zero(action: Callable[[], object]) -> None:
    """Runs `action` in process 0; the other processes wait for it, and raise UserError if it fails."""
    with all_or_none():
        if is_process_zero():
            action()


def any_across_processes(flag: bool) -> jax.Array:
    """Whether `flag` is true in any process; reading the result waits for all processes and their devices."""
    mesh = make_mesh()
    own = np.full(mesh.local_mesh.size, flag)
    return _any(mesh)(jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), own))


@functools.cache
def _any(mesh: Mesh) -> Callable:
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of the first `devices` of them."""
    # Keeps the devices of a process, and so its rows of a batch, together: on a TPU pod their ids need not be adjacent.
    chosen = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[:devices]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def require_divisible(batch_size: int, mesh: Mesh, key: str, parts: int = 1) -> None:
    """Raises UserError, with the nearest valid sizes, unless a batch splits evenly across the devices.

    Args:
      batch_size: clips per batch, over all devices.
      mesh: the devices.
      key: the config key, for the error.
      parts: number of parts that each device splits its share into.
    """
    unit = mesh.size * parts
    if batch_size % unit:
        below, above = batch_size // unit * unit, ceil_div(batch_size, unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        per_device = f" in {parts} parts each" if parts > 1 else ""
        raise UserError(f"{key} = {batch_size} cannot be split evenly across {mesh.size} devices{per_device}; "
                        f"use {nearest}.")


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch of `batch_size` that this process reads."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def replicate(tree, mesh: Mesh):
    """Copies the values to every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # device_put sends no key to other processes
            data = jax.device_put(np.asarray(jax.random.key_data(x)), everywhere)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jax.device_put(x, everywhere)

    return jax.tree.map(place, tree)


def shard(batch, mesh: Mesh, mode: str = "jit"):
    """Puts this process's rows on the devices, split along the first axis.

    For `jit` the results are global arrays; for `pmap` they have a new first axis, the devices of this process.
    """
    if mode == "pmap":
        mesh = mesh.local_mesh
        batch = jax.tree.map(lambda x: np.reshape(x, (mesh.size, -1, *x.shape[1:])), batch)
        return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def to_devices(batches: Iterable, mesh: Mesh, ahead: int = 2, mode: str = "jit") -> Iterator:
    """Sends batches to the devices, keeping up to `ahead` of them there before they are needed."""
    queue: collections.deque = collections.deque()
    for batch in batches:
        queue.append(shard(batch, mesh, mode))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def compile_step(step: Callable, mesh: Mesh, donate_state: bool = False, mode: str = "jit",
                 by_row: bool = False) -> Callable:
    """Compiles step(state, batch, ...) for the global batch: state and results replicated, the batch sharded.

    Args:
      step: a pure function; its sums over clips must go through collective.global_sum.
      mesh: the devices.
      donate_state: whether the result may overwrite the state.
      mode: "jit" or "pmap"; the batch must come from `shard` with the same mode.
      by_row: whether each result has one row per clip, in the order of the batch.
    """
    donated = (0,) if donate_state else ()
    everywhere = NamedSharding(mesh, PartitionSpec())
    if mode == "jit":
        def on_mesh(*args):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # needed by collective.on_shares
                return step(*args)

        return jax.jit(on_mesh, out_shardings=everywhere, donate_argnums=donated)

    def mapped(state, batch, others):
        result = step(state, batch, *others[0])
        return jax.lax.all_gather(result, AXIS, tiled=True) if by_row else result

    compiled = jax.pmap(mapped, AXIS, in_axes=(None, 0, None), out_axes=None, devices=mesh.devices.tolist(),
                        donate_argnums=donated)

    def run(state, batch, *others):
        # With as many leaves as arguments, JAX 0.10 would apply in_axes to the leaves.
        filler = np.zeros(()) if len(jax.tree.leaves((state, batch, others))) == 3 else None
        result = compiled(state, batch, (others, filler))
        if jax.process_count() == 1:
            return result
        # pmap returns arrays of this process alone; checkpoints need global arrays.
        return jax.tree.map(lambda x: jax.make_array_from_single_device_arrays(
            x.shape, everywhere, [part.data for part in x.addressable_shards]), result)

    return run
