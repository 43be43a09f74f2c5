"""Evaluation of a split: confusion counts and loss, with every recording counted exactly once."""

import dataclasses
import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from sedjax.core import grid
from sedjax.core.config import Config
from sedjax.core.task import Task
from sedjax.data.batches import Batch
from sedjax.data.feed import DeviceFeed, Feed
from sedjax.data.plan import Source, evaluation_plan
from sedjax.scoring import decisions, losses
from sedjax.scoring.losses import weighted_bce
from sedjax.scoring.metrics import confusion_counts

log = logging.getLogger("sedjax")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Confusion counts of each recording of a split at each candidate threshold, and the mean loss.

    Attributes:
      segments, frames: counts (recording, candidate, class, outcome), int64; `frames` is None unless requested.
      loss: mean loss per real frame.
      non_finite: indices of recordings with a NaN or infinite probability or loss; their counts are meaningless.
    """

    segments: np.ndarray
    frames: np.ndarray | None
    loss: float
    non_finite: np.ndarray


class Stopped(Exception):
    """An evaluation was interrupted by a request to stop."""


class Evaluator:
    """Evaluates a split; every recording counts exactly once, for any batch size and number of devices.

    Attributes:
      feed: batches of the split.
      eval_step: the module's eval_step with this model and task: a function of (variables, batch, thresholds).
      step: compiled form of `eval_step`: a function of (variables, *inputs, thresholds).
    """

    def __init__(self, model: nn.Module, config: Config, task: Task, source: Source, mesh: Mesh,
                 on_device: bool = False, frame_counts: bool = True):
        """Loads the split into device memory if it should stay `on_device` between evaluations."""
        feed = DeviceFeed if on_device else Feed
        self.feed = feed(source, evaluation_plan(source, config.data, mesh.size), model.inputs, config, mesh)
        self.eval_step = functools.partial(
            eval_step, model=model, weights=losses.class_weights(task, **vars(config.loss)),
            pooling=config.decision.pooling, task=task, frame_counts=frame_counts)
        self.step = self.feed.compile(self.eval_step, by_row=True)
        self._recordings = len(source.lengths)

    def __call__(self, variables: dict, thresholds: np.ndarray, stop: Callable[[], bool] | None = None) -> Evaluation:
        """Evaluates at thresholds (candidate, class).

        Raises Stopped between two batches once `stop` returns True.
        """
        clips, ids = self.feed.plan.epoch(0)
        counts = []
        for _, inputs in self.feed.calls(0, len(ids)):
            if stop is not None and stop():
                raise Stopped
            counts.append(self.step(variables, *inputs, thresholds))
            counts[-2:-1] = jax.device_get(counts[-2:-1])  # one batch late, so that a stop waits for at most two
        outputs = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(counts))
        by_clip = {name: value[ids.ravel() >= 0] for name, value in outputs.items()}
        recording = clips.recording[ids[ids >= 0]]

        def by_recording(counts: np.ndarray) -> np.ndarray:
            total = np.zeros((self._recordings, *counts.shape[1:]), np.int64)
            np.add.at(total, recording, counts)
            return total

        return Evaluation(by_recording(by_clip["segments"]),
                          by_recording(by_clip["frames"]) if "frames" in by_clip else None,
                          float(by_clip["loss"].sum(dtype=np.float64) / clips.frames.sum()),
                          np.unique(recording[(by_clip["non_finite"] > 0) | ~np.isfinite(by_clip["loss"])]))


def eval_step(variables: dict, batch: Batch, thresholds: Float[Array | np.ndarray, "candidate class"], *,
              model: nn.Module, weights: Float[np.ndarray, "2 class"], pooling: str, task: Task,
              frame_counts: bool = True) -> dict[str, Array]:
    """Confusion counts and loss of each clip.

    Returns:
      `segments` and, with `frame_counts`, `frames`: (clip, candidate, class, outcome) int32 counts; `loss` (clip,), the
      loss summed over the clip's frames; `non_finite` (clip,), the number of NaN or infinite logits, which the counts
      hide because NaN exceeds no threshold.
    """
    logits = model.apply(variables, batch["features"], batch["frame_mask"])
    mask, actual = batch["frame_mask"], batch["votes"] > 0
    probabilities = jax.nn.sigmoid(logits)
    pooled = decisions.pool_segments(probabilities, mask, pooling, task)
    from_segments = confusion_counts(decisions.active(pooled, thresholds), _segments(actual & mask[..., None], task),
                                     _segments(mask[..., None], task)[..., 0])
    from_frames = {}
    if frame_counts:
        from_frames["frames"] = confusion_counts(decisions.active(probabilities, thresholds), actual[:, None],
                                                 mask[:, None])
    loss = jnp.where(mask[..., None], weighted_bce(logits, actual.astype(jnp.float32), jnp.asarray(weights)), 0)
    non_finite = (mask[..., None] & ~jnp.isfinite(logits)).sum((1, 2), dtype=jnp.int32)
    return {"segments": from_segments, "loss": loss.sum((1, 2)), "non_finite": non_finite, **from_frames}


def _segments(x: Bool[Array, "clip frame class"], task: Task) -> Bool[Array, "clip 1 segment class"]:
    return grid.any_frame(x, task)[:, None]
