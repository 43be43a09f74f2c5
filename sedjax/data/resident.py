"""A split that stays in device memory: steps gather their clips from it, many steps per call."""

import logging
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from sedjax.core import collective, parallel
from sedjax.core.config import DataConfig
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div, readable_bytes
from sedjax.data.batches import Batch, read_batch
from sedjax.data.plan import ClipTable, Source, padded_frames

# Share of the free device memory that data may use; the rest is for the model, the optimizer and activations.
MEMORY_SHARE = 0.8
log = logging.getLogger("sedjax")


def bucket_lengths(clips: ClipTable, config: DataConfig) -> list[int]:
    """The padded lengths of batches of these clips, shortest first."""
    return sorted({padded_frames(int(frames), config) for frames in np.unique(clips.frames)})


def load(source: Source, clips: ClipTable, keys: tuple[str, ...], config: DataConfig, mesh: Mesh,
        mode: str = "jit") -> Batch:
    """Loads all clips as one batch in device memory, split across the devices, in the precision of the records.

    Each process reads its own share. Raises UserError if the batch does not fit.
    """
    rows = ceil_div(len(clips), mesh.size) * mesh.size
    ids = np.pad(np.arange(len(clips)), (0, rows - len(clips)), constant_values=-1)
    own = parallel.local_rows(rows)
    example = read_batch(source, clips, ids[own][:1], keys, config)
    frame = sum(x.nbytes for x in jax.tree.leaves(example) if x.ndim > 1) / example["frame_mask"].size
    frames = padded_frames(int(clips.frames.max()), config)
    share = frame * frames * rows / mesh.size
    require_room(share, mesh)
    log.info("Putting %d clips of %d frames into device memory, %s per device.", len(clips), frames,
             readable_bytes(share))
    return parallel.shard(read_batch(source, clips, ids, keys, config, own), mesh, mode)


def require_room(share: float, mesh: Mesh) -> None:
    """Raises UserError, with the size and a remedy, unless each device of this process has `share` bytes free."""
    device = mesh.local_mesh.devices[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    elif "SC_PHYS_PAGES" in os.sysconf_names:  # CPU devices share the memory of the host
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / mesh.local_mesh.size
    else:
        return
    if share > MEMORY_SHARE * free:
        raise UserError(f"The padded split takes {readable_bytes(share)} of memory on each device, but only "
                        f"{readable_bytes(MEMORY_SHARE * free)} of {device.device_kind} are available: "
                        "set data.placement = 'host', use more devices, or store features in half precision.")


def gather(split: Batch, ids: Int[Array, "clip"], mesh: Mesh) -> Batch:
    """The clips `ids` of a split, -1 for padding, as a batch like that of batches.read_batch, but of full length.

    Split and batch may be sharded over devices: each device looks up all clips in its own share of the split, and the
    results are summed over the devices.
    """
    if collective.is_mapped():
        return _gather(split, ids)
    rows = PartitionSpec(collective.AXIS)
    return jax.shard_map(_gather, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)(split, ids)


def _gather(split: Batch, ids: Int[Array, "clip"]) -> Batch:
    size = len(split["clip_id"])
    index = ids - jax.lax.axis_index(collective.AXIS) * size
    is_local = (index >= 0) & (index < size)
    index = jnp.clip(index, 0, size - 1)

    def rows(x: Array) -> Array:
        local = jnp.where(is_local.reshape(-1, *[1] * (x.ndim - 1)), x[index], jnp.zeros((), x.dtype))
        # GPUs cannot sum booleans or 16-bit integers across devices.
        dtype = {np.dtype(bool): np.uint8, np.dtype(np.int16): np.int32}.get(x.dtype, x.dtype)
        return jax.lax.psum_scatter(local.astype(dtype), collective.AXIS, tiled=True).astype(x.dtype)

    batch = jax.tree.map(rows, {**split, "clip_id": split["clip_id"] + 1})
    return {**batch, "clip_id": batch["clip_id"] - 1}  # padding has the id -1, both in a batch and in a split


def with_gather(step: Callable, choices: Sequence[int], mesh: Mesh, skips: bool = False) -> Callable:
    """Turns step(state, batch, ...) into a function of (state, split, ids (clip,), which (), ...).

    It runs the step on the clips `ids` of the split, -1 for padding, cut to choices[which] frames. If it `skips`, the
    index len(choices) skips the step: the state is unchanged, and the other results are 0.
    """
    def cut(frames: int) -> Callable:
        def cut_and_step(state, batch: Batch, *others):
            shorter = jax.tree.map(lambda x: x[:, :frames] if x.ndim > 1 else x, batch)
            return step(state, shorter, *others)
        return cut_and_step

    steps = [cut(frames) for frames in choices]

    def run(state, split: Batch, ids: Int[Array, "clip"], which: Int[Array, ""], *others):
        batch = gather(split, ids, mesh)
        if not skips:
            return jax.lax.switch(which, steps, state, batch, *others)
        _, results = jax.eval_shape(steps[0], state, batch, *others)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), results)
        return jax.lax.switch(which, [*steps, lambda state, *_: (state, zeros)], state, batch, *others)

    return run


def many_steps(step: Callable, choices: Sequence[int], mesh: Mesh) -> Callable:
    """Turns step(state, batch, key) into one call of many steps: (state, split, ids (step, clip), which (step,), key).

    It returns the last state and the stacked other results of each step. A call that ends early skips its remaining
    steps, since a shorter call would have to be compiled again.
    """
    one_step = with_gather(step, choices, mesh, skips=True)

    def run(state, split: Batch, ids: Int[Array, "step clip"], which: Int[Array, "step"], key):
        return jax.lax.scan(lambda state, chosen: one_step(state, split, *chosen, key), state, (ids, which))

    return run
