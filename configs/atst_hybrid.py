"""ATST-Frame, pretrained, and on it the embedding-transformer with its loss by cost, trained together from raw audio.

Command:  sedjax train --config=atst_hybrid --config.data.path=DATA --workdir=WORKDIR
          DATA and the weights: as for configs/atst_frame.py.
Time and expected cost: not measured; 121,378,826 parameters.
"""

from configs import atst_frame
from sedjax.training.configs import base_config


def get_config():
    config = base_config("atst_hybrid")
    for section in ("data", "optimizer", "train", "decision"):
        config[section].update(atst_frame.get_config()[section])
    # Whole recordings: crops would leave the later positions of the embedding-transformer untrained.
    config.data.crop_frames = 0
    config.data.batch_size = 16
    config.model.norm = "pre"
    return config
