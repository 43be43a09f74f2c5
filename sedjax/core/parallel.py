"""The one place that knows devices and processes: data parallelism over one mesh axis, `batch`."""

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

MODES = ("jit", "pmap")
# The same names as the flags, for a cluster that is started by a script.
ENVIRONMENT = {"coordinator_address": "JAX_COORDINATOR_ADDRESS", "num_processes": "JAX_NUM_PROCESSES",
               "process_id": "JAX_PROCESS_ID"}
GPU, TPU = "an NVIDIA GPU", "a TPU"
PLUGINS = {GPU: (("jax-cuda12-plugin", "jax-cuda13-plugin"), "cuda12"), TPU: (("libtpu",), "tpu")}
SHUTDOWN_WAIT_SECONDS = 120  # that a process which ends waits for the others, before it takes them for lost
log = logging.getLogger("sedjax")


def define_flags() -> None:
    """Defines the flags of `start`."""
    flags.DEFINE_bool("distributed", False, "One of several processes, which find each other: Cloud TPU pods, Slurm, "
                                            "Open MPI. Start the same command on every host.")
    flags.DEFINE_string("coordinator_address", None, "One of several processes: IP:PORT of process 0. Or set "
                                                     "JAX_COORDINATOR_ADDRESS.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are. Or set JAX_NUM_PROCESSES.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0. Or set JAX_PROCESS_ID.")


def start() -> None:
    """What a command does before its first computation: join the cluster of the flags, keep what is compiled.

    Warns if it will compute on the CPU of a machine that has an accelerator.
    """
    options = flags.FLAGS
    cache_compilations()
    initialize(options.distributed, options.coordinator_address, options.num_processes, options.process_id)
    if text := overlooked():
        log.warning("%s", text)


def describe_devices() -> str:
    """What JAX computes on, in all processes: "2 x NVIDIA A100-SXM4-40GB"."""
    kinds = collections.Counter("CPU" if device.platform == "cpu" else device.device_kind for device in jax.devices())
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def overlooked() -> str | None:
    """Why JAX does not see the accelerator of this machine, and what to do; None if it sees one, or there is none.

    Where JAX_PLATFORMS asks for the CPU, nothing is overlooked.
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
        reason = f"{others} does not go with jaxlib {jaxlib}: pip install 'jax[{extra}]'"
    else:
        reason = _failure(kind)
    return f"This machine has {kind}, but JAX computes on the CPU: {reason}."


def _failure(kind: str) -> str:
    """Why JAX does not begin on a device whose plugin is installed."""
    if kind == GPU:
        return "JAX's messages above say why; the driver may be too old, or none"
    try:
        jax.devices("tpu")
    except RuntimeError as error:
        return " ".join(str(error).split())[:400].rstrip(".")
    return "JAX_PLATFORMS puts the CPU first"


def _accelerator() -> str | None:
    """A GPU or a TPU, if the machine shows one, whether JAX sees it or not."""
    if glob.glob("/dev/nvidia[0-9]*"):
        return GPU
    if shutil.which("nvidia-smi"):  # under WSL the devices have other names
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, timeout=30).stdout
            if listed.startswith(b"GPU"):
                return GPU
    if any(name in os.environ for name in ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")) or glob.glob("/dev/accel[0-9]*"):
        return TPU
    if glob.glob("/dev/vfio/[0-9]*") and _version("libtpu"):  # other devices have such names too
        return TPU
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cache_compilations() -> None:
    """Keeps compiled steps in ~/.cache/sedjax/xla (under XDG_CACHE_HOME if set) for the next start of any command.

    Does nothing where JAX_COMPILATION_CACHE_DIR says where to, or where the folder cannot be written.
    """
    if jax.config.jax_compilation_cache_dir is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "sedjax" / "xla"
    made = next(folder for folder in (path, *path.parents) if folder.exists())
    if made.is_dir() and os.access(made, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(path))
    else:
        log.info("Compiled steps are not kept: %s cannot be written.", made)


def initialize(distributed: bool = False, coordinator_address: str | None = None, num_processes: int | None = None,
               process_id: int | None = None) -> None:
    """Makes this process one of several, if anything says so and it is not yet; must come before any computation.

    Args:
      distributed: the processes find each other, as on a Cloud TPU pod, under Slurm or Open MPI.
      coordinator_address: IP:PORT of process 0, or JAX_COORDINATOR_ADDRESS.
      num_processes: how many there are, or JAX_NUM_PROCESSES.
      process_id: which one this is, or JAX_PROCESS_ID.

    Raises:
      UserError: what is given is incomplete or wrong, or no cluster is found.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    given = {name: os.environ.get(ENVIRONMENT[name]) if value is None else value for name, value in given.items()}
    missing = [name for name, value in given.items() if value in (None, "")]
    if (not distributed and len(missing) == len(given)) or jax.distributed.is_initialized():
        return
    if not distributed and missing:
        raise UserError(f"One of several processes needs --{missing[0]} too (or {ENVIRONMENT[missing[0]]}).")
    try:
        found = {name: int(value) for name, value in given.items() if name[0] != "c" and name not in missing}
    except ValueError as error:
        raise UserError(f"JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers: {error}.") from error
    if not missing and not 0 <= found["process_id"] < found["num_processes"]:
        raise UserError(f"--process_id = {found['process_id']} must be at least 0 and below --num_processes = "
                        f"{found['num_processes']}.")
    address = given["coordinator_address"] or None
    if address and not address.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator_address must be IP:PORT, not {address!r}.")
    try:
        jax.distributed.initialize(address, shutdown_timeout_seconds=SHUTDOWN_WAIT_SECONDS, **found)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"The processes cannot be joined ({reason}): give --coordinator_address, --num_processes and "
                        "--process_id.") from error
    if not is_process_zero():
        log.setLevel(logging.WARNING)


def is_process_zero() -> bool:
    """Whether this is process 0, the one that writes files and talks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """A block that fails in all processes if it fails in one, so that none waits for another that is gone.

    In the block the processes must not compute all_or_none. Raises UserError where it failed elsewhere only.
    """
    failure = None
    try:
        yield
    except Exception as error:  # raised below, once the others know
        failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failed.any() and failure is None:
            raise UserError(f"Process {int(np.argmax(failed))} stopped: its message says why.")
    if failure is not None:
        raise failure


def on_process_zero(action: Callable[[], None]) -> None:
    """Runs `action` in process 0; the others wait for it, and end with an error if it fails."""
    with all_or_none():
        if is_process_zero():
            action()


def any_across_processes(flag: bool) -> jax.Array:
    """Whether `flag` is true in any process; whoever reads it waits for all of them to ask, and for their devices."""
    mesh = make_mesh()
    own = np.full(mesh.local_mesh.size, flag)
    return _any(mesh)(jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), own))


@functools.cache
def _any(mesh: Mesh) -> Callable:
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of the first `devices`."""
    # The devices of a process are neighbours, so that its rows of a batch are: on a TPU pod their ids need not be.
    chosen = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[:devices]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def require_divisible(batch_size: int, mesh: Mesh, key: str, parts: int = 1) -> None:
    """Raises UserError, naming the nearest sizes that do, unless the devices share a batch evenly.

    Args:
      batch_size: clips of all devices.
      mesh: the devices.
      key: the config key, for the error.
      parts: into which each device splits its share.
    """
    unit = mesh.size * parts
    if batch_size % unit:
        below, above = batch_size // unit * unit, ceil_div(batch_size, unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        each = f" in {parts} parts each" if parts > 1 else ""
        raise UserError(f"{key} = {batch_size} cannot be shared by {mesh.size} devices{each}; "
                        f"the nearest is {nearest}.")


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process reads."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def replicate(tree, mesh: Mesh):
    """The same values on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # device_put sends no key to other processes
            data = jax.device_put(np.asarray(jax.random.key_data(x)), everywhere)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jax.device_put(x, everywhere)

    return jax.tree.map(place, tree)


def shard(batch, mesh: Mesh, mode: str = "jit"):
    """This process's rows -> arrays on the devices, split along the first axis.

    For `jit` they are global arrays; for `pmap` a new first axis counts the devices of this process.
    """
    if mode == "pmap":
        mesh = mesh.local_mesh
        batch = jax.tree.map(lambda x: np.reshape(x, (mesh.size, -1, *x.shape[1:])), batch)
        return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def to_devices(batches: Iterable, mesh: Mesh, ahead: int = 2, mode: str = "jit") -> Iterator:
    """Sends batches to the devices, `ahead` of them before they are needed."""
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
      step: a pure function; what it sums over clips it must pass through collective.global_sum.
      mesh: the devices.
      donate_state: the state may be overwritten by the result.
      mode: "jit" or "pmap"; the batch must come from `shard` with the same.
      by_row: each result has one row a clip, in the order of the batch.
    """
    donated = (0,) if donate_state else ()
    everywhere = NamedSharding(mesh, PartitionSpec())
    if mode == "jit":
        def on_mesh(*args):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # which collective.on_shares asks for
                return step(*args)

        return jax.jit(on_mesh, out_shardings=everywhere, donate_argnums=donated)

    def mapped(state, batch, others):
        found = step(state, batch, *others[0])
        return jax.lax.all_gather(found, AXIS, tiled=True) if by_row else found

    compiled = jax.pmap(mapped, AXIS, in_axes=(None, 0, None), out_axes=None, devices=mesh.devices.tolist(),
                        donate_argnums=donated)

    def run(state, batch, *others):
        # Where there are as many leaves as arguments, JAX 0.10 takes in_axes for those of the leaves.
        filler = np.zeros(()) if len(jax.tree.leaves((state, batch, others))) == 3 else None
        found = compiled(state, batch, (others, filler))
        if jax.process_count() == 1:
            return found
        # pmap hands back arrays of this process alone; checkpoints need them to be those of all.
        return jax.tree.map(lambda x: jax.make_array_from_single_device_arrays(
            x.shape, everywhere, [part.data for part in x.addressable_shards]), found)

    return run
