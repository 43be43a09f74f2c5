"""The conv-transformer with a ResNet-34 in place of its two convolutions (SPEC system 4), from scratch.

Command:  sedjax train --config=resnet_transformer --config.data.path=DATA --workdir=WORKDIR
          To start from ImageNet weights: sedjax import-weights --config=resnet_transformer
          --checkpoint=resnet34.pth --output=resnet34.npz, then --config.train.initial_weights=resnet34.npz.
Time: not measured at this size.  Expected cost: according to the report, lower from ImageNet weights than from scratch.
"""

from sedjax.training.configs import changed

from . import conv_transformer


def get_config():
    return changed(conv_transformer.get_config(), model__stem="resnet34")
