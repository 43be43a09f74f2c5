"""A split that stays in device memory, from which a step picks its clips, and many steps in one call."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from sedjax.core import collective, parallel
from sedjax.core.config import Config, DataConfig
from sedjax.core.errors import UserError
from sedjax.core.numbers import ceil_div, readable_bytes
from sedjax.data.batches import Batch, read_batch
from sedjax.data.plan import ClipTable, Source, padded_frames

# Of the free device memory that data may take; the rest is for the model, its optimizer and activations.
MEMORY_SHARE = 0.8
log = logging.getLogger("sedjax")


def bucket_lengths(clips: ClipTable, config: DataConfig) -> list[int]:
    """The lengths to which batches of these clips are padded, shortest first."""
    return sorted({padded_frames(int(frames), config) for frames in np.unique(clips.frames)})


def load(source: Source, clips: ClipTable, keys: tuple[str, ...], config: DataConfig, mesh: Mesh,
        mode: str = "jit") -> Batch:
    """All clips as one batch in device memory, each device with its share, as precise as the records hold them.

    Each process reads its own share. Raises UserError if it does not fit.
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
    """Raises UserError, with the size and what to do, unless each device of this process has `share` bytes free."""
    device = mesh.local_mesh.devices[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    elif "SC_PHYS_PAGES" in os.sysconf_names:  # the devices of a CPU share its memory
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / mesh.local_mesh.size
    else:
        return
    if share > MEMORY_SHARE * free:
        raise UserError(f"The padded split takes {readable_bytes(share)} of the memory of each device, but only "
                        f"{readable_bytes(MEMORY_SHARE * free)} of {device.device_kind} can be spared: "
                        "set data.placement = 'host', use more devices, or store features in half precision.")


def gather(split: Batch, ids: Int[Array, "clip"], mesh: Mesh) -> Batch:
    """The clips `ids` of a split, -1 for none, as the batch that input_pipeline.read_batch makes of them, but longer.

    The split may be spread over devices, and so is the batch: each device looks for all clips in its share and adds
    up what the others found of its own.
    """
    if collective.is_mapped():
        return _gather(split, ids)
    rows = PartitionSpec(collective.AXIS)
    return jax.shard_map(_gather, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)(split, ids)


def _gather(split: Batch, ids: Int[Array, "clip"]) -> Batch:
    held = len(split["clip_id"])
    place = ids - jax.lax.axis_index(collective.AXIS) * held
    here = (place >= 0) & (place < held)
    place = jnp.clip(place, 0, held - 1)

    def rows(x: Array) -> Array:
        found = jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), x[place], jnp.zeros((), x.dtype))
        # GPUs add up neither truth values nor 16-bit integers of several devices.
        kind = {np.dtype(bool): np.uint8, np.dtype(np.int16): np.int32}.get(x.dtype, x.dtype)
        return jax.lax.psum_scatter(found.astype(kind), collective.AXIS, tiled=True).astype(x.dtype)

    found = jax.tree.map(rows, {**split, "clip_id": split["clip_id"] + 1})
    return {**found, "clip_id": found["clip_id"] - 1}  # no clip has the id -1, in a batch as in a split


def with_gather(step: Callable, choices: Sequence[int], mesh: Mesh, skips: bool = False) -> Callable:
    """step(state, batch, ...) -> a function of (state, split, ids (clip,), which (), ...).

    It takes the step on the clips `ids` of the split, -1 for none, cut to choices[which] frames. If it `skips`, one
    index more than there are choices takes no step: the state stays, what comes beside it is 0.
    """
    def cut(frames: int) -> Callable:
        def cut_and_step(state, batch: Batch, *others):
            each = jax.tree.map(lambda x: x[:, :frames] if x.ndim > 1 else x, batch)
            return step(state, each, *others)
        return cut_and_step

    steps = [cut(frames) for frames in choices]

    def run(state, split: Batch, ids: Int[Array, "clip"], which: Int[Array, ""], *others):
        batch = gather(split, ids, mesh)
        if not skips:
            return jax.lax.switch(which, steps, state, batch, *others)
        _, beside = jax.eval_shape(steps[0], state, batch, *others)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), beside)
        return jax.lax.switch(which, [*steps, lambda state, *_: (state, nothing)], state, batch, *others)

    return run


def many_steps(step: Callable, choices: Sequence[int], mesh: Mesh) -> Callable:
    """step(state, batch, key) -> a function of (state, split, ids (step, clip), which (step,), key): all its steps.

    It returns the last state and what each step returned beside it, stacked.
    """
    take, take_or_skip = (with_gather(step, choices, mesh, skips) for skips in (False, True))

    def run(state, split: Batch, ids: Int[Array, "step clip"], which: Int[Array, "step"], key):
        # A call that ends early skips the rest: it would have to be compiled again to be shorter.
        each = take_or_skip if len(which) > 1 else take
        return jax.lax.scan(lambda state, chosen: each(state, split, *chosen, key), state, (ids, which))

    return run


def select(ids: np.ndarray, clips: ClipTable, config: DataConfig,
           choices: Sequence[int]) -> tuple[np.ndarray, np.int32]:
    """The clips of a batch and which of `choices` is its length, as the functions of `with_gather` take them."""
    longest = int(clips.frames[ids].max(where=ids >= 0, initial=1))
    return ids.astype(np.int32), np.int32(choices.index(padded_frames(longest, config)))


def schedule(split: Batch, batch_ids: Callable[[int], np.ndarray], clips: ClipTable, config: Config,
             choices: Sequence[int], first: int, total: int, due: Callable[[int], bool]) -> Iterator[tuple[int, tuple]]:
    """The calls of what `many_steps` made: the last step of each, and its arguments between state and key.

    Args:
      split: from `load`.
      batch_ids: number of a batch -> the clips in it.
      clips, config: of the split.
      choices: from `bucket_lengths`.
      first: steps that were taken before.
      total: steps in all.
      due: whether an evaluation, a checkpoint or an entry follows a step.
    """
    while first < total:
        last = last_of_call(first + 1, min(config.train.steps_per_call, total - first), due)
        chosen = [select(batch_ids(number), clips, config.data, choices) for number in range(first, last)]
        skipped = config.train.steps_per_call - len(chosen)
        chosen += [(np.full_like(chosen[0][0], -1), np.int32(len(choices)))] * skipped
        yield last, (split, *map(np.stack, zip(*chosen)))
        first = last


def last_of_call(first: int, count: int, due: Callable[[int], bool]) -> int:
    """The last step of a call of at most `count` steps from step `first` on: it ends where something is due."""
    return next((step for step in range(first, first + count) if due(step)), first + count - 1)
