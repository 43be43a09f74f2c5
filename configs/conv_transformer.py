"""The conv-transformer on mel spectrograms with learned positions (SPEC system 3).

Command:  sedjax train --config=conv_transformer --config.data.path=DATA --workdir=WORKDIR
Time: not measured at this size.
Expected cost on MLPC according to the report (without positions): 81 train, 101.47 test.
"""

from sedjax.training.configs import base_config


def get_config():
    config = base_config("conv_transformer")
    config.data.path = "records/mlpc"
    config.data.batch_size = 32
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 1e-4
    config.train.duration = "100 epochs"
    config.train.patience = 10
    return config
