"""Batches: clips padded to a common length, prefetched for the devices."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from sedjax.core.config import DataConfig
from sedjax.core.errors import UserError
from sedjax.data import host_tensorflow
from sedjax.data.plan import ClipTable, Source, batch_frames


class Batch(TypedDict):
    """Clips padded to a common length. Padding clips have no real frames and the id -1."""

    features: dict[str, Real[Array, "clip frame _"]]
    votes: Float[Array, "clip frame class"]
    frame_mask: Bool[Array, "clip frame"]
    clip_id: Int[Array, "clip"]


def read_batch(source: Source, clips: ClipTable, ids: np.ndarray, keys: tuple[str, ...], config: DataConfig,
               rows: slice = slice(None)) -> Batch:
    """Reads the clips `ids[rows]`, padded to the length that the global batch `ids` needs.

    Does not read the other rows: each process reads its own share.
    """
    def piece(clip: int) -> dict[str, np.ndarray]:
        features, votes = source.read(int(clips.recording[clip]), keys)
        frames = slice(clips.start[clip], clips.start[clip] + clips.frames[clip])
        return {key: value[frames] for key, value in {**features, "": votes}.items()}

    pieces = [None if clip < 0 else piece(clip) for clip in ids[rows].tolist()]
    # If this process has only padding, its arrays must still have the shapes of the other processes.
    like = next((arrays for arrays in pieces if arrays is not None), None) or piece(0)
    arrays, frame_mask = pad_clips(pieces, batch_frames(clips, ids, config), like)
    votes = arrays.pop("")
    return {"features": arrays, "votes": votes, "frame_mask": frame_mask, "clip_id": ids[rows].astype(np.int32)}


def pad_clips(pieces: Sequence[dict[str, np.ndarray] | None], frames: int,
              like: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "clip frame"]]:
    """Pads arrays (t, D) by clip and name, None for padding, to (clip, frames, D) as in `like`, with their mask."""
    arrays = {key: _zeros((len(pieces), frames, value.shape[1]), value.dtype) for key, value in like.items()}
    frame_mask = np.zeros((len(pieces), frames), bool)
    for row, piece in enumerate(pieces):
        for key, value in (piece or {}).items():
            arrays[key][row, : len(value)] = value
            frame_mask[row, : len(value)] = True
    return arrays, frame_mask


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at a multiple of 64 bytes; other arrays TensorFlow copies, in a quarter of the time that reading takes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def stream(read: Callable[[int], Batch], example: Batch, first: int, last: int) -> Iterator[Batch]:
    """Batches `first` to `last` - 1 in order, with the types of `example`, read in parallel and ahead by tf.data."""
    tf = host_tensorflow.load()
    types = [array.dtype for array in tf.nest.flatten(example)]
    failures: list[UserError] = []

    def arrays(number: np.int64) -> list[np.ndarray]:
        try:
            return tf.nest.flatten(read(int(number)))
        except UserError as error:  # tf.data would wrap it in a message of its own
            failures.append(error)
            raise

    batches = tf.data.Dataset.range(first, last).map(
        lambda number: tf.nest.pack_sequence_as(example, tf.numpy_function(arrays, [number], types)),
        num_parallel_calls=tf.data.AUTOTUNE)
    try:
        yield from batches.prefetch(2).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise (failures[0] if failures else error) from error
