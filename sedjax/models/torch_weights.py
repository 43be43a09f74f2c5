"""PyTorch's names and layouts of the tensors of published checkpoints, which fit a network whole or not at all."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from sedjax.core.errors import Path, UserError, printable

# Per network: the prefix of its tensors in published checkpoints, and the rules that turn a parameter's path into a
# tensor's key, applied in order.
_LAYER = r"^encoder/layer_(\d+)/"
_USUAL = ((r"/(kernel|scale)$", ".weight"), (r"/bias$", ".bias"), (r"/(mean|var)$", r".running_\1"))
RULES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "embedding_transformer": ("model.", (
        (r"^proj1/", "proj.0/"),
        (r"^proj2/", "proj.2/"),
        (r"^encoder/positions$", "pos_encoder.pe"),
        (r"^head/linear1/", "classifier.0/"),
        (r"^head/linear2/", "classifier.3/"),
        (_LAYER + r"attention/qkv/kernel", r"transformer.layers.\1.self_attn.in_proj_weight"),
        (_LAYER + r"attention/qkv/bias", r"transformer.layers.\1.self_attn.in_proj_bias"),
        (_LAYER + r"attention/out/", r"transformer.layers.\1.self_attn.out_proj/"),
        (_LAYER, r"transformer.layers.\1."),
        *_USUAL,
    )),
    "resnet34": ("", (
        (r"^(layer\d)_(\d)/", r"\1.\2."),
        (r"downsample_conv/", "downsample.0/"),
        (r"downsample_bn/", "downsample.1/"),
        *_USUAL,
    )),
    "atst_frame": ("model.atst.", (
        (r"^block_(\d+)/(qkv|proj)/", r"blocks.\1.attn.\2/"),
        (r"^block_(\d+)/(fc1|fc2)/", r"blocks.\1.mlp.\2/"),
        (r"^block_(\d+)/", r"blocks.\1."),
        (r"^patch_embed/", "patch_embed.patch_embed/"),
        *_USUAL,
    )),
    "frame_mn": ("model.frame_mn.", (
        (r"^features_(\d+)/", r"features.\1."),
        (r"block_(\d)/(fc1|fc2)/", r"block.\1.conc_se_layers.0.\2/"),
        (r"block_(\d)/", r"block.\1."),
        (r"conv/", "0/"),
        (r"norm/", "1/"),
        *_USUAL,
    )),
    "heads": ("", _USUAL),
}
# The heads in a checkpoint of PretrainedSED depend on its training.
HEAD = re.compile(r"^(?:model\.)?((?:strong|weak)_head)\.(weight|bias)$")
# What PretrainedSED may store besides: arrays of its front end, and counters that affect no output.
NOT_OF_NETWORK = re.compile(r"(?:^|\.)mel\.|\.num_batches_tracked$")


def strip_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Removes `prefix` from the keys if all of them start with it."""
    if all(key.startswith(prefix) for key in tensors):
        return {key.removeprefix(prefix): value for key, value in tensors.items()}
    return dict(tensors)


def split_heads(tensors: Mapping[str, np.ndarray], name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors of the encoder `name`, without prefix, and those of the heads, such as `strong_head.weight`."""
    heads = {".".join(match.groups()): value for key, value in tensors.items() if (match := HEAD.match(key))}
    encoder = {key: value for key, value in tensors.items() if not HEAD.match(key) and not NOT_OF_NETWORK.search(key)}
    prefix = RULES[name][0]
    for part in (prefix, prefix.removeprefix("model.")):
        encoder = strip_prefix(encoder, part)
    return encoder, heads


def place(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, jax.ShapeDtypeStruct], name: str,
          where: Path) -> dict[str, np.ndarray]:
    """Maps PyTorch tensors to paths by the rules of `name`; errors name their place, `where`.

    Raises UserError unless all fit and none is left over.
    """
    where = printable(where)
    keys = {path: tensor_key(path, name) for path in shapes}
    missing = sorted(set(keys.values()) - set(tensors))
    unexpected = sorted(set(tensors) - set(keys.values()))
    if missing or unexpected:
        raise UserError(f"{where} does not fit the model {name!r}: {len(missing)} tensors are missing "
                        f"{missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}.")
    arrays = {}
    for path, expected in shapes.items():
        value = tensors[keys[path]]
        # PyTorch stores (out, in) and (out, in, height, width), Flax (in, out) and (height, width, in, out).
        if path.endswith("kernel") and value.ndim > 1:
            value = np.moveaxis(value, (0, 1), (-1, -2))
        if value.shape != expected.shape:
            raise UserError(f"{where} does not fit the model {name!r}: {keys[path]!r} has the shape "
                            f"{tensors[keys[path]].shape}, but the model's {path} is {expected.shape}.")
        if value.dtype.kind not in "fiu":
            raise UserError(f"{where} does not fit the model {name!r}: {keys[path]!r} holds {value.dtype}.")
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{where} holds NaN, infinity or numbers beyond float32 in {keys[path]!r}.")
        arrays[path] = value
    return arrays


def tensor_key(path: str, name: str) -> str:
    """The key, without prefix, of the tensor for the parameter at `path` of the network `name`."""
    for pattern, replacement in RULES[name][1]:
        path = re.sub(pattern, replacement, path)
    return path
