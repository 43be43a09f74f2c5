"""A small ATST-Frame followed by a small embedding-transformer, from scratch on raw audio, for a laptop.

Command:  sedjax train --config=atst_hybrid_small --config.data.path=DATA --workdir=WORKDIR
          DATA: records with --features=audio.
Time: 8 minutes of CPU time on two cores for 360 recordings of 23 s.
Expected cost there (UrbanSound8K + FSDD soundscapes, see the README): 104 validation, 193 test; silence 277 and 345.
"""

from sedjax.training.configs import base_config

from . import atst_frame_small


def get_config():
    config = base_config("atst_hybrid")
    small = atst_frame_small.get_config()
    for section in ("data", "optimizer", "train", "decision"):
        config[section].update(small[section])
    config.train.duration = "14 epochs"
    config.train.evaluate_every = "2 epochs"
    config.train.save_every = "2 epochs"
    config.train.ema = 0.99
    config.train.mixup = 0.5
    config.model.atst_layers = 2
    config.model.atst_width = 192
    config.model.atst_feed_forward = 384
    config.model.stem = "conv"
    config.model.width = 128
    config.model.layers = 2
    config.model.feed_forward = 256
    config.model.norm = "pre"
    config.model.positions = 0  # with crops, only the first positions would be trained
    config.model.head_width = 0
    return config
