"""The naive baseline (SPEC system 1): a class is always on if it is in half of the training frames, else never.

Command:  sedjax train --config=naive --config.data.path=DATA --workdir=WORKDIR
Time: seconds.  Expected cost: 108.86 on the MLPC validation split by the report.
"""

from sedjax.training.configs import base_config


def get_config():
    config = base_config("naive")
    config.data.path = "records/mlpc"
    config.train.duration = "0 epochs"
    return config
