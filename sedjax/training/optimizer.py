"""AdamW with a schedule, and rules for weight decay and layer-wise rates that must cover every parameter."""

import re

import jax
import jax.numpy as jnp
import optax

from sedjax.core.config import OptimizerConfig

# The first pattern that matches a parameter's path says whether it decays (SPEC section 4: no biases, no norms).
DECAY_RULES = (
    (r"(^|/)(bias|scale)$", False),
    (r"(^|/)(kernel|positions)$", True),
    # As in the training of ATST-Frame; mask_embed gets no gradient here, so decay would shrink it to 0.
    (r"^atst/(pos_embed|mask_embed)$", False),
)


def decay_mask(params, rules=DECAY_RULES):
    """Which parameters decay, as a tree of bool. Raises ValueError for a parameter that no rule matches."""
    def decays(path, _) -> bool:
        name = _name(path)
        for pattern, decay in rules:
            if re.search(pattern, name):
                return decay
        raise ValueError(f"No decay rule matches the parameter {name!r}: add one to DECAY_RULES.")

    return jax.tree_util.tree_map_with_path(decays, params)


def layer_rates(params, decay: float):
    """Factors on the learning rate by depth, as a tree of float: layer-wise decay (Bao et al. 2022, BEiT).

    1 for all parameters after ATST-Frame's blocks, decay^(n - i) for block i of n, decay^(n + 1) for those before.
    Raises ValueError for a parameter of the encoder that no rule covers.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    blocks = len({match[0] for name in names if (match := re.match(r"atst/block_\d+/", name))})

    def rate(path, _) -> float:
        name = _name(path)
        if match := re.match(r"atst/block_(\d+)/", name):
            return decay ** (blocks - int(match[1]))
        if re.match(r"atst/(patch_embed/|pos_embed$|mask_embed$)", name):
            return decay ** (blocks + 1)
        if re.match(r"atst/(?!norm_frame/)", name):
            raise ValueError(f"The depth of the parameter {name!r} is unknown: add it to layer_rates.")
        return 1.0

    return jax.tree_util.tree_map_with_path(rate, params)


def scale_by_layer(decay: float, frozen_steps: int) -> optax.GradientTransformation:
    """Multiplies updates by layer_rates; those of the pretrained encoder by 0 in the first `frozen_steps` steps.

    It comes after Adam, so that Adam's moments track the gradients of the frozen encoder. If they started from 0 after
    unfreezing, late in Adam's step count, its first updates would be up to six times too large.
    """
    def update(updates, state, params=None):
        frozen = state.count < frozen_steps

        def scaled(path, change, rate: float):
            change = change * rate
            return jnp.where(frozen, 0, change) if _name(path).startswith("atst/") else change

        updates = jax.tree_util.tree_map_with_path(scaled, updates, layer_rates(updates, decay))
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)


def schedule(config: OptimizerConfig, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then constant, or cosine decay to 0 at `total_steps`."""
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(total_steps - warmup_steps, 1))
    else:
        after = optax.constant_schedule(config.learning_rate)
    if not warmup_steps:
        return after
    # The first step must change the parameters: its rate is 1 / warmup_steps of the peak, not 0.
    warmup = optax.linear_schedule(config.learning_rate / warmup_steps, config.learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(config: OptimizerConfig, warmup_steps: int, total_steps: int,
                   frozen_steps: int = 0) -> optax.GradientTransformation:
    """Clipping by global norm, then optax.adamw with the decay rules, then scale_by_layer."""
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(optax.adamw(schedule(config, warmup_steps, total_steps), b1=config.beta1, b2=config.beta2,
                             weight_decay=config.weight_decay, mask=decay_mask))
    if config.layer_decay != 1 or frozen_steps:
        parts.append(scale_by_layer(config.layer_decay, frozen_steps))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _name(path) -> str:
    return "/".join(str(key.key) for key in path)
