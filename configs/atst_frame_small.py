"""A small ATST-Frame from scratch, from raw audio, for a laptop.

Command:  python -m sedjax train --config=configs/atst_frame_small.py --config.data.path=DATA --workdir=WORKDIR
"""

from sedjax.config import base_config


def get_config():
    config = base_config("atst_frame")
    config.data.path = "records/mlpc"
    config.data.batch_size = 16
    config.data.eval_batch_size = 8
    config.data.bucket_frames = 40
    config.data.crop_frames = 80
    config.model.layers = 3
    config.model.width = 192
    config.model.feed_forward = 384
    config.model.head_width = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "10 percent"
    config.optimizer.clip_norm = 1.0
    config.train.duration = "14 epochs"
    config.train.evaluate_every = "2 epochs"
    config.train.save_every = "2 epochs"
    config.train.patience = 0
    config.train.ema = 0.99
    config.train.mixup = 0.5
    config.decision.thresholds = tuple(i / 20 for i in range(1, 20))
    return config
