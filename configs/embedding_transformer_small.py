"""A small embedding-transformer for a laptop: temporal convolutions, pre-norm, warm-up and cosine, averaged weights.

Command:  sedjax train --config=embedding_transformer_small --config.data.path=DATA --workdir=WORKDIR
Time: 2.5 minutes on two CPU cores for 360 recordings of 23 s.
Expected cost there (UrbanSound8K + FSDD soundscapes, see the README): 114 validation, 139 test;
three seeds: 118 and 135; silence 277 and 345.
"""

from sedjax.training.configs import base_config


def get_config():
    config = base_config("embedding_transformer")
    config.data.path = "records/mlpc"
    config.data.batch_size = 16
    config.data.bucket_frames = 20
    config.data.pool_batches = 12
    config.model.stem = "conv"
    config.model.width = 96
    config.model.layers = 2
    config.model.feed_forward = 384
    config.model.norm = "pre"
    config.model.head_width = 0
    config.model.standardize = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "10 percent"
    config.optimizer.clip_norm = 1.0
    config.train.duration = "12 epochs"
    config.train.patience = 0
    config.train.ema = 0.98
    return config
