"""The scores of documents for a question (section 3), and the contrastive loss of a stage of the released code."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, ScalarLike

from clara_jax.memory_count import FIXED
from clara_jax.model.sharding import Array

# Finite, so that a row without any candidate gives no NaN; far below any score / temperature.
EXCLUDED = -1e9


def score_vectors(memories: Any, memory_count: str) -> Any:
    """Return the vectors [..., S, X] of memories [..., M, E] that the score of a question and a document compares.

    With a "fixed" number of memories all of them one after another are one vector, as in the paper: S = 1, X = M E.
    Memories in "proportional" number do not stand at the same places of different texts and are compared each with
    each: S = M, X = E.
    """
    if memory_count == FIXED:
        *shape, count, width = memories.shape
        return memories.reshape(*shape, count * width)[..., None, :]
    return memories


def relevance_scores(
    query: Float[Array, "B M E"], documents: Float[Array, "B D M E"], memory_count: str
) -> Float32[jax.Array, "B D"]:
    """Return s_i of a question's documents (section 3), in float32.

    With a "fixed" number of memories this is the paper's cosine of memories one after another, s_i = cos(q, M_i). Its
    Jacobians are JAX's derivatives of these lines, none is written by hand: ∂s_i/∂q = M_i / (‖q‖ ‖M_i‖) -
    s_i q / ‖q‖², and the same with q and M_i exchanged (A.16). In "proportional" number it is `late_interaction` of
    single memories.

    Args:
      query: [B, M, E].
      documents: [B, D, M, E].
      memory_count: see `score_vectors`.

    Returns:
      float32 [B, D].
    """
    query, documents = (score_vectors(x, memory_count).astype(jnp.float32) for x in (query, documents))
    return late_interaction(query, documents, _norm(documents))


def late_interaction(
    query: Float32[Array, "*#B S X"], documents: Float32[Array, "*#B D T X"], norms: Float32[Array, "*#B D T"]
) -> Float32[jax.Array, "*#B D"]:
    """Return the mean over a question's vectors of the largest cosine with one of a document's.

    This is the score of Khattab and Zaharia (2020, section 3.3) over the number of the question's vectors. Where both
    have one vector it is their cosine.

    Args:
      query: [..., S, X]; vectors that do not exist are zero.
      documents: [..., D, T, X]; likewise.
      norms: of the documents' vectors, [..., D, T].

    Returns:
      float32 [..., D]; 0 where a question or a document has no vector.
    """
    lengths, norms = _norm(query)[..., None, None, :], norms[..., None]
    # In this order the larger operand, a store, is read as it lies.
    products = jnp.einsum("...DTX,...SX->...DTS", documents, query, precision="highest")
    cosines = products / jnp.maximum(norms * lengths, 1e-8)
    largest = jnp.max(jnp.where(norms > 0, cosines, -2), axis=-2)
    asked = jnp.any(norms > 0, axis=-2) & (lengths[..., 0, :] > 0)
    return jnp.sum(jnp.where(asked, largest, 0), axis=-1) / jnp.maximum(jnp.sum(asked, axis=-1), 1)


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
    # What does not exist is zero: keep the root's gradient finite there.
    squares = jnp.sum(x * x, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
