"""ATST-Frame (Li et al. 2023) as trained by PretrainedSED: audio -> one vector per 40 ms (SPEC section 6)."""

import os
import re

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sedjax.audio.frontend import atst_log_mel
from sedjax.core.errors import UserError
from sedjax.core.npz import npz_shapes
from sedjax.core.task import FRAME_SAMPLES, SAMPLE_RATE_HZ
from sedjax.models.attention import self_attention
from sedjax.models.encoder import POSITION_STD, Dense, gelu
from sedjax.models.variables import fill_weights

WINDOW_SAMPLES = 10 * SAMPLE_RATE_HZ
TOKEN_SAMPLES = 640  # 40 ms
TOKENS_PER_FRAME = FRAME_SAMPLES // TOKEN_SAMPLES
PATCH_FRAMES = 4  # log-mel frames
HEAD_SIZE = 64
STRONG_CLASSES = 447  # AudioSet Strong: the linear head in PretrainedSED's checkpoints


class Block(nn.Module):
    """A pre-norm transformer layer, without bias on queries, keys and values."""

    heads: int
    feed_forward: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "clip token width"]) -> Float[Array, "clip token width"]:
        clips, tokens, width = x.shape

        def norm(x: Array, name: str) -> Array:
            return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x).astype(self.dtype)

        qkv = Dense(3 * width, use_bias=False, dtype=self.dtype, name="qkv")(norm(x, "norm1"))
        mixed = self_attention(qkv, jnp.ones((clips, tokens), bool), self.heads)
        x = x + Dense(width, dtype=self.dtype, name="proj")(mixed)
        hidden = gelu(Dense(self.feed_forward, dtype=self.dtype, name="fc1")(norm(x, "norm2")))
        return x + Dense(width, dtype=self.dtype, name="fc2")(hidden)


class AtstFrame(nn.Module):
    """Log-mel of frontend.atst_log_mel -> tokens of 40 ms; 85,419,264 parameters at the default sizes.

    It was trained on windows of 10 s, with silence after shorter recordings, and attends to that silence: no mask.

    Attributes:
      layers: number of transformer layers.
      drop_layers: number of last layers to leave out; parameters for them are ignored.
      width: columns of a token, a multiple of 64, the size of a head.
      feed_forward: hidden units of a layer.
      tokens: largest number of tokens, one less than the rows of the position table.
      remat: same as in encoder.Encoder.
      dtype: dtype of the computation; parameters and norms are float32.
    """

    layers: int = 12
    drop_layers: int = 0
    width: int = 768
    feed_forward: int = 3072
    tokens: int = 250
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, mel: Float[Array, "clip frame band"]) -> Float[Array, "clip token width"]:
        clips, frames, bands = mel.shape
        tokens = (frames - 1) // PATCH_FRAMES  # the last frame is centred on the end of the recording
        if tokens > self.tokens:
            raise UserError(f"ATST-Frame takes at most {self.tokens} tokens of 40 ms, not {tokens}: split the "
                            "recording into windows.")
        # Replaces masked patches in pretraining; unused here, but checkpoints hold it.
        self.param("mask_embed", nn.initializers.normal(POSITION_STD), (1, 1, self.width))
        positions = self.param("pos_embed", nn.initializers.normal(POSITION_STD), (1, self.tokens + 1, self.width))
        patches = mel[:, : tokens * PATCH_FRAMES].reshape(clips, tokens, PATCH_FRAMES, bands)
        patches = jnp.swapaxes(patches, 2, 3).reshape(clips, tokens, bands * PATCH_FRAMES)
        x = Dense(self.width, dtype=self.dtype, name="patch_embed")(patches.astype(self.dtype))
        x = x + positions[:, 1 : tokens + 1].astype(self.dtype)  # position 0 is for a class token
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.layers - self.drop_layers):
            x = block(self.width // HEAD_SIZE, self.feed_forward, self.dtype, name=f"block_{i}")(x)
        return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm_frame")(x)


def encode(model: AtstFrame, params: dict, audio: Float[Array, "clip sample"]) -> Float[Array, "clip token width"]:
    """Tokens of windows of 10 s at 16 kHz; pad the end of a recording with silence."""
    return model.apply({"params": params}, atst_log_mel(audio, jnp.ones(audio.shape, bool))[0])


def load(path: str | os.PathLike, drop_layers: int = 0) -> tuple[AtstFrame, dict]:
    """Loads the encoder, with its sizes, from a file of data_prep.import_weights.

    Raises UserError if the file does not hold a complete ATST-Frame.
    """
    shapes = npz_shapes(path)
    blocks = {match[1] for name in shapes if (match := re.match(r"params/atst/block_(\d+)/", name))}
    positions, hidden, kernel = (shapes.get(f"params/atst/{name}", ()) for name in (
        "pos_embed", "block_0/fc1/bias", "patch_embed/kernel"))
    ranks = [len(shape) for shape in (positions, hidden, kernel)]
    if ranks != [3, 1, 2] or positions[2] < HEAD_SIZE or hidden[0] < 1 or kernel[0] < PATCH_FRAMES:
        raise UserError(f"{path} does not hold an ATST-Frame: create it with data_prep.import_weights.")
    model = AtstFrame(len(blocks), drop_layers, positions[2], hidden[0], positions[1] - 1)
    if not 0 <= drop_layers < len(blocks):
        raise UserError(f"ATST-Frame in {path} has {len(blocks)} layers: {drop_layers} of them cannot be dropped.")
    bands = kernel[0] // PATCH_FRAMES
    full = jax.eval_shape(model.clone(drop_layers=0).init, jax.random.key(0), jnp.zeros((1, 1 + PATCH_FRAMES, bands)))
    variables = {"params": {"atst": full["params"]}}
    if any(name.startswith("params/strong_head/") for name in shapes):
        head = jax.eval_shape(Dense(STRONG_CLASSES).init, jax.random.key(0), jnp.zeros((1, 1, model.width)))
        variables["params"]["strong_head"] = head["params"]
    return model, fill_weights(variables, path)["params"]["atst"]
