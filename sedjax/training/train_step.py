"""The train step: a pure function of the global batch, independent of jit and devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from sedjax.core.collective import global_sum
from sedjax.data.batches import Batch
from sedjax.models import augment
from sedjax.scoring.losses import masked_sum, weighted_bce
from sedjax.training.train_state import TrainState, trained_variables


def train_step(state: TrainState, batch: Batch, key: Key[Array, ""], *, model: nn.Module,
               optimizer: optax.GradientTransformation, weights: Float[np.ndarray, "2 class"], accumulate: int = 1,
               mixup: float = 0.0, ema: float = 0.0) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on the mean loss per real frame of the global batch.

    Args:
      state: state before the step.
      batch: global batch.
      key: random key of the whole run; an argument, so that all seeds share one compiled step.
      model, optimizer: same as for train_state.create.
      weights: class weights of the loss, from losses.class_weights.
      accumulate: number of equal parts into which the batch is split, processed one after the other; the gradient is
        that of the full batch, except with batch norm (which experiment.prepare refuses).
      mixup: alpha of augment.mixup, which needs an even number of clips on each device; 0 for none.
      ema: decay of the running average of the trained variables.

    Returns:
      The state after the step, and the scalars `loss` (mean per real frame) and `gradient_norm`.
    """
    dropout_key, augment_key, mixup_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
    streams = {"dropout": dropout_key, "augment": augment_key}
    # Mixup comes before the batch is split into parts, which would separate its pairs.
    features, targets = batch["features"], (batch["votes"] > 0).astype(jnp.float32)
    if mixup:
        features, targets = augment.mixup(mixup_key, features, targets, batch["frame_mask"], batch["clip_id"],
                                          alpha=mixup)
    batch = {"features": features, "targets": targets, "frame_mask": batch["frame_mask"], "clip_id": batch["clip_id"]}
    mutable = [name for name in trained_variables(state.params, state.model_state) if name != "params"]

    def loss_sum(params, model_state, batch: dict[str, Any]):
        logits, updates = model.apply({"params": params, **model_state}, batch["features"], batch["frame_mask"],
                                      train=True, clip_id=batch["clip_id"], rngs=streams, mutable=mutable)
        elements = weighted_bce(logits, batch["targets"], jnp.asarray(weights))
        total, count = masked_sum(elements, batch["frame_mask"])
        return total, (count, {**model_state, **updates})

    def part(carry, batch: dict[str, Any]):
        gradient, total, count, model_state = carry
        (part_total, (part_count, model_state)), part_gradient = jax.value_and_grad(loss_sum, has_aux=True)(
            state.params, model_state, batch)
        gradient = jax.tree.map(jnp.add, gradient, part_gradient)
        return (gradient, total + part_total, count + part_count, model_state), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    carry = (zeros, jnp.zeros(()), jnp.zeros(()), state.model_state)
    if accumulate == 1:
        carry, _ = part(carry, batch)
    else:
        # Part i takes every accumulate-th clip, so that each device keeps its own clips.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
        carry, _ = jax.lax.scan(part, carry, parts)
    gradient, total, count, model_state = carry
    gradient, total, count = global_sum((gradient, total, count))
    gradient = jax.tree.map(lambda g: g / jnp.maximum(count, 1), gradient)

    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if average is not None:
        # A young average must forget the initial values faster than an old one.
        decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(trained_variables(params, model_state), average, 1 - decay)
    metrics = {"loss": total / jnp.maximum(count, 1), "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, params, average, model_state, opt_state), metrics


