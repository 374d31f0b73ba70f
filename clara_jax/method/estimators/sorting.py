"""Relaxed sorting: SoftSort (Prillo and Eisenschlos 2020) and NeuralSort (Grover et al. 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32

from clara_jax.method.topk import masked_softmax


def softsort(
    s: Float32[jax.Array, " D"],
    indices: Int32[jax.Array, " K"],
    taken: Float32[jax.Array, "K D"],
    allowed: Bool[jax.Array, "K D"],
) -> Float32[jax.Array, "K D"]:
    """Return p_j = softmax(-|s_[j] - s|), s_[j] the j-th largest; arguments as of `SoftChoice`."""
    return masked_softmax(-jnp.abs(s[indices][:, None] - s), allowed)


def neuralsort(
    s: Float32[jax.Array, " D"],
    indices: Int32[jax.Array, " K"],
    taken: Float32[jax.Array, "K D"],
    allowed: Bool[jax.Array, "K D"],
) -> Float32[jax.Array, "K D"]:
    """Return p_j = softmax((n + 1 - 2j) s - Σ_b |s - s_b|) over n candidates; arguments as of `SoftChoice`."""
    mask = jnp.any(allowed, axis=0)
    n, ranks = jnp.sum(mask), 1 + jnp.arange(len(indices))
    # A constant added to all scores changes nothing but the size of the sums.
    s = jnp.where(mask, s - jax.lax.stop_gradient(jnp.sum(s) / jnp.maximum(n, 1)), 0)
    return masked_softmax((n + 1 - 2 * ranks)[:, None] * s - _distances(s, mask), allowed)


def _distances(s: Float32[jax.Array, " D"], mask: Bool[jax.Array, " D"]) -> Float32[jax.Array, " D"]:
    """Return Σ_b |s_d - s_b| over the candidates, [D], from sums along the order instead of all differences."""
    order = jnp.argsort(jnp.where(mask, -jax.lax.stop_gradient(s), jnp.inf))
    ordered, n = s[order], jnp.sum(mask)
    position = 1 + jnp.arange(len(s))
    up_to, total = jnp.cumsum(ordered), jnp.sum(ordered)
    above, below = up_to - position * ordered, (n - position) * ordered - (total - up_to)
    return jnp.where(mask, (above + below)[jnp.argsort(order)], 0)
