"""The temperature of the ranking: constant, on a schedule, or trained."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from clara_jax.training.config import StageConfig

# Of a stage that trains its temperature: as a logarithm, so that it stays positive and moves by ratios.
LOG_TEMPERATURE = "ranking/log_temperature"


def temperature_schedule(stage: StageConfig, total_steps: int) -> Callable[[jax.Array], jax.Array] | None:
    """Step, from 0 -> τ, float32 []; None where it does not change on a schedule."""
    match stage.temperature_schedule:
        case "constant":
            return None
        case "cosine":
            ratio = stage.temperature_end / stage.temperature
            return optax.cosine_decay_schedule(stage.temperature, max(1, total_steps - 1), alpha=ratio)
        case "steps":
            values = jnp.asarray((stage.temperature, *stage.temperature_values), jnp.float32)
            steps = jnp.asarray(stage.temperature_steps, jnp.int32)
            return lambda step: values[jnp.sum(step >= steps)]
