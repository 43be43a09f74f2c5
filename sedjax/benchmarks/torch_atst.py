"""The encoder of ATST-Frame in PyTorch, timed by `bench --audio --against=torch`."""

from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sedjax.models.atst_frame import HEAD_SIZE, PATCH_FRAMES, AtstFrame


class Block(nn.Module):
    """A layer of the encoder, with PyTorch's fused attention."""

    def __init__(self, width: int, feed_forward: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clips, tokens, width = x.shape
        query, key, value = self.qkv(self.norm1(x)).reshape(clips, tokens, 3, -1, HEAD_SIZE).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(clips, tokens, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """The architecture of sedjax.models.atst_frame.AtstFrame, built from PyTorch's own layers."""

    def __init__(self, model: AtstFrame, bands: int):
        super().__init__()
        self.patch_embed = nn.Linear(bands * PATCH_FRAMES, model.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, model.tokens + 1, model.width))
        self.blocks = nn.ModuleList(Block(model.width, model.feed_forward)
                                    for _ in range(model.layers - model.drop_layers))
        self.norm_frame = nn.LayerNorm(model.width, eps=1e-6)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        clips, frames, bands = mel.shape
        tokens = (frames - 1) // PATCH_FRAMES
        patches = mel[:, : tokens * PATCH_FRAMES].reshape(clips, tokens, PATCH_FRAMES, bands)
        x = self.patch_embed(patches.transpose(2, 3).reshape(clips, tokens, -1)) + self.pos_embed[:, 1 : tokens + 1]
        for block in self.blocks:
            x = block(x)
        return self.norm_frame(x)


def encoder(model: AtstFrame, params: dict) -> Callable[[np.ndarray], np.ndarray]:
    """A function from log-mel (clip, frame, band) to tokens, with the weights of sedjax's encoder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = Encoder(model, params["patch_embed"]["kernel"].shape[0] // PATCH_FRAMES).to(device).eval()
    peer.load_state_dict({name: torch.tensor(value) for name, value in _state(params).items()})

    def run(mel: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return peer(torch.tensor(np.asarray(mel), device=device)).cpu().numpy()

    return run


def _state(params: dict) -> dict[str, np.ndarray]:
    """sedjax's weights in PyTorch's names and layouts."""
    state = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [str(key.key) for key in path]
        value = np.asarray(leaf)
        if names == ["mask_embed"]:  # only pretraining uses it
            continue
        if names[-1] in ("kernel", "scale"):
            value, names[-1] = value.T, "weight"
        state[".".join(names).replace("block_", "blocks.")] = value
    return state
