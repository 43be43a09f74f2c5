"""The models of `make demo`, small enough to train on two CPU cores in a minute.

Command:  sedjax train --config=demo:MODEL --workdir=WORKDIR
          MODEL is conv_transformer (on mel spectrograms), embedding_transformer (on embeddings of the
          conv-transformer) or naive.
Time: half a minute each on two CPU cores.  Expected test cost: 136 (conv), 148 (embedding), 489 (naive).
"""

from sedjax.core.errors import UserError

from . import conv_transformer_small, embedding_transformer_small, naive

CONFIGS = {"conv_transformer": conv_transformer_small, "embedding_transformer": embedding_transformer_small,
           "naive": naive}


def get_config(model="conv_transformer"):
    if model not in CONFIGS:
        raise UserError(f"MODEL must be one of {', '.join(CONFIGS)}, not {model!r}.")
    config = CONFIGS[model].get_config()
    config.data.max_frames = 100
    if model == "naive":
        return config
    config.data.batch_size = 8
    config.model.positions = 100
    config.model.width = 96
    config.model.head_width = 96
    config.model.feed_forward = 192
    if model == "conv_transformer":
        config.optimizer.learning_rate = 2e-3
        config.train.duration = "40 epochs"
        config.train.ema = 0.98
    config.train.patience = 0
    return config
