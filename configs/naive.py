"""The naive baseline (SPEC system 1): it always predicts the classes that are active in half of the training frames.

Command:  sedjax train --config=naive --config.data.path=DATA --workdir=WORKDIR
Time: seconds.  Expected cost: 108.86 on the MLPC validation split according to the report.
"""

from sedjax.training.configs import base_config


def get_config():
    config = base_config("naive")
    config.data.path = "records/mlpc"
    config.train.duration = "0 epochs"
    return config
