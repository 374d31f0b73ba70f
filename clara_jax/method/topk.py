"""The straight-through top-k (Algorithm 1): hard choices forward, soft gradients backward."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from clara_jax.method.reranker import EXCLUDED

EPSILON = 1e-8  # inside the logarithm that discourages documents already taken


def straight_through_topk(
    scores: jax.Array, k: int, temperature: float, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Selects the k best candidates of each row, one per rank.

    The paper's loop takes the best of what is left, k times. Which documents are left at rank j is known at once from
    the hard order, so all ranks are one batched softmax: p_j = softmax(s / τ + log(1 - taken_j + ε)), with taken_j the
    one-hots of ranks before j, held constant. Z = hard + p - stop_gradient(p).

    Args:
      scores: float32 [B, D].
      k: at most D.
      temperature: τ.
      valid: bool [B, D], which candidates exist; absent ones rank last and get no gradient.

    Returns:
      Z float32 [B, K, D], whose value is exactly one-hot, and the indices int32 [B, K], best first (the lowest index
      first among equals).
    """
    scaled = scores / max(temperature, 1e-6)
    if valid is not None:
        scaled = jnp.where(valid, scaled, EXCLUDED)
    _, indices = jax.lax.top_k(jax.lax.stop_gradient(scaled), k)
    hard = (indices[..., None] == jnp.arange(scores.shape[-1], dtype=indices.dtype)).astype(scores.dtype)
    taken = jnp.cumsum(hard, axis=1) - hard
    # log(1 - taken + ε) is 0 or log ε. Written out as it stands, XLA would join 1 and ε, lose ε, and take log 0.
    soft = jax.nn.softmax(scaled[:, None, :] + math.log(EPSILON) * taken, axis=-1)
    return hard + (soft - jax.lax.stop_gradient(soft)), indices
