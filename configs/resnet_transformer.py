"""The conv-transformer with a ResNet-34 in place of its two convolutions (SPEC system 4), from scratch.

Command:  sedjax train --config=resnet_transformer --config.data.path=DATA --workdir=WORKDIR
          From ImageNet weights: sedjax import-weights --config=resnet_transformer
          --checkpoint=resnet34.pth --output=resnet34.npz, then --config.train.initial_weights=resnet34.npz.
Time: not measured at this size.  Expected cost: from ImageNet weights better than from scratch, by the report.
"""

from configs import conv_transformer
from sedjax.training.configs import changed


def get_config():
    return changed(conv_transformer.get_config(), model__stem="resnet34")
