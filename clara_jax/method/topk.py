"""The differentiable top-k: hard choices forward, soft gradients backward (Algorithm 1, and alternatives to it).

Every method ranks the same documents in the same order. They differ in the soft matrix p [K, D] whose gradient
replaces that of the choice: Z = hard + p - stop_gradient(p). Row j of p belongs to rank j. With s the scores of the n
documents that exist, s_[j] the j-th largest and r_j its document, τ the temperature:

    iterative   p_j = softmax(s / τ + log(1 - taken_j + ε)), taken_j the documents of ranks before j, held constant
                (the paper's Algorithm 1)
    gumbel      the same with s / τ + Gumbel noise, where there is a key (Kool et al. 2019)
    softsort    p_j = softmax(-|s_[j] - s| / τ) (Prillo and Eisenschlos 2020)
    neuralsort  p_j = softmax(((n + 1 - 2j) s - Σ_b |s - s_b|) / τ) (Grover et al. 2019)
    sinkhorn    p_j = the column of rank j in the entropic transport plan from documents to ranks (Xie et al. 2020)
    lapsum      p_j = q_{r_j} at r_j, where q_d = LaplaceCDF((s_d - b) / τ) and Σ_d q_d = K (Struski et al. 2025)

None of them loops over ranks or builds a matrix D x D. docs/topk.md compares the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from clara_jax.method.lapsum import laplace_mask
from clara_jax.method.transport import masked_softmax, transport_plan
from clara_jax.model.sharding import Array

DEGENERATE = ("nan_scores", "too_few")
EPSILON = 1e-8  # ε, inside the logarithm that excludes documents of earlier ranks


def select(
    scores: jax.Array,
    k: int,
    method: str,
    temperature: float | jax.Array,
    mask: Array | None = None,
    key: jax.Array | None = None,
    hard: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Select the k best candidates of each row, one per rank; differentiable in the scores and the temperature.

    Args:
      scores: [B, D] of any dtype, cast to float32. A NaN counts as absent.
      k: ranks.
      method: one of `METHODS`.
      temperature: τ, above 0, in the unit of the scores.
      mask: bool [B, D], which candidates exist. Absent ones rank last, have no weight and get no gradient. A rank for
        which none is left has no weight at all.
      key: a PRNG key for each row, [B], for the noise of "gumbel"; the other methods ignore it.
      hard: return the straight-through weights, whose values are zeros and ones; False: p itself.

    Returns:
      Z float32 [B, K, D], K = min(k, D), and the indices int32 [B, K], best first (the lowest index first among
      equals).

    Raises:
      ValueError: an unknown method, no ranks or candidates, shapes that do not match.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} must be one of {', '.join(METHODS)}")
    scores, mask = _checked(scores, k, mask)
    s = scores.astype(jnp.float32) / temperature
    if method == "gumbel" and key is not None:
        s += jax.vmap(lambda row_key: jax.random.gumbel(row_key, s.shape[1:]))(key)
    s = jnp.where(mask, s, 0)  # absent scores may be infinite, and must not reach a sum even times zero
    _, indices = jax.lax.top_k(jax.lax.stop_gradient(jnp.where(mask, s, -jnp.inf)), min(k, s.shape[1]))
    chosen = indices[..., None] == jnp.arange(s.shape[1], dtype=indices.dtype)  # [B, K, D]
    allowed = mask[:, None, :] & jnp.any(chosen & mask[:, None, :], axis=-1, keepdims=True)
    taken = (chosen & allowed).astype(s.dtype)
    soft = jax.vmap(METHODS[method])(s, indices, taken, allowed)
    return (taken + (soft - jax.lax.stop_gradient(soft)) if hard else soft), indices


def lapsum_mask(scores: jax.Array, k: int, temperature: float | jax.Array, mask: Array | None = None) -> jax.Array:
    """Return LapSum's soft mask of the k best documents, whatever their rank; arguments as of `select`.

    Returns:
      q float32 [B, D]; a row sums to k, or to the number of its candidates where they are fewer.
    """
    scores, mask = _checked(scores, k, mask)
    s = jnp.where(mask, scores.astype(jnp.float32) / temperature, 0)
    return jax.vmap(laplace_mask, (0, 0, None))(s, mask, k)


def degenerate(scores: jax.Array, k: int, mask: Array | None = None) -> dict[str, jax.Array]:
    """Return the rows that `select` cannot rank properly, bool [B] by reason.

    "nan_scores": rows with a NaN among the scores of their candidates; "too_few": rows with fewer candidates than
    ranks, or none.
    """
    exists = jnp.ones_like(scores, bool) if mask is None else mask
    _, usable = _checked(scores, k, mask)
    return {"nan_scores": jnp.any(exists & ~usable, axis=-1), "too_few": jnp.sum(usable, axis=-1) < k}


def _checked(scores: jax.Array, k: int, mask: Array | None) -> tuple[jax.Array, jax.Array]:
    """Return the scores with zeros for NaNs, and which candidates are left."""
    if k < 1 or scores.ndim != 2 or scores.shape[1] < 1:
        raise ValueError(f"k is {k}, scores are {scores.shape}: there must be a rank, and scores [B, D] of candidates")
    if mask is not None and mask.shape != scores.shape:
        raise ValueError(f"the mask is {mask.shape}; it must have the shape of the scores, {scores.shape}")
    usable = ~jnp.isnan(scores)
    return jnp.where(usable, scores, 0), usable if mask is None else usable & mask


# The methods, for one row: s [D], divided by τ and 0 for absent documents; indices [K] in order; taken [K, D], the hard
# choice; allowed [K, D], false where the document or the rank does not exist -> p [K, D].


def _iterative(s: jax.Array, indices: jax.Array, taken: jax.Array, allowed: jax.Array) -> jax.Array:
    # The hard order tells which documents are left at each rank: the paper's loop becomes one batched softmax. The
    # logarithm is 0 or log ε; written as in the formula, XLA would fold 1 and ε, lose ε, and take log 0.
    before = jnp.cumsum(taken, axis=0) - taken
    return masked_softmax(s + math.log(EPSILON) * before, allowed)


def _softsort(s: jax.Array, indices: jax.Array, taken: jax.Array, allowed: jax.Array) -> jax.Array:
    return masked_softmax(-jnp.abs(s[indices][:, None] - s), allowed)


def _neuralsort(s: jax.Array, indices: jax.Array, taken: jax.Array, allowed: jax.Array) -> jax.Array:
    mask = jnp.any(allowed, axis=0)
    n, ranks = jnp.sum(mask), 1 + jnp.arange(len(indices))
    # A constant added to all scores changes nothing but the size of the sums.
    s = jnp.where(mask, s - jax.lax.stop_gradient(jnp.sum(s) / jnp.maximum(n, 1)), 0)
    return masked_softmax((n + 1 - 2 * ranks)[:, None] * s - _distances(s, mask), allowed)


def _distances(s: jax.Array, mask: jax.Array) -> jax.Array:
    """Return Σ_b |s_d - s_b| over the candidates, [D], from sums along the order instead of all differences."""
    order = jnp.argsort(jnp.where(mask, -jax.lax.stop_gradient(s), jnp.inf))
    ordered, n = s[order], jnp.sum(mask)
    position = 1 + jnp.arange(len(s))
    up_to, total = jnp.cumsum(ordered), jnp.sum(ordered)
    above, below = up_to - position * ordered, (n - position) * ordered - (total - up_to)
    return jnp.where(mask, (above + below)[jnp.argsort(order)], 0)


def _lapsum(s: jax.Array, indices: jax.Array, taken: jax.Array, allowed: jax.Array) -> jax.Array:
    return taken * laplace_mask(s, jnp.any(allowed, axis=0), len(indices))


METHODS: dict[str, Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "iterative": _iterative,
    "gumbel": _iterative,
    "softsort": _softsort,
    "neuralsort": _neuralsort,
    "sinkhorn": transport_plan,
    "lapsum": _lapsum,
}
