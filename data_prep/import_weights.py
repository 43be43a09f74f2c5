"""`python -m data_prep.import_weights`: a PyTorch checkpoint -> a sedjax workdir, or an error; never a part of it."""

import logging
import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags
from flax import linen as nn
from flax import traverse_util

from sedjax import checkpoint, commands, models, workdir
from sedjax import config as config_lib
from sedjax.errors import UserError
from sedjax.task import MLPC_2025, read_task
from sedjax.train_state import TrainState

log = logging.getLogger("data_prep")

# Per model: the prefix of its tensors in published checkpoints, and how a parameter's path becomes a tensor's key.
# The rules are applied one after the other.
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
}


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "PyTorch checkpoint (.ckpt, .pt, .pth), or .npz of its state dict.",
                        required=True)
    config_lib.define_flag()
    flags.DEFINE_string("workdir", None, "New folder for the sedjax checkpoint.", required=True)
    flags.DEFINE_string("costs", None, "costs.json of the task, its classes in the order of the checkpoint's outputs; "
                                       "MLPC 2025 if not given.")


def main(argv: Sequence[str]) -> None:
    commands.require_no_arguments(argv)
    options = flags.FLAGS
    config, folder = config_lib.from_flag(), pathlib.Path(options.workdir)
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another --workdir.")
    task = read_task(options.costs) if options.costs else MLPC_2025
    model = models.build_from(config, task)
    name = config.model["name"]
    if name not in RULES:
        raise UserError(f"No PyTorch checkpoint of {name!r} is known; those of {sorted(RULES)} are.")
    if config.model.get("standardize"):
        raise UserError("The checkpoint holds no feature statistics: set --config.model.standardize=False.")
    tensors = strip_prefix(read_state_dict(options.checkpoint), RULES[name][0])
    first = tensors.get("proj.0.weight")
    if first is None or first.ndim != 2:
        raise UserError(f"{options.checkpoint} is no checkpoint of {name!r}: it has no matrix 'proj.0.weight'.")
    widths = dict.fromkeys(model.features, first.shape[1])
    params = convert(tensors, model, name, widths)
    workdir.prepare(folder, config, task, {key: {"width": width} for key, width in widths.items()})
    state = TrainState(step=np.zeros((), np.int32), params=params, ema=None, model_state={}, opt_state={})
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state, checkpoint.Progress(finished=True))
    print(f"Loaded {len(tensors)} of {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} parameters, "
          f"into {folder}. Its outputs are taken to be, in this order: {', '.join(task.classes)}.")


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by key; a Lightning checkpoint's are under `state_dict`.

    Reading runs no code from the file. Raises UserError if it is damaged or holds anything but tensors.
    """
    if path.endswith(".npz"):
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a readable npz file: {error}.") from error
    try:
        import torch
    except ImportError as error:
        raise UserError("Reading a PyTorch checkpoint needs PyTorch: pip install 'sedjax[torch]'.") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        return {key: value.float().numpy() for key, value in content.items()}
    except Exception as error:  # torch raises pickle's, zipfile's and its own errors for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a readable PyTorch checkpoint of tensors: {reason}") from error


def strip_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Keys without `prefix`, if all of them have it."""
    if all(key.startswith(prefix) for key in tensors):
        return {key.removeprefix(prefix): value for key, value in tensors.items()}
    return dict(tensors)


def convert(tensors: Mapping[str, np.ndarray], model: nn.Module, name: str, widths: dict[str, int]) -> dict:
    """The parameters of `model` from PyTorch tensors.

    Args:
      tensors: by key, without prefix.
      model: the module.
      name: of its rules.
      widths: of its features.

    Raises:
      UserError: a tensor is missing, unexpected or misshapen; nothing is loaded then.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0), *models.example_inputs(model, widths))
    shapes = traverse_util.flatten_dict(variables["params"], sep="/")
    keys = {path: _tensor_key(path, RULES[name][1]) for path in shapes}
    missing = sorted(set(keys.values()) - set(tensors))
    unexpected = sorted(set(tensors) - set(keys.values()))
    if missing or unexpected:
        raise UserError(f"The checkpoint does not fit the model {name!r}: {len(missing)} tensors are missing "
                        f"{missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}.")
    params = {}
    for path, wanted in shapes.items():
        value = np.asarray(tensors[keys[path]], np.float32)
        # PyTorch stores (out, in) and (out, in, height, width), Flax (in, out) and (height, width, in, out).
        if path.endswith("kernel"):
            value = value.T if value.ndim == 2 else np.moveaxis(value, (0, 1), (-1, -2))
        if value.shape != wanted.shape:
            raise UserError(f"The checkpoint does not fit the model {name!r}: {keys[path]!r} has the shape "
                            f"{tensors[keys[path]].shape}, but the model's {path} is {wanted.shape}.")
        params[path] = value
    return traverse_util.unflatten_dict(params, sep="/")


def _tensor_key(path: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path


if __name__ == "__main__":
    define_flags()
    commands.run(main)
