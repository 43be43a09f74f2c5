"""Every system and finding of the report (SPEC section 4), with three seeds.

Command:  sedjax sweep --config=sweeps/report --config.data.path=DATA --workdir=WORKDIR
          sweeps/report:small is the same study at a size for two CPU cores.
          DATA: records with the features embeddings, melspectrogram and mfcc, and audio for the end-to-end row.
          The ImageNet row needs resnet34.npz (see configs/resnet_transformer.py), and the full-size end-to-end row
          atst_frame.npz (see configs/atst_frame.py): without these files, the rows are listed as not run.
Time: full size: not measured; small: 70 minutes for 360 recordings of 23 s on two CPU cores.
"""

from sedjax.core.errors import UserError
from sedjax.studies.sweep import sweep_config
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
    narrow, wide_width, wide_for_six = 512, 1024, 1020
    if size == "small":
        narrow, wide_width, wide_for_six = 96, 192, 192
        mel = changed(mel, model__channels=(16, 32), model__resnet_width=16, **SMALL)
        embeddings = changed(embeddings, model__standardize=True, **SMALL)

    conv = changed(mel, model__width=narrow, model__positions=0)
    positions = changed(conv, model__positions=250)
    resnet = changed(positions, model__stem="resnet34")
    mfcc_bands = changed(positions, model__mfcc=(0, 1, 22))
    first = changed(embeddings, model__stem="conv", model__width=narrow, model__head_width=0)
    wide = changed(first, model__width=wide_width)
    head = changed(wide, model__head_width=wide_width // 4)
    systems = [
        ("naive", "naive", "", naive.get_config()),
        ("conv", "conv-transformer on mel", "naive", conv),
        ("positions", "conv-transformer, learned positions", "conv", positions),
        ("no_level", "without log scaling", "positions", changed(positions, model__log_scale=False)),
        ("resnet", "ResNet-34 stem, from scratch", "positions", resnet),
        ("imagenet", "ResNet-34 stem, ImageNet weights", "resnet",
         changed(resnet, train__initial_weights="resnet34.npz", model__resnet_width=64)),
        ("spec_augment", "SpecAugment", "positions", changed(positions, model__time_masks=2, model__band_masks=2)),
        ("mfcc_bands", "MFCC 0, 1, 22 as bands", "positions", mfcc_bands),
        ("mfcc_channels", "MFCC 0, 1, 22 as channels", "mfcc_bands", changed(mfcc_bands, model__mfcc_as="channels")),
        ("no_decay", "without weight decay", "positions", changed(positions, optimizer__weight_decay=0.0)),
        ("no_pos_weight", "without pos_weight", "positions", changed(positions, loss__pos_weight="none")),
        ("factors", "pos_weight, two classes doubled", "positions",
         changed(positions, loss__class_factors={"Jackhammer": 2.0, "Horn Honk": 2.0})),
        ("absolute_costs", "pos_weight and absolute costs", "positions",
         changed(positions, loss__absolute_costs=True)),
        ("embeddings", "embeddings, conv stem", "positions", first),
        ("wide", "+ twice the width", "embeddings", wide),
        ("head", "+ second layer in the head", "wide", head),
        ("heads_6", "6 heads", "head", changed(head, model__heads=6, model__width=wide_for_six)),
        ("final", "final: linear projection", "head", changed(head, model__stem="linear")),
        # The report's figure is void (SPEC section 5): its weights were never loaded and its labels not aligned.
        ("end_to_end", "ATST-Frame end to end, raw audio", "final", end_to_end),
    ]
    figures = [
        ("1_positions", "Learned positions", "validation_cost", ("conv", "positions")),
        ("2_resnet", "ResNet-34 in place of two convolutions", "validation_cost", ("positions", "resnet")),
        ("3_spec_augment", "SpecAugment", "loss", ("positions", "spec_augment")),
        ("4_mfcc", "MFCC", "loss", ("positions", "mfcc_bands", "mfcc_channels")),
        ("5_pos_weight", "Classes before and after pos_weight", "class_costs", ("no_pos_weight", "positions")),
        ("6_embeddings", "From mel to the final system", "validation_cost", ("positions", "embeddings", "final")),
    ]
    return sweep_config(systems, figures)
