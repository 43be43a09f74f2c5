"""`sedjax import-weights`: a PyTorch checkpoint -> a sedjax workdir, or an npz file for part of a model.

Imports the whole checkpoint or fails; it never imports only some of its tensors.
"""

import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn
from flax import traverse_util

from sedjax.audio import mel
from sedjax.commands import cli
from sedjax.commands.config_flag import define_flag, from_flag
from sedjax.core import config as config_lib
from sedjax.core import errors, files, npz
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, Task
from sedjax.data.layout import read_task
from sedjax.models import registry
from sedjax.models.atst_frame import PATCH_FRAMES, STRONG_CLASSES, AtstFrame
from sedjax.models.resnet import ResNet34
from sedjax.models.variables import example_inputs
from sedjax.training import checkpoint, workdir
from sedjax.training.progress import Progress
from sedjax.training.train_state import TrainState

from . import staging

log = logging.getLogger("data_prep")

# Per network: the prefix of its tensors in published checkpoints, and the rules that turn a parameter's path into a
# tensor's key, applied in order.
_LAYER = r"^encoder/layer_(\d+)/"
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
        (r"/(kernel|scale)$", ".weight"),
        (r"/bias$", ".bias"),
    )),
    "resnet34": ("", (
        (r"^(layer\d)_(\d)/", r"\1.\2."),
        (r"downsample_conv/", "downsample.0/"),
        (r"downsample_bn/", "downsample.1/"),
        (r"/(kernel|scale)$", ".weight"),
        (r"/bias$", ".bias"),
        (r"/(mean|var)$", r".running_\1"),
    )),
    "atst_frame": ("model.atst.", (
        (r"^block_(\d+)/(qkv|proj)/", r"blocks.\1.attn.\2/"),
        (r"^block_(\d+)/(fc1|fc2)/", r"blocks.\1.mlp.\2/"),
        (r"^block_(\d+)/", r"blocks.\1."),
        (r"^patch_embed/", "patch_embed.patch_embed/"),
        (r"/(kernel|scale)$", ".weight"),
        (r"/bias$", ".bias"),
    )),
    "strong_head": ("", ((r"^kernel$", "weight"),)),
}
# Tensors of an image classifier that a stem does not need: the last layer, and counters that affect no output.
NOT_IN_STEM = re.compile(r"^fc\.|\.num_batches_tracked$")
# The heads in a checkpoint of ATST-Frame depend on its training.
ATST_HEAD = re.compile(r"^(?:model\.)?((?:strong|weak)_head)\.(weight|bias)$")


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "PyTorch checkpoint (.ckpt, .pt, .pth), or its state dict as .npz.",
                        required=True)
    define_flag(required=False)
    flags.DEFINE_enum("network", None, ["atst_frame"], "PretrainedSED's ATST-Frame, instead of --config.")
    flags.DEFINE_bool("strong_head", False, "Also import ATST-Frame's head for the classes of AudioSet Strong.")
    flags.DEFINE_string("workdir", None, "New workdir for the checkpoint of a full model.")
    flags.DEFINE_string("output", None, "npz file for part of a model (a ResNet-34 stem or ATST-Frame), for "
                                        "--config.train.initial_weights.")
    flags.DEFINE_string("costs", None, "costs.json of the task, with classes in the order of the checkpoint's "
                                       "outputs; default: MLPC 2025.")


def main(argv: Sequence[str]) -> None:
    cli.require_no_arguments(argv)
    options = flags.FLAGS
    if bool(options.network) == bool(options["config"].present):
        raise UserError("Give either --config=FILE, the model of the checkpoint, or --network=atst_frame.")
    if options.network:
        if options.workdir or not options.output:
            raise UserError("ATST-Frame is part of a model: give --output=FILE.npz instead of --workdir.")
        import_atst(options.checkpoint, pathlib.Path(options.output), options.strong_head)
        return
    if options.strong_head:
        raise UserError("--strong_head needs --network=atst_frame.")
    if bool(options.workdir) == bool(options.output):
        raise UserError("Give either --workdir=FOLDER, for a full model, or --output=FILE.npz, for a ResNet-34 stem.")
    config = from_flag()
    name = config.model["name"]
    if name == "conv_transformer" and config.model.get("stem") == "resnet34":
        if not options.output:
            raise UserError("A ResNet-34 stem is part of a model and cannot predict: give --output=FILE.npz instead "
                            "of --workdir.")
        import_stem(options.checkpoint, config, pathlib.Path(options.output))
    elif name == "embedding_transformer":
        if not options.workdir:
            raise UserError(f"A checkpoint of {name!r} is a full model: give --workdir=FOLDER instead of --output.")
        task = read_task(options.costs) if options.costs else MLPC_2025
        import_model(options.checkpoint, config, task, pathlib.Path(options.workdir))
    else:
        raise UserError(f"No PyTorch checkpoint of {name!r} is supported, only those of 'embedding_transformer' and "
                        "of 'conv_transformer' with model.stem = 'resnet34'.")


def import_model(path: str, config: config_lib.Config, task: Task, folder: pathlib.Path) -> None:
    """Writes the embedding-transformer from the PyTorch checkpoint at `path` to the workdir `folder`."""
    name = config.model["name"]
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already: choose another --workdir.")
    files.require_replaceable(folder)
    if config.model["standardize"]:
        raise UserError("The checkpoint holds no feature statistics: set --config.model.standardize=False.")
    tensors = strip_prefix(read_state_dict(path), RULES[name][0])
    first = tensors.get("proj.0.weight")
    if first is None or first.ndim != 2 or not first.size:
        raise UserError(f"{path} is not a checkpoint of {name!r}: it lacks the matrix 'proj.0.weight'.")
    model = registry.build_from(config, task)
    widths = dict.fromkeys(model.inputs, first.shape[1])
    params = convert(tensors, model, name, widths, where=path)
    state = TrainState(step=np.zeros((), np.int32), params=params, ema=None, model_state={}, opt_state={})
    with staging.staging(folder) as temporary:
        new = temporary / staging.NEW
        workdir.prepare(new, config, task, {key: {"width": width} for key, width in widths.items()})
        with checkpoint.open_manager(new) as manager:
            checkpoint.save(manager, state, Progress(finished=True, task=task.digest))
        staging.put(temporary, folder)
    print(f"Loaded {len(tensors)} of {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} parameters, "
          f"into {errors.printable(folder)}. Its outputs are assumed to be, in order: {', '.join(task.classes)}.")


def import_stem(path: str, config: config_lib.Config, output: pathlib.Path) -> None:
    """Writes the stem from the torchvision checkpoint at `path` to the npz file `output`."""
    _require_npz(output)
    channels = 1 + (len(config.model["mfcc"]) if config.model.get("mfcc_as") == "channels" else 0)
    tensors = read_state_dict(path)
    part = resnet34_part(tensors, channels, config.model["resnet_width"], where=path)
    with files.atomic_output(output) as temporary:
        np.savez(temporary, **part)
    print(f"Loaded {len(part)} of {len(tensors)} tensors, all except the classifier and counters, into "
          f"{errors.printable(output)}. Input channels: {channels}. Train from it with "
          f"--config.train.initial_weights={errors.printable(output)}.")


def import_atst(path: str, output: pathlib.Path, strong_head: bool = False) -> None:
    """Writes the ATST-Frame from the PretrainedSED checkpoint at `path` to the npz file `output`."""
    _require_npz(output)
    tensors = read_state_dict(path)
    encoder, heads = split_atst(tensors)
    part = atst_part(encoder, AtstFrame(), where=path)
    loaded = len(part)
    if strong_head:
        head = {key.removeprefix("strong_head."): value for key, value in heads.items() if key.startswith("strong_")}
        shapes = {"kernel": (part["params/atst/norm_frame/bias"].size, STRONG_CLASSES), "bias": (STRONG_CLASSES,)}
        expected = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        arrays = _place(head, expected, "strong_head", path)
        part |= {f"params/strong_head/{name}": value for name, value in arrays.items()}
    with files.atomic_output(output) as temporary:
        np.savez(temporary, **part)
    print(f"Loaded {loaded} of {len(encoder)} tensors of the encoder, "
          f"{sum(value.size for value in encoder.values()):,} parameters, and {len(part) - loaded} of {len(heads)} "
          f"tensors of heads, into {errors.printable(output)}.")


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by key; those of a Lightning checkpoint are under `state_dict`.

    Never executes code from the file. Raises UserError if it is damaged or holds anything but tensors.
    """
    if path.endswith(".npz"):
        return npz.read_npz(path)
    try:
        import torch
    except ImportError as error:
        raise UserError("Reading a PyTorch checkpoint needs PyTorch: pip install 'sedjax[torch]'.") from error
    with files.open_file(path) as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            content = content.get("state_dict", content)
            return {str(key): value.detach().float().numpy() for key, value in content.items()}
        except Exception as error:  # for damaged files torch raises errors of pickle, zipfile and its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path} is not a readable PyTorch checkpoint of tensors: {reason}") from error


def strip_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Removes `prefix` from the keys if all of them start with it."""
    if all(key.startswith(prefix) for key in tensors):
        return {key.removeprefix(prefix): value for key, value in tensors.items()}
    return dict(tensors)


def convert(tensors: Mapping[str, np.ndarray], model: nn.Module, name: str, widths: dict[str, int],
            where: str = "The checkpoint") -> dict:
    """The parameters of `model` from PyTorch tensors.

    Args:
      tensors: PyTorch tensors by key, without prefix.
      model: Flax module.
      name: key of its rules in RULES.
      widths: widths of its features.
      where: location of the tensors, for errors.

    Raises:
      UserError: a tensor is missing, unexpected or misshapen; then nothing is loaded.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, widths))
    shapes = traverse_util.flatten_dict(variables["params"], sep="/")
    return traverse_util.unflatten_dict(_place(tensors, shapes, name, where), sep="/")


def resnet34_part(tensors: Mapping[str, np.ndarray], channels: int, width: int = 64,
                  where: str = "The checkpoint") -> dict[str, np.ndarray]:
    """The variables of a ResNet-34 stem from torchvision's image classifier.

    Each of the new input channels gets the sum of the kernels for red, green and blue, divided by the number of
    channels, so that activations keep their scale; three channels keep the kernels as they are.

    Args:
      tensors: tensors by torchvision's keys; the classifier and the batch norms' counters are ignored.
      channels: number of input channels.
      width: width of the stem; torchvision's is 64.
      where: location of the tensors, for errors.

    Returns:
      Arrays by collection and path, such as "params/stem/conv1/kernel" and "batch_stats/stem/bn1/mean".

    Raises:
      UserError: a tensor is missing, unexpected or misshapen.
    """
    variables = jax.eval_shape(lambda key: ResNet34(width).init(
        key, jnp.zeros((1, 10, 64, 3)), jnp.ones((1, 10), bool), False), jax.random.key(0))
    shapes = {name: traverse_util.flatten_dict(tree, sep="/") for name, tree in variables.items()}
    arrays = _place({key: value for key, value in tensors.items() if not NOT_IN_STEM.search(key)},
                    shapes["params"] | shapes["batch_stats"], "resnet34", where)
    if channels != 3:
        total = arrays["conv1/kernel"].sum(axis=2, keepdims=True)
        arrays["conv1/kernel"] = np.repeat(total / channels, channels, axis=2)
    return {f"{name}/stem/{path}": arrays[path] for name, paths in shapes.items() for path in paths}


def split_atst(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors of the encoder, without prefix, and those of the heads, such as `strong_head.weight`."""
    heads = {".".join(match.groups()): value for key, value in tensors.items() if (match := ATST_HEAD.match(key))}
    encoder = {key: value for key, value in tensors.items() if not ATST_HEAD.match(key)}
    for prefix in (RULES["atst_frame"][0], "atst."):
        encoder = strip_prefix(encoder, prefix)
    return encoder, heads


def atst_part(tensors: Mapping[str, np.ndarray], model: AtstFrame,
              where: str = "The checkpoint") -> dict[str, np.ndarray]:
    """The variables of ATST-Frame by path, such as "params/atst/norm_frame/bias".

    Args:
      tensors: tensors of the encoder, without prefix.
      model: module of the same size.
      where: location of the tensors, for errors.

    Raises:
      UserError: a tensor is missing, unexpected or misshapen.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1 + PATCH_FRAMES, mel.ATST.bands)))
    arrays = _place(tensors, traverse_util.flatten_dict(variables["params"], sep="/"), "atst_frame", where)
    return {f"params/atst/{path}": value for path, value in arrays.items()}


def _require_npz(output: pathlib.Path) -> None:
    if output.suffix != ".npz":
        raise UserError(f"--output must end in .npz, not {output.name!r}.")
    files.require_replaceable(output)


def _place(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, jax.ShapeDtypeStruct], name: str,
           where: str) -> dict[str, np.ndarray]:
    """Maps PyTorch tensors to paths by the rules of `name`. Raises UserError unless all fit and none is left over."""
    keys = {path: _tensor_key(path, RULES[name][1]) for path in shapes}
    missing = sorted(set(keys.values()) - set(tensors))
    unexpected = sorted(set(tensors) - set(keys.values()))
    if missing or unexpected:
        raise UserError(f"{where} does not fit the model {name!r}: {len(missing)} tensors are missing "
                     f"{missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}.")
    arrays = {}
    for path, expected in shapes.items():
        value = tensors[keys[path]]
        if value.dtype.kind not in "fiu":
            raise UserError(f"{where} does not fit the model {name!r}: {keys[path]!r} holds {value.dtype}.")
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{where} holds NaN, infinity or numbers beyond float32 in {keys[path]!r}.")
        # PyTorch stores (out, in) and (out, in, height, width), Flax (in, out) and (height, width, in, out).
        if path.endswith("kernel") and value.ndim > 1:
            value = np.moveaxis(value, (0, 1), (-1, -2))
        if value.shape != expected.shape:
            raise UserError(f"{where} does not fit the model {name!r}: {keys[path]!r} has the shape "
                         f"{tensors[keys[path]].shape}, but the model's {path} is {expected.shape}.")
        arrays[path] = value
    return arrays


def _tensor_key(path: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
