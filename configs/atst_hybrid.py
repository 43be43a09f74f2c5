"""Pretrained ATST-Frame followed by the embedding-transformer with its cost-based loss, trained jointly on raw audio.

Command:  sedjax train --config=atst_hybrid --config.data.path=DATA --workdir=WORKDIR
          DATA and weights: as for configs/atst_frame.py.
Time and expected cost: not measured; 121,378,826 parameters.
"""

from sedjax.training.configs import base_config

from . import atst_frame


def get_config():
    config = base_config("atst_hybrid")
    for section in ("data", "optimizer", "train", "decision"):
        config[section].update(atst_frame.get_config()[section])
    # Whole recordings: crops would leave the later positions of the embedding-transformer untrained.
    config.data.crop_frames = 0
    config.data.batch_size = 16
    config.model.norm = "pre"
    return config
