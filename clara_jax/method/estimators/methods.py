"""Every soft choice by its name, and the top-k with any of them.

All methods rank the same documents in the same order. They differ in the soft matrix p [K, D] whose gradient replaces
that of the choice: Z = hard + p - stop_gradient(p). Row j of p belongs to rank j. With s the scores of the n documents
that exist, s_[j] the j-th largest and r_j its document, τ the temperature:

    iterative   p_j = softmax(s / τ + log(1 - taken_j + ε)), taken_j the documents of ranks before j, held constant
                (the paper's Algorithm 1)
    gumbel      the same with s / τ + Gumbel noise, where there is a key (Kool et al. 2019)
    softsort    p_j = softmax(-|s_[j] - s| / τ) (Prillo and Eisenschlos 2020)
    neuralsort  p_j = softmax(((n + 1 - 2j) s - Σ_b |s - s_b|) / τ) (Grover et al. 2019)
    sinkhorn    p_j = the column of rank j in the entropic transport plan softmax_y(s y / τ + v_y) from documents to
                ranks y (Xie et al. 2020)
    lapsum      p_j = q_{r_j} at r_j, where q_d = LaplaceCDF((s_d - b) / τ) and Σ_d q_d = K (Struski et al. 2025)

None of them loops over ranks or builds a matrix D x D.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, Key, ScalarLike

from clara_jax.method.estimators.lapsum import lapsum
from clara_jax.method.estimators.sorting import neuralsort, softsort
from clara_jax.method.estimators.transport import transport_plan
from clara_jax.method.topk import SoftChoice, iterative, straight_through, usable_scores
from clara_jax.model.sharding import Array

METHODS: dict[str, SoftChoice] = {
    "iterative": iterative,
    "gumbel": iterative,
    "softsort": softsort,
    "neuralsort": neuralsort,
    "sinkhorn": transport_plan,
    "lapsum": lapsum,
}


def select(
    scores: Float[Array, "B D"],
    k: int,
    method: str,
    temperature: ScalarLike,
    mask: Bool[Array, "_ _"] | None = None,
    key: Key[jax.Array, " B"] | None = None,
    hard: bool = True,
) -> tuple[Float32[jax.Array, "B K D"], Int32[jax.Array, "B K"]]:
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
    scores, mask = usable_scores(jnp.asarray(scores), k, mask)  # which also checks the mask's shape
    s = scores.astype(jnp.float32) / temperature
    if method == "gumbel" and key is not None:
        s += jax.vmap(lambda row_key: jax.random.gumbel(row_key, s.shape[1:]))(key)
    return straight_through(s, k, mask, METHODS[method], hard)
