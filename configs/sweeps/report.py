"""Every system and finding of the report (SPEC section 4), with three seeds.

Command:  sedjax sweep --config=sweeps/report --config.data.path=DATA --workdir=WORKDIR
          sweeps/report:small is the same study at a size for two CPU cores.
          DATA: records with the features embeddings, melspectrogram and mfcc, and audio for the end-to-end row.
          The ImageNet row needs resnet34.npz (see configs/resnet_transformer.py), and the full-size end-to-end row
          atst_frame.npz (see configs/atst_frame.py): without these files, the rows are listed as not run.
Time: full size: not measured; small: 70 minutes for 360 recordings of 23 s on two CPU cores.
"""

from sedjax.core.errors import UserError
from sedjax.studies.sweep import add, add_figure, new_sweep
from sedjax.training.configs import changed

from .. import atst_frame, atst_frame_small, conv_transformer, embedding_transformer, naive

SMALL = {"data__batch_size": 16, "model__layers": 2, "model__feed_forward": 384, "model__norm": "pre",
         "optimizer__learning_rate": 1e-3, "optimizer__weight_decay": 0.01, "optimizer__schedule": "cosine",
         "optimizer__warmup": "10 percent", "optimizer__clip_norm": 1.0, "train__ema": 0.98,
         "train__duration": "12 epochs", "train__patience": 0}


def get_config(size="report"):
    if size not in ("report", "small"):
        raise UserError(f"The size must be report or small, not {size!r}.")
    mel, embeddings = conv_transformer.get_config(), embedding_transformer.get_config()
    end_to_end = atst_frame_small.get_config() if size == "small" else atst_frame.get_config()
    narrow, wide, wide_for_six = 512, 1024, 1020
    if size == "small":
        narrow, wide, wide_for_six = 96, 192, 192
        mel = changed(mel, model__channels=(16, 32), model__resnet_width=16, **SMALL)
        embeddings = changed(embeddings, model__standardize=True, **SMALL)

    sweep = new_sweep()
    add(sweep, "naive", "naive", base=naive.get_config(), seeds=(0,))
    add(sweep, "conv", "conv-transformer on mel", base=mel, parent="naive", published="better",
        model__width=narrow, model__positions=0)
    add(sweep, "positions", "conv-transformer, learned positions", parent="conv", published="better",
        model__positions=250)
    add(sweep, "no_level", "without log scaling", parent="positions", model__log_scale=False)
    add(sweep, "resnet", "ResNet-34 stem, from scratch", parent="positions", model__stem="resnet34")
    add(sweep, "imagenet", "ResNet-34 stem, ImageNet weights", parent="resnet", published="better",
        train__initial_weights="resnet34.npz", model__resnet_width=64)
    add(sweep, "spec_augment", "SpecAugment", parent="positions", published="worse",
        model__time_masks=2, model__band_masks=2)
    add(sweep, "mfcc_bands", "MFCC 0, 1, 22 as bands", parent="positions", published="no difference",
        model__mfcc=(0, 1, 22))
    add(sweep, "mfcc_channels", "MFCC 0, 1, 22 as channels", parent="mfcc_bands", published="better",
        model__mfcc_as="channels")
    add(sweep, "no_decay", "without weight decay", parent="positions", published="no difference",
        optimizer__weight_decay=0.0)
    add(sweep, "no_pos_weight", "without pos_weight", parent="positions", published="worse", loss__pos_weight="none")
    add(sweep, "factors", "pos_weight, two classes doubled", parent="positions",
        loss__class_factors={"Jackhammer": 2.0, "Horn Honk": 2.0})
    add(sweep, "absolute_costs", "pos_weight and absolute costs", parent="positions", loss__absolute_costs=True)
    add(sweep, "embeddings", "embeddings, conv stem", base=embeddings, parent="positions", published="better",
        model__stem="conv", model__width=narrow, model__head_width=0)
    add(sweep, "wide", "+ twice the width", parent="embeddings", published="better", model__width=wide)
    add(sweep, "head", "+ second layer in the head", parent="wide", published="better", model__head_width=wide // 4)
    add(sweep, "heads_6", "6 heads", parent="head", published="no difference",
        model__heads=6, model__width=wide_for_six)
    add(sweep, "final", "final: linear projection", parent="head", published="better", model__stem="linear")
    # The report's figure is void (SPEC section 5): its weights were never loaded and its labels not aligned.
    add(sweep, "end_to_end", "ATST-Frame end to end, raw audio", base=end_to_end, parent="final")

    add_figure(sweep, "1_positions", "Learned positions", "validation_cost", ("conv", "positions"))
    add_figure(sweep, "2_resnet", "ResNet-34 in place of two convolutions", "validation_cost", ("positions", "resnet"))
    add_figure(sweep, "3_spec_augment", "SpecAugment", "loss", ("positions", "spec_augment"))
    add_figure(sweep, "4_mfcc", "MFCC", "loss", ("positions", "mfcc_bands", "mfcc_channels"))
    add_figure(sweep, "5_pos_weight", "Classes before and after pos_weight", "class_costs",
               ("no_pos_weight", "positions"))
    add_figure(sweep, "6_embeddings", "From mel to the final system", "validation_cost",
               ("positions", "embeddings", "final"))
    return sweep
