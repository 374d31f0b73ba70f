"""AdamW with warm-up, as the paper trains every stage (Table 10), assembled from Optax.

The optimizer is given the trained subtrees alone, so it has neither state nor zero gradients for what is frozen.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from clara_jax.training.stage_config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Return the schedule of the learning rate, by the step counted from 0.

    With W = ``config.warmup_steps(total_steps)``: a line from peak / (W + 1) at step 0, so that the first batch is not
    wasted on a rate of zero, to the peak at step W; then the schedule, whose cosine ends at ``total_steps``.
    """
    peak, warmup = config.learning_rate, config.warmup_steps(total_steps)
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, total_steps - warmup)
        case _:  # "cosine_with_minimum"
            after = optax.cosine_decay_schedule(peak, total_steps - warmup, alpha=config.minimum_ratio)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup])


def decays(params: Any) -> Any:
    """Return a tree of bools like ``params``: True where weight decay applies.

    It applies to all but vectors, biases and norm scales.

    Layers are stacked, so a norm's scale is a matrix [L, E] by shape: names tell them apart.
    """

    def decay(path: tuple, leaf: Any) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return jnp.ndim(leaf) >= 2 and not {"scale", "bias"}.intersection(names)

    return jax.tree_util.tree_map_with_path(decay, params)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Make the optimizer: clipping by global norm, then AdamW on the schedule; moments and updates are float32.

    Parameters may be bfloat16 (a base that is trained too): gradients are widened before the norm is taken, and
    `optax.apply_updates` rounds the sum to the parameter's dtype.
    """
    b1, b2 = config.betas
    return _in_float32(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.adamw(
                learning_rate_schedule(config, total_steps),
                b1=b1,
                b2=b2,
                eps=config.eps,
                weight_decay=config.weight_decay,
                mask=decays,
            ),
        )
    )


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wrap ``inner`` to compute on float32 copies of gradients and parameters, whatever they are stored in."""

    def wide(tree: Any) -> Any:
        return None if tree is None else jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(wide(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return inner.update(wide(updates), state, wide(params))

    return optax.GradientTransformation(init, update)
