"""A small conv-transformer for a laptop: pre-norm, warm-up and cosine decay, averaged weights, tuned thresholds.

Command:  sedjax train --config=conv_transformer_small --config.data.path=DATA --workdir=WORKDIR
Time: 3 minutes on two CPU cores for 360 recordings of 23 s.
Expected cost there (UrbanSound8K + FSDD soundscapes, see the README): 123 validation, 211 test; silence 277 and 345.
"""

from sedjax.training.configs import base_config


def get_config():
    config = base_config("conv_transformer")
    config.data.path = "records/mlpc"
    config.data.batch_size = 16
    config.model.channels = (16, 32)
    config.model.width = 128
    config.model.layers = 2
    config.model.feed_forward = 256
    config.model.norm = "pre"
    config.model.head_width = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5 percent"
    config.optimizer.clip_norm = 1.0
    config.train.duration = "30 epochs"
    config.train.ema = 0.995
    config.decision.thresholds = tuple(i / 20 for i in range(1, 20))
    return config
