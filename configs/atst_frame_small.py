"""A small ATST-Frame on raw audio, trained from scratch, for a laptop.

Command:  sedjax train --config=atst_frame_small --config.data.path=DATA --workdir=WORKDIR
          DATA: records with --features=audio.
Time: 8 minutes of CPU time on two cores for 360 recordings of 23 s.
Expected cost there (UrbanSound8K + FSDD soundscapes, see the README): 136 validation, 268 test; silence 277 and 345;
configs/atst_hybrid_small.py reaches 104 and 193 in the same time.
"""

from sedjax.training.configs import base_config


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
    config.train.duration = "15 epochs"
    config.train.evaluate_every = "3 epochs"
    config.train.save_every = "3 epochs"
    config.train.patience = 0
    config.train.ema = 0.98
    config.decision.thresholds = tuple(i / 20 for i in range(1, 20))
    return config
