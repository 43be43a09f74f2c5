"""Small models with their train steps and batches."""

import functools

import numpy as np
import optax
from tiny import TINY_TASK, tiny_config

from sedjax.data.batches import Batch
from sedjax.models import registry
from sedjax.scoring import losses
from sedjax.training import train_state, train_step

FEATURES = {"embeddings": {"width": 16}, "melspectrogram": {"width": 64, "level_mean": [0.0] * 64,
                                                            "level_std": [10.0] * 64},
            "audio": {"width": 1920}}


def make_batch(seed: int = 0, clips: int = 8, frames: int = 20) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, frames + 1, clips)
    lengths[-1] = 0  # a padded clip
    return {"features": {"embeddings": rng.normal(size=(clips, frames, 16)).astype(np.float16),
                         "melspectrogram": rng.exponential(size=(clips, frames, 64)).astype(np.float32)},
            "votes": (rng.random((clips, frames, 3)) * (rng.random((clips, frames, 3)) < 0.3)).astype(np.float16),
            "frame_mask": np.arange(frames)[None] < lengths[:, None],
            "clip_id": np.where(lengths > 0, np.arange(clips), -1).astype(np.int32)}


def setup(name="embedding_transformer", ema=0.0, accumulate=1, mixup=0.0, **changes):
    config = tiny_config(name, **changes)
    model = registry.build_from(config, TINY_TASK)
    # Not Adam: attention gives the bias of the keys no gradient but rounding noise, which Adam blows up to full steps.
    sgd = optax.sgd(0.1)
    state = train_state.create(model, sgd, FEATURES, ema > 0, 0)
    step = functools.partial(train_step.train_step, model=model, optimizer=sgd, accumulate=accumulate, mixup=mixup,
                             ema=ema, weights=losses.class_weights(TINY_TASK, **vars(config.loss)))
    return model, state, step
