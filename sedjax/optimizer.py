"""AdamW with a schedule, and decay rules that must cover every parameter."""

import re

import jax
import optax

from sedjax.config import OptimizerConfig

# The first pattern that matches a parameter's path says whether it decays (SPEC section 4: no biases, no norms).
DECAY_RULES = (
    (r"(^|/)(bias|scale)$", False),
    (r"(^|/)(kernel|positions)$", True),
)


def decay_mask(params, rules=DECAY_RULES):
    """Which parameters decay, as a tree of bool. Raises ValueError for a parameter that no rule matches."""
    def decays(path, _) -> bool:
        name = "/".join(str(key.key) for key in path)
        for pattern, decay in rules:
            if re.search(pattern, name):
                return decay
        raise ValueError(f"No decay rule matches the parameter {name!r}: add one to DECAY_RULES.")

    return jax.tree_util.tree_map_with_path(decays, params)


def schedule(config: OptimizerConfig, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear rise from 0, then constant, or a cosine to 0 at `total_steps`."""
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(total_steps - warmup_steps, 1))
    else:
        after = optax.constant_schedule(config.learning_rate)
    if not warmup_steps:
        return after
    # The first step must move: its rate is 1 / warmup_steps of the highest, not 0.
    rise = optax.linear_schedule(config.learning_rate / warmup_steps, config.learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [warmup_steps])


def make_optimizer(config: OptimizerConfig, warmup_steps: int, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, as optax.adamw defines it, with the decay rules."""
    adamw = optax.adamw(schedule(config, warmup_steps, total_steps), b1=config.beta1, b2=config.beta2,
                        weight_decay=config.weight_decay, mask=decay_mask)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
