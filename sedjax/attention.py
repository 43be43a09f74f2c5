"""Attention whose weights are not dropped, by the fastest implementation that the device has."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def fused_or_plain(query: Float[Array, "clip frame head size"], key: Float[Array, "clip frame head size"],
                   value: Float[Array, "clip frame head size"],
                   frame_mask: Bool[Array, "clip frame"]) -> Float[Array, "clip frame head size"]:
    """Scaled dot-product attention over real frames (Vaswani et al. 2017); finite where a clip has none.

    On an NVIDIA GPU in half precision it is cuDNN's fused kernel, where that takes this head size; else XLA's. Neither
    can drop attention weights by clip, as training does.
    """
    mask = frame_mask[:, None, None, :]
    if jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16):
        try:
            whole = jnp.broadcast_to(mask, (len(mask), 1, query.shape[1], key.shape[1]))
            return jax.nn.dot_product_attention(query, key, value, mask=whole, implementation="cudnn")
        except (NotImplementedError, RuntimeError, ValueError):  # cuDNN is missing or too old, or the head too wide
            pass
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")
