"""Feeds: the batches of a split as inputs of a compiled step, from the host or from device memory."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from jax.sharding import Mesh

from sedjax.core import parallel
from sedjax.core.config import Config
from sedjax.data import resident
from sedjax.data.batches import Batch, read_batch, stream
from sedjax.data.plan import Plan, Source, batch_frames


class Feed:
    """Batches that are read from the records and sent to the devices, ahead of the steps that take them."""

    def __init__(self, source: Source, plan: Plan, keys: tuple[str, ...], config: Config, mesh: Mesh):
        self.plan, self._config, self._mesh = plan, config, mesh
        self._source, self._keys = source, keys

    @functools.cached_property
    def example(self) -> Batch:
        """A batch of one clip, with the structure and the types of every batch."""
        clips, ids = self.plan.batch(0)
        own = ids[parallel.local_rows(len(ids))][:1]
        return read_batch(self._source, clips, own, self._keys, self._config.data)

    def frames(self, number: int) -> int:
        """The padded length of batch `number`."""
        return batch_frames(*self.plan.batch(number), self._config.data)

    def read(self, number: int) -> Batch:
        """This process's share of batch `number`."""
        clips, ids = self.plan.batch(number)
        return read_batch(self._source, clips, ids, self._keys, self._config.data, parallel.local_rows(len(ids)))

    def compile(self, step: Callable, **options) -> Callable:
        """Compiles step(state, batch, ...) with parallel.compile_step to a function of (state, *inputs, ...)."""
        return parallel.compile_step(step, self._mesh, mode=self._config.parallel, **options)

    def calls(self, first: int, last: int) -> Iterator[tuple[int, tuple]]:
        """The calls for the batches `first` to `last` - 1: the number of batches up to its end, and its inputs."""
        batches = parallel.to_devices(stream(self.read, self.example, first, last), self._mesh,
                                      mode=self._config.parallel)
        return ((number, (batch,)) for number, batch in enumerate(batches, start=first + 1))


class DeviceFeed(Feed):
    """Batches that the steps gather from a split in device memory, where all epochs have the same clips.

    A call of a compiled step takes up to `steps_per_call` batches, the state from one to the next, and stacks the other
    results; it takes fewer where `ends_call` is true of the number of batches up to its end.
    """

    def __init__(self, source: Source, plan: Plan, keys: tuple[str, ...], config: Config, mesh: Mesh,
                 steps_per_call: int = 1, ends_call: Callable[[int], bool] = lambda number: False):
        super().__init__(source, plan, keys, config, mesh)
        clips, _ = plan.epoch(0)
        self._split = resident.load(source, clips, keys, config.data, mesh, config.parallel)
        self._lengths = resident.bucket_lengths(clips, config.data)
        self._steps_per_call, self._ends_call = steps_per_call, ends_call

    def compile(self, step: Callable, **options) -> Callable:
        take = resident.with_gather if self._steps_per_call == 1 else resident.many_steps
        return super().compile(take(step, self._lengths, self._mesh), **options)

    def calls(self, first: int, last: int) -> Iterator[tuple[int, tuple]]:
        while first < last:
            limit = min(first + self._steps_per_call, last)
            end = next((number for number in range(first + 1, limit) if self._ends_call(number)), limit)
            chosen = np.full((self._steps_per_call, len(self.plan.batch(first)[1])), -1, np.int32)
            which = np.full(self._steps_per_call, len(self._lengths), np.int32)  # skips the steps after `end`
            for step, number in enumerate(range(first, end)):
                chosen[step], which[step] = self.plan.batch(number)[1], self._lengths.index(self.frames(number))
            yield end, (self._split, *((chosen[0], which[0]) if self._steps_per_call == 1 else (chosen, which)))
            first = end
