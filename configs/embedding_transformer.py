"""The embedding-transformer that won MLPC 2025 (SPEC system 13), trained as in the report.

Command:  sedjax train --config=embedding_transformer --config.data.path=DATA --workdir=WORKDIR
Time: 80 seconds per epoch on two CPU cores for 360 recordings of 23 s, where it takes 30 epochs.
Expected cost on MLPC according to the report: 37.30 validation, 38.60 test, 41.81 hidden.
"""

from sedjax.training.configs import base_config


def get_config():
    config = base_config("embedding_transformer")
    config.data.path = "records/mlpc"
    config.data.batch_size = 32
    config.data.bucket_frames = 20
    config.data.pool_batches = 12
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 1e-4
    config.train.duration = "100 epochs"
    config.train.patience = 10
    return config
