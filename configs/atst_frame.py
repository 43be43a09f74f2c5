"""ATST-Frame end to end from raw audio (SPEC system 14, without its defects): pretrained, then fine-tuned.

Command:  sedjax train --config=atst_frame --config.data.path=DATA --workdir=WORKDIR
          DATA: records with --features=audio. Weights, from PretrainedSED's release v0.0.1: sedjax import-weights
          --network=atst_frame --checkpoint=ATST-F_strong_1.pt --output=atst_frame.npz.
Time and expected cost: not measured; 85,426,954 parameters.
"""

from sedjax.training.configs import base_config


def get_config():
    config = base_config("atst_frame")
    config.data.path = "records/mlpc"
    config.data.batch_size = 32
    config.data.eval_batch_size = 8
    config.data.bucket_frames = 40
    config.data.crop_frames = 80
    config.model.hop_seconds = 4.8
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5 percent"
    config.optimizer.clip_norm = 1.0
    config.optimizer.layer_decay = 0.75
    config.optimizer.frozen = "5 percent"
    config.train.initial_weights = "atst_frame.npz"
    config.train.duration = "20 epochs"
    config.train.patience = 5
    config.train.ema = 0.999
    config.train.mixup = 0.3
    config.decision.thresholds = tuple(i / 20 for i in range(1, 20))
    return config
