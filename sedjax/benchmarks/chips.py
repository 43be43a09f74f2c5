"""Accelerators: published figures, and descriptions from which XLA compiles for them without the hardware."""

import dataclasses
import math
import os
import re

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from sedjax.core.collective import AXIS
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of an accelerator.

    Attributes:
      flops: operations per second with bfloat16 operands, without sparsity.
      float32_flops: the same with float32 operands, which TPUs round to bfloat16 and GPUs to TensorFloat-32 by default.
      memory: memory size in bytes.
      bandwidth: memory bandwidth in bytes per second.
      interconnect: bytes per second that a chip sends to others, over all its links.
      source: URL of the figures.
    """

    flops: float
    float32_flops: float
    memory: float
    bandwidth: float
    interconnect: float
    source: str


TPUS = {
    "v4": Chip(275e12, 275e12, 32 * GIB, 1.2e12, 300e9, "https://cloud.google.com/tpu/docs/v4"),
    "v5e": Chip(197e12, 197e12, 16 * GIB, 819e9, 200e9, "https://cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip(459e12, 459e12, 95 * GIB, 2765e9, 600e9, "https://cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip(918e12, 918e12, 32 * GIB, 1640e9, 448e9, "https://cloud.google.com/tpu/docs/v6e"),
}
GPUS = {
    "a100": Chip(312e12, 156e12, 80e9, 2039e9, 300e9, "https://www.nvidia.com/en-us/data-center/a100/"),
    "h100": Chip(989e12, 494e12, 80e9, 3350e9, 450e9, "https://www.nvidia.com/en-us/data-center/h100/"),
    "h200": Chip(989e12, 494e12, 141e9, 4800e9, 450e9, "https://www.nvidia.com/en-us/data-center/h200/"),
}
# Further figures that XLA needs for a GPU: compute capability, multiprocessors, bytes of level-2 cache, bytes of shared
# memory per multiprocessor and per block, GHz.
ARCHITECTURES = {
    "a100": ((8, 0), 108, 40 << 20, 164 << 10, 163 << 10, 1.41),
    "h100": ((9, 0), 132, 50 << 20, 228 << 10, 227 << 10, 1.98),
    "h200": ((9, 0), 132, 60 << 20, 228 << 10, 227 << 10, 1.98),
}
# The compiler must not autotune: without the device nothing can be timed.
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
MAX_GPUS = 8  # in one host


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips of one kind, to compile for.

    Attributes:
      name: value of --compile_for.
      chip: published figures per JAX device.
      mesh: mesh of the devices.
      options: compiler options.
    """

    name: str
    chip: Chip
    mesh: Mesh
    options: dict


def machine(name: str) -> Machine:
    """The machine called `name`: `v5e:2x4` (a TPU and its topology), `h100` or `h100x8` (GPUs of a host).

    Raises UserError for an unknown chip or topology, or if its compiler is not installed.
    """
    kind, layout = _parts(name)
    if kind in GPUS:
        chip, count, needed = GPUS[kind], layout[0], "the CUDA plugin of JAX (pip install 'sedjax[cuda]')"
    else:
        chip, count, needed = TPUS[kind], math.prod(layout), "libtpu (pip install 'sedjax[tpu]')"
    try:
        described = (topologies.get_topology_desc(kind, "cuda", target_config=_gpu(kind), topology=f"1x1x{count}")
                     if kind in GPUS else _tpu(name, layout))
    except Exception as error:  # the exceptions of plugins are undocumented
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(f"--compile_for={name}: {reason}. It needs {needed}, and a topology that this version knows."
                        ) from error
    share = count / len(described.devices)  # below 1 if a chip has several devices
    figures = {field.name: getattr(chip, field.name) * share for field in dataclasses.fields(chip)
               if field.name != "source"}
    mesh = Mesh(np.array(described.devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Machine(name, dataclasses.replace(chip, **figures), mesh, GPU_OPTIONS if kind in GPUS else {})


def smaller(name: str) -> list[str]:
    """Names of machines with 1, 2, 4, ... of the chips of `name`, ending with itself."""
    kind, layout = _parts(name)
    names = [name]
    while math.prod(layout) > 1:
        longest = max(range(len(layout)), key=lambda i: layout[i])
        layout = [ceil_div(n, 2) if i == longest else n for i, n in enumerate(layout)]
        names.append(f"{kind}x{layout[0]}" if kind in GPUS else f"{kind}:{'x'.join(map(str, layout))}")
    return names[::-1]


def _parts(name: str) -> tuple[str, list[int]]:
    match = re.fullmatch(rf"({'|'.join(TPUS)}):([1-9]\d*(?:x[1-9]\d*)*)|({'|'.join(GPUS)})(?:x([1-9]\d*))?", name)
    if not match:
        raise UserError(f"--compile_for={name}: it must be one of {', '.join(TPUS)} with a topology, such as v5e:2x4, "
                        f"or one of {', '.join(GPUS)}, such as h100 or h100x8.")
    layout = [int(n) for n in (match[2] or match[4] or "1").split("x")]
    if match[3] and layout[0] > MAX_GPUS:
        raise UserError(f"--compile_for={name}: at most {MAX_GPUS} GPUs of one host can be compiled for.")
    return match[1] or match[3], layout


def _tpu(name: str, layout: list[int]):
    for key, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
                       "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}.items():
        os.environ.setdefault(key, value)  # otherwise libtpu queries the network
    # libtpu assumes four chips per host by default, which is too many here.
    small = {"chips_per_host_bounds": [*layout, 1, 1][:3]} if math.prod(layout) < 4 else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **small)


def _gpu(kind: str) -> str:
    (major, minor), cores, cache, shared, block, clock = ARCHITECTURES[kind]
    chip = GPUS[kind]
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {int(chip.memory)} shared_memory_per_block_optin: {block}
  cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{kind}"
"""
