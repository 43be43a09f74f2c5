"""The detectors of PretrainedSED (Schmid et al. 2025): audio -> logits of AudioSet Strong (SPEC section 8)."""

import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Bool, Float

from sedjax.audio.frontend import atst_log_mel, frame_mn_log_mel
from sedjax.audio.spectral import SAMPLES
from sedjax.core.errors import Path
from sedjax.models.atst_frame import STRONG_CLASSES, TOKEN_SAMPLES, WINDOW_SAMPLES, AtstFrame
from sedjax.models.encoder import Dense
from sedjax.models.frame_mn import FrameMobileNet
from sedjax.models.torch_weights import place, split_heads

WINDOW_ROWS = WINDOW_SAMPLES // TOKEN_SAMPLES


class Network(NamedTuple):
    """An encoder of PretrainedSED.

    Attributes:
      encoder: module from the log-mel of a window to rows of 40 ms.
      rules: key of its tensors' names in torch_weights.RULES.
    """

    encoder: nn.Module
    rules: str


NETWORKS = {"atst_strong": Network(AtstFrame(), "atst_frame"),
            "frame_mn06_strong": Network(FrameMobileNet(0.6), "frame_mn"),
            "frame_mn10_strong": Network(FrameMobileNet(1.0), "frame_mn")}


class PretrainedNetwork(nn.Module):
    """Windows of 10 s -> encoder -> logits of each row of 40 ms.

    Attributes:
      encoder: AtstFrame or FrameMobileNet.
      groups: indices of the classes whose maximum is an output, for each output; None for all classes as they are.
    """

    inputs: ClassVar[tuple[str, ...]] = (SAMPLES,)

    encoder: nn.Module
    groups: tuple[tuple[int, ...], ...] | None = None

    @nn.compact
    def __call__(self, features: dict[str, Float[Array, "clip row sample"]], frame_mask: Bool[Array, "clip row"]
                 ) -> Float[Array, "clip row class"]:
        """`frame_mask` marks the real rows; windows shorter than 10 s must be padded to it, as in training."""
        samples = jnp.where(frame_mask[..., None], features[SAMPLES], 0).reshape(len(frame_mask), -1)
        if isinstance(self.encoder, AtstFrame):
            log_mel, _ = atst_log_mel(samples, jnp.ones(samples.shape, bool))
        else:
            log_mel = frame_mn_log_mel(samples)
        x = self.encoder(log_mel)
        self.sow("intermediates", "embeddings", x)  # stored only on request: trained.embed_step
        Dense(STRONG_CLASSES, name="weak_head")(x[:, 0])  # unused here, but checkpoints hold it
        logits = Dense(STRONG_CLASSES, name="strong_head")(x)
        if self.groups is None:
            return logits
        most = max(map(len, self.groups))
        members = np.array([[*group, *group[:1] * (most - len(group))] for group in self.groups])
        return logits[..., members].max(axis=-1)


@functools.cache
def shapes(model: PretrainedNetwork) -> dict:
    """Shapes of the variables."""
    window = {SAMPLES: jnp.zeros((1, 10, TOKEN_SAMPLES))}
    return jax.eval_shape(model.init, jax.random.key(0), window, jnp.ones((1, 10), bool))


def variables_from(tensors: Mapping[str, np.ndarray], model: PretrainedNetwork, rules: str,
                   where: Path = "The checkpoint") -> dict:
    """The variables of a detector from the tensors of PretrainedSED's checkpoint.

    Args:
      tensors: tensors by PyTorch's keys; those of the front end, and the batch norms' counters, are ignored.
      model: detector of the same size.
      rules: as in Network.
      where: where they are from, for errors.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    flat = traverse_util.flatten_dict(shapes(model))
    encoder, heads = split_heads(tensors, rules)
    inside = {key: "/".join(key[2:]) for key in flat if key[1] == "encoder"}
    outside = {key: "/".join(key[1:]) for key in flat if key not in inside}
    placed = {}
    for part, paths, name in ((encoder, inside, rules), (heads, outside, "heads")):
        arrays = place(part, {path: flat[key] for key, path in paths.items()}, name, where)
        placed |= {key: arrays[path] for key, path in paths.items()}
    return traverse_util.unflatten_dict(placed)
