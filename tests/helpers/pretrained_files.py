"""A small detector of PretrainedSED's kind, and its checkpoint as PyTorch stores it, without PyTorch."""

import numpy as np
from flax import traverse_util
from golden import reference_tensor

from sedjax.models.frame_mn import FrameMobileNet
from sedjax.models.pretrained import PretrainedNetwork, shapes
from sedjax.models.torch_weights import RULES, tensor_key

SMALL = PretrainedNetwork(FrameMobileNet(0.1))


def small_tensors(model: PretrainedNetwork = SMALL) -> dict[str, np.ndarray]:
    """A checkpoint of a Frame-MobileNet of any width, by PyTorch's keys."""
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(shapes(model)).items():
        prefix, name, inside = (RULES["frame_mn"][0], "frame_mn", 2) if path[1] == "encoder" else ("", "heads", 1)
        key = prefix + tensor_key("/".join(path[inside:]), name)
        is_kernel = path[-1] == "kernel"
        tensors[key] = reference_tensor(key, (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2]) if is_kernel
                                        else leaf.shape)
    return tensors
