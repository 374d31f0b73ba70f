"""Schedules of the loss's numbers: the temperature of the ranking, the scaffold of the memories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clara_jax.training.stage_config import ObjectiveConfig, StageConfig, TopKConfig

# Of a stage that trains its temperature: as a logarithm, so that it stays positive and moves by ratios.
LOG_TEMPERATURE = "ranking/log_temperature"

Schedule = Callable[[jax.Array | int], Any]  # step, from 0 -> float32 [], as of `optax.Schedule`


def schedules(stage: StageConfig, total_steps: int) -> Mapping[str, Schedule]:
    """Return the schedules of the numbers of the stage's `Objective` that change, by name."""
    found = {"temperature": _temperature(stage.topk, total_steps), "scaffold": _scaffold(stage.objective, total_steps)}
    return {name: schedule for name, schedule in found.items() if schedule is not None}


def scaffold_at(objective: ObjectiveConfig, total_steps: int, step: int) -> float:
    """Return β before a step; ``step = total_steps`` is the stage's end."""
    schedule = _scaffold(objective, total_steps)
    return objective.scaffold if schedule is None else float(schedule(step))


def _temperature(topk: TopKConfig, total_steps: int) -> Schedule | None:
    match topk.temperature_schedule:
        case "constant":
            return None
        case "cosine":
            assert topk.temperature_end is not None  # `TopKConfig` checks that a cosine has one
            ratio = topk.temperature_end / topk.temperature
            return optax.cosine_decay_schedule(topk.temperature, max(1, total_steps - 1), alpha=ratio)
        case _:  # "steps"
            values = jnp.asarray((topk.temperature, *topk.temperature_values), jnp.float32)
            steps = jnp.asarray(topk.temperature_steps, jnp.int32)
            return lambda step: values[jnp.sum(step >= steps)]


def _scaffold(objective: ObjectiveConfig, total_steps: int) -> Schedule | None:
    if objective.scaffold_end is None:
        return None
    begin, end, steps = objective.scaffold, objective.scaffold_end, objective.scaffold_steps or total_steps
    if objective.scaffold_schedule == "linear":
        return optax.linear_schedule(begin, end, steps)
    # Optax's cosine schedule starts from a number above 0 alone.
    return lambda step: end + (begin - end) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step, steps) / steps))
