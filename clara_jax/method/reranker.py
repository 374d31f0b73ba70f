"""The scores of documents for a question (section 3), and the contrastive loss of a stage of the released code."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, ScalarLike

from clara_jax.memory_count import FIXED
from clara_jax.model.sharding import Array

# Finite, so that a row without any candidate gives no NaN; far below any score / temperature.
EXCLUDED = -1e9


def score_vectors(memories: Any, memory_count: str) -> Any:
    """Return the vectors [..., X] of memories [..., M, E] whose cosine is the score of a question and a document.

    With a "fixed" number of memories these are all of them one after another, as in the paper: X = M E. Memories in
    "proportional" number do not stand at the same places of different texts: their sum, which has the direction of
    their mean, X = E.
    """
    if memory_count == FIXED:
        return memories.reshape(*memories.shape[:-2], -1)
    return memories.astype(np.float32).sum(axis=-2)


def cosine_scores(
    query: Float[Array, "B M E"], documents: Float[Array, "B D M E"], memory_count: str = FIXED
) -> Float32[jax.Array, "B D"]:
    """Return s_i = cos(q, M_i) of `score_vectors` (equation of s_i in section 3), in float32.

    Its Jacobians are JAX's derivatives of these lines, none is written by hand: ∂s_i/∂q = M_i / (‖q‖ ‖M_i‖) -
    s_i q / ‖q‖², and the same with q and M_i exchanged (A.16).

    Args:
      query: [B, M, E].
      documents: [B, D, M, E].
      memory_count: see `score_vectors`.

    Returns:
      float32 [B, D].
    """
    query, documents = (score_vectors(x, memory_count).astype(jnp.float32) for x in (query, documents))
    dot = jnp.einsum("BX,BDX->BD", query, documents, precision="highest")
    norms = _norm(query)[:, None] * _norm(documents)
    return cosine(dot, norms)


def cosine(products: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return inner products over the products of both vectors' lengths, of equal shapes; 0 where a vector is 0."""
    return products / jnp.maximum(lengths, 1e-8)


def contrastive_loss(
    scores: Float[Array, "B D"], positives: Bool[Array, "B D"], valid: Bool[Array, "B D"], temperature: ScalarLike
) -> Float32[jax.Array, " B"]:
    """Return -(logsumexp over the positives - logsumexp over all candidates) of s / τ, per row.

    Args:
      scores: float32 [B, D].
      positives: bool [B, D], the gold documents.
      valid: bool [B, D], the candidates that exist.
      temperature: τ.

    Returns:
      float32 [B]; 0 for a row without a positive.
    """
    logits = jnp.where(valid, scores / temperature, EXCLUDED)
    gold = jax.nn.logsumexp(jnp.where(positives, logits, EXCLUDED), axis=-1)
    return jnp.where(jnp.any(positives & valid, axis=-1), jax.nn.logsumexp(logits, axis=-1) - gold, 0)


def _norm(x: Array) -> jax.Array:
    # An absent document may be all zero: keep the root's gradient finite there.
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), 1e-24))
