"""LapSum's soft mask of the k best (Struski et al. 2025): LaplaceCDF(s - b) with the b for which it sums to k."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32


def lapsum(
    s: Float32[jax.Array, " D"],
    indices: Int32[jax.Array, " K"],
    taken: Float32[jax.Array, "K D"],
    allowed: Bool[jax.Array, "K D"],
) -> Float32[jax.Array, "K D"]:
    """Return p [K, D], the soft mask at each rank's document; arguments as of `clara_jax.method.topk.SoftChoice`."""
    return taken * laplace_mask(s, jnp.any(allowed, axis=0), len(indices))


def laplace_mask(s: Float32[jax.Array, " D"], mask: Bool[jax.Array, " D"], k: int) -> Float32[jax.Array, " D"]:
    """Return q = LaplaceCDF(s - b) of the candidates [D]: it sums to k, or to their number where they are fewer."""
    fixed, n = jax.lax.stop_gradient(s), jnp.sum(mask)
    b = _border(fixed, mask, jnp.minimum(k, n - 0.5))

    def of(b: jax.Array, s: jax.Array) -> jax.Array:
        x = s - b
        return jnp.where(mask, jnp.where(x > 0, 1 - jnp.exp(-jnp.abs(x)) / 2, jnp.exp(-jnp.abs(x)) / 2), 0)

    # A Newton step of which only the numerator is differentiated has the gradient of the implicit function.
    density = jnp.sum(jnp.where(mask, jnp.exp(-jnp.abs(fixed - b)) / 2, 0))
    b = b + (jnp.sum(of(b, s)) - jnp.minimum(k, n - 0.5)) / jnp.maximum(density, 1e-30)
    # Where all candidates are selected, each has the weight 1.
    return jnp.where(n <= k, mask.astype(s.dtype), of(b, s))


def _border(s: Float32[jax.Array, " D"], mask: Bool[jax.Array, " D"], k: jax.Array) -> Float32[jax.Array, ""]:
    """Return b in closed form.

    Between the q-th and the next score, Σ LaplaceCDF is q - U e^b / 2 + V e^-b / 2, with U the sum of e^-s over the q
    above and V that of e^s over those below; set to k, that is a quadratic equation in e^b. Sums are kept as
    logarithms: e^s itself may be out of range.
    """
    order = jnp.argsort(jnp.where(mask, -s, jnp.inf))
    t, exists = s[order], mask[order]
    above = jax.lax.cumlogsumexp(jnp.where(exists, -t, -jnp.inf))
    below = jax.lax.cumlogsumexp(jnp.where(exists, t, -jnp.inf), reverse=True)
    below = jnp.pad(below[1:], (0, 1), constant_values=-jnp.inf)  # of those after the q-th
    position = 1 + jnp.arange(len(s))
    at_score = position - jnp.exp(above + t) / 2 + jnp.exp(below - t) / 2  # the sum where b is the q-th score
    q = jnp.sum(exists & (at_score <= k))
    log_u = jnp.where(q > 0, above[jnp.maximum(q - 1, 0)], -jnp.inf)
    log_v = jnp.where(q > 0, below[jnp.maximum(q - 1, 0)], jax.nn.logsumexp(jnp.where(exists, t, -jnp.inf)))
    # z = e^b from U z² + 2 (k - q) z - V = 0, in the one of its two forms that subtracts nothing.
    half = k - q
    product = (log_u + log_v) / 2
    root = jnp.hypot(half, jnp.exp(jnp.minimum(product, 80.0)))
    return jnp.where(half >= 0, log_v - jnp.log(jnp.maximum(half + root, 1e-30)), jnp.log(root - half) - log_u)
