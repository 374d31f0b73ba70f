"""The two paths of the gradient from the loss of an answer to the scores (appendix A).

With p(y|x) = Σ_d p(d|x) p(y|x, d) and L = -log p(y|x),

    ∂L/∂s_d = -1/p(y|x) { p(d|x) [p(y|x, d) - p(y|x)] / τ      (I) the probability path
                          + Σ_j p(j|x) ∂p(y|x, j)/∂s_d }       (II) the representation path

(I) is the gradient of `clara_jax.method.appendix.marginal.marginal_loss`. In (II) a shared representation
r = Σ_d π_d z_d, π = softmax(s / τ), has ∂r/∂s_d = π_d (z_d - r) / τ; separate ones have none. What is measured is what
training uses in its place: the gradient of the answer's likelihood given all selected memories together, through the
straight-through estimator. Scores are those that the temperature divides, normalized where the stage normalizes them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from clara_jax.input_pipeline.batches import Batch
from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.method.clara import ClaraModel
from clara_jax.method.generator import TOKENS
from clara_jax.method.stages import (
    Objective,
    Terms,
    answer_from_best,
    normalize,
    rank_documents,
    selected_marginal_loss,
)


def score_gradients(
    model: ClaraModel, params: Any, batch: Batch, objective: Objective
) -> tuple[Float32[jax.Array, "B D"], Float32[jax.Array, "B D"]]:
    """Return ∂L/∂s of each question through (I) and through (II), without dropout; L sums over the answer's tokens.

    Besides the ranking this costs a forward and a backward pass of the generator, and ``top_k`` forward passes.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      batch: of end_to_end.
      objective: numbers of the loss.

    Returns:
      float32 [B, D] each; (I) is zero for documents that are not selected, both are for absent ones.
    """
    objective = dataclasses.replace(objective, ce_over=TOKENS)  # both paths of a sum over the answer's tokens
    scores, documents, _ = rank_documents(model, params, batch, None)
    scores = jax.lax.stop_gradient(normalize(scores, batch.document_valid, objective.score_normalization))

    def represented(scores: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        terms, selected, indices = answer_from_best(model, params, batch, objective, scores, documents, None)
        return terms["ce"], (selected, indices)

    representation, (selected, indices) = jax.grad(represented, has_aux=True)(scores)

    def probable(scores: jax.Array) -> jax.Array:
        return jnp.sum(selected_marginal_loss(model, params, batch, objective, scores, selected, indices))

    return jax.grad(probable)(scores), representation


def gradient_terms(model: ClaraModel, params: Any, batch: Batch, objective: Objective) -> tuple[Terms, Terms]:
    """Return sums over the questions of a batch, and the number of questions in each sum.

    The terms are "gradient_probability" and "gradient_representation", the norms of (I) and (II) over a question's
    candidates, and "gradient_cosine" between the two, over those questions where neither is zero.
    """
    paths = score_gradients(model, params, batch, objective)
    labelled = jnp.any(batch.prompt.labels != IGNORED, axis=-1)
    asked = (batch.example_ids[:, 0] >= 0) & jnp.any(batch.document_valid, axis=-1) & labelled
    first, second = (jnp.linalg.norm(path, axis=-1) for path in paths)
    both = asked & (first > 0) & (second > 0)
    directions = (path / jnp.where(both, norm, 1)[:, None] for path, norm in zip(paths, (first, second), strict=True))
    found = {
        "gradient_probability": (first, asked),
        "gradient_representation": (second, asked),
        "gradient_cosine": (jnp.vecdot(*directions), both),
    }
    sums = {name: jnp.sum(jnp.where(over, values, 0)) for name, (values, over) in found.items()}
    return sums, {name: jnp.sum(over, dtype=jnp.float32) for name, (_, over) in found.items()}
