"""The encoder of ATST-Frame in PyTorch, timed by `bench --audio --against=torch`."""

from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import nn

from sedjax.models.atst_frame import HEAD_SIZE, PATCH_FRAMES, AtstFrame

# Parts of the names of weights in sedjax, and in PyTorch.
NAMES = {"block_": "blocks.layers.", ".qkv.kernel": ".self_attn.in_proj_weight", ".proj.": ".self_attn.out_proj.",
         ".fc1.": ".linear1.", ".fc2.": ".linear2.", "kernel": "weight", "scale": "weight"}


class Encoder(nn.Module):
    """The architecture of sedjax.models.atst_frame.AtstFrame, built from PyTorch's own layers."""

    def __init__(self, model: AtstFrame, bands: int):
        super().__init__()
        self.patch_embed = nn.Linear(bands * PATCH_FRAMES, model.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, model.tokens + 1, model.width))
        layer = nn.TransformerEncoderLayer(model.width, model.width // HEAD_SIZE, model.feed_forward, 0.0, "gelu", 1e-6,
                                           batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, model.layers - model.drop_layers, enable_nested_tensor=False)
        self.norm_frame = nn.LayerNorm(model.width, eps=1e-6)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        clips, frames, bands = mel.shape
        tokens = (frames - 1) // PATCH_FRAMES
        patches = mel[:, : tokens * PATCH_FRAMES].reshape(clips, tokens, PATCH_FRAMES, bands)
        x = self.patch_embed(patches.transpose(2, 3).reshape(clips, tokens, -1)) + self.pos_embed[:, 1 : tokens + 1]
        return self.norm_frame(self.blocks(x))


def encoder(model: AtstFrame, params: dict) -> Callable[[np.ndarray], np.ndarray]:
    """A function from log-mel (clip, frame, band) to tokens, with the weights of sedjax's encoder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = Encoder(model, params["patch_embed"]["kernel"].shape[0] // PATCH_FRAMES).to(device).eval()
    # The biases of queries, keys and values, which ATST-Frame lacks, stay 0.
    peer.load_state_dict(peer.state_dict() | {name: torch.tensor(value) for name, value in _state(params).items()})

    def run(mel: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return peer(torch.tensor(np.asarray(mel), device=device)).cpu().numpy()

    return run


def _state(params: dict) -> dict[str, np.ndarray]:
    """sedjax's weights in PyTorch's names and layouts."""
    state = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name = ".".join(str(key.key) for key in path)
        value = np.asarray(leaf).T if name.endswith("kernel") else np.asarray(leaf)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if name != "mask_embed":  # only pretraining uses it
            state[name] = value
    return state
