"""The straight-through top-k (Algorithm 1): hard choices forward, soft gradients backward.

`algorithm_1` is the paper's loop over ranks. Training runs the same numbers without a loop: the hard order, which is
known from the scores alone, tells which documents are left at each rank, so that all ranks are one batched softmax
(`iterative`, in `straight_through`). `clara_jax.method.estimators` has other soft choices for the same place.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, ScalarLike

from clara_jax.model.sharding import Array

DEGENERATE = ("nan_scores", "too_few")
# ε, inside the logarithm that excludes documents of earlier ranks. They keep a weight: where one leads the others by
# more than -τ log ε = 18.4 τ, the p of later ranks lie on it.
EPSILON = 1e-8


@runtime_checkable
class SoftChoice(Protocol):
    """The soft choice of one row, whose gradient replaces that of the hard one."""

    def __call__(
        self,
        s: Float32[jax.Array, " D"],
        indices: Int32[jax.Array, " K"],
        taken: Float32[jax.Array, "K D"],
        allowed: Bool[jax.Array, "K D"],
    ) -> Float32[jax.Array, "K D"]:
        """Return p, a row for each rank; zeros where nothing is allowed.

        Args:
          s: scores over temperature, 0 for absent documents.
          indices: the chosen documents, best first.
          taken: the hard choice, a row for each rank.
          allowed: False where the document or the rank does not exist.
        """
        ...


def algorithm_1(scores: Float[jax.Array, " D"], k: int, temperature: ScalarLike) -> Float32[jax.Array, "K D"]:
    """Return Z of Algorithm 1 as printed, for one row of scores [D], all of which exist: float32 [K, D].

    It is here to be read and to be compared with; `straight_through` computes the same.
    """
    s = scores.astype(jnp.float32) / jnp.maximum(temperature, 1e-6)
    taken, rows = jnp.zeros_like(s), []
    for _ in range(min(k, len(s))):
        hard = jax.nn.one_hot(jnp.argmax(jnp.where(taken > 0, -jnp.inf, s)), len(s))
        p = jax.nn.softmax(s + jnp.log(1 - jax.lax.stop_gradient(taken) + EPSILON))
        rows.append(hard + p - jax.lax.stop_gradient(p))
        taken = jnp.minimum(taken + hard, 1)
    return jnp.stack(rows)


def iterative(
    s: Float32[jax.Array, " D"],
    indices: Int32[jax.Array, " K"],
    taken: Float32[jax.Array, "K D"],
    allowed: Bool[jax.Array, "K D"],
) -> Float32[jax.Array, "K D"]:
    """Return the p_j of Algorithm 1, all ranks at once; a `SoftChoice`."""
    # The logarithm is 0 or log ε; written as in the formula, XLA would fold 1 and ε, lose ε, and take log 0.
    before = jnp.cumsum(taken, axis=0) - taken
    return masked_softmax(s + math.log(EPSILON) * before, allowed)


def straight_through(
    s: Float32[jax.Array, "B D"],
    k: int,
    mask: Bool[Array, "B D"],
    soft_choice: SoftChoice = iterative,
    hard: bool = True,
) -> tuple[Float32[jax.Array, "B K D"], Int32[jax.Array, "B K"]]:
    """Return Z = hard + p - stop_gradient(p) for the k best of each row.

    Args:
      s: float32 [B, D], scores over temperature.
      k: ranks.
      mask: bool [B, D], which candidates exist.
      soft_choice: makes p of a row.
      hard: False returns p itself.

    Returns:
      float32 [B, K, D], K = min(k, D), and the indices int32 [B, K], best first (the lowest index first among equals).
    """
    mask = jnp.asarray(mask)
    s = jnp.where(mask, s, 0)  # absent scores may be infinite, and must not reach a sum even times zero
    _, indices = jax.lax.top_k(jax.lax.stop_gradient(jnp.where(mask, s, -jnp.inf)), min(k, s.shape[1]))
    chosen = indices[..., None] == jnp.arange(s.shape[1], dtype=indices.dtype)  # [B, K, D]
    allowed = mask[:, None, :] & jnp.any(chosen & mask[:, None, :], axis=-1, keepdims=True)
    taken = (chosen & allowed).astype(s.dtype)
    p = jax.vmap(soft_choice)(s, indices, taken, allowed)
    return (taken + (p - jax.lax.stop_gradient(p)) if hard else p), indices


def masked_softmax(
    logits: Float32[jax.Array, "*rows D"], allowed: Bool[jax.Array, "*rows D"]
) -> Float32[jax.Array, "*rows D"]:
    """Return the softmax over the allowed entries of the last axis; zeros where none is allowed."""
    top = jnp.max(jnp.where(allowed, logits, -jnp.inf), axis=-1, keepdims=True)
    shifted = jnp.where(allowed, logits - jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0)), 0)
    weights = jnp.where(allowed, jnp.exp(shifted), 0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)


def usable_scores(scores: jax.Array, k: int, mask: Array | None) -> tuple[jax.Array, jax.Array]:
    """Return scores [B, D] with zeros for NaNs, and which candidates are left, bool [B, D].

    Raises:
      ValueError: no ranks or candidates, shapes that do not match.
    """
    if k < 1 or scores.ndim != 2 or scores.shape[1] < 1:
        raise ValueError(f"k is {k}, scores are {scores.shape}: there must be a rank, and scores [B, D] of candidates")
    if mask is not None and mask.shape != scores.shape:
        raise ValueError(f"the mask is {mask.shape}; it must have the shape of the scores, {scores.shape}")
    usable = ~jnp.isnan(scores)
    return jnp.where(usable, scores, 0), usable if mask is None else usable & mask


def degenerate(scores: jax.Array, k: int, mask: Array | None = None) -> dict[str, jax.Array]:
    """Return the rows that cannot be ranked properly, bool [B] by reason.

    "nan_scores": rows with a NaN among the scores of their candidates; "too_few": rows with fewer candidates than
    ranks, or none.
    """
    exists = jnp.ones_like(scores, bool) if mask is None else mask
    _, usable = usable_scores(scores, k, mask)
    return {"nan_scores": jnp.any(exists & ~usable, axis=-1), "too_few": jnp.sum(usable, axis=-1) < k}
