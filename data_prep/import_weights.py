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
from sedjax.core import errors, files
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, Task
from sedjax.core.torch_file import read_state_dict
from sedjax.data.layout import read_task
from sedjax.models import registry
from sedjax.models.atst_frame import PATCH_FRAMES, STRONG_CLASSES, AtstFrame
from sedjax.models.resnet import ResNet34
from sedjax.models.torch_weights import RULES, place, split_heads, strip_prefix
from sedjax.models.variables import example_inputs
from sedjax.training import checkpoint, workdir
from sedjax.training.progress import Progress
from sedjax.training.train_state import TrainState

from . import staging

log = logging.getLogger("data_prep")

# Tensors of an image classifier that a stem does not need: the last layer, and counters that affect no output.
NOT_IN_STEM = re.compile(r"^fc\.|\.num_batches_tracked$")


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
    encoder, heads = split_heads(tensors, "atst_frame")
    part = atst_part(encoder, AtstFrame(), where=path)
    loaded = len(part)
    if strong_head:
        head = {key: value for key, value in heads.items() if key.startswith("strong_")}
        width = part["params/atst/norm_frame/bias"].size
        shapes = {"strong_head/kernel": (width, STRONG_CLASSES), "strong_head/bias": (STRONG_CLASSES,)}
        expected = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        part |= {f"params/{name}": value for name, value in place(head, expected, "heads", path).items()}
    with files.atomic_output(output) as temporary:
        np.savez(temporary, **part)
    print(f"Loaded {loaded} of {len(encoder)} tensors of the encoder, "
          f"{sum(value.size for value in encoder.values()):,} parameters, and {len(part) - loaded} of {len(heads)} "
          f"tensors of heads, into {errors.printable(output)}.")


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
    return traverse_util.unflatten_dict(place(tensors, shapes, name, where), sep="/")


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
    arrays = place({key: value for key, value in tensors.items() if not NOT_IN_STEM.search(key)},
                   shapes["params"] | shapes["batch_stats"], "resnet34", where)
    if channels != 3:
        total = arrays["conv1/kernel"].sum(axis=2, keepdims=True)
        arrays["conv1/kernel"] = np.repeat(total / channels, channels, axis=2)
    return {f"{name}/stem/{path}": arrays[path] for name, paths in shapes.items() for path in paths}


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
    arrays = place(tensors, traverse_util.flatten_dict(variables["params"], sep="/"), "atst_frame", where)
    return {f"params/atst/{path}": value for path, value in arrays.items()}


def _require_npz(output: pathlib.Path) -> None:
    if output.suffix != ".npz":
        raise UserError(f"--output must end in .npz, not {output.name!r}.")
    files.require_replaceable(output)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
