"""The probability path of the gradient, which the straight-through estimator drops (appendix A).

With p(d|x) over the selected documents, p(y|x) = Σ_d p(d|x) p(y|x, d), and of L = -log p(y|x)

    ∂L/∂s_d = -p(d|x) [p(y|x, d) - p(y|x)] / (τ p(y|x))

The score of a document rises in proportion to how much more likely it makes the answer than the mixture does. The
likelihoods p(y|x, d) are constants here: the generator learns from L_CE alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, ScalarLike

from clara_jax.input_pipeline.batches import PromptBatch
from clara_jax.method.clara import ClaraModel
from clara_jax.method.cross_entropy import target_log_likelihoods
from clara_jax.method.generator import attended, target_states
from clara_jax.model.sharding import Array


def marginal_loss(
    scores: Float32[Array, "B K"],
    valid: Bool[Array, "B K"],
    log_likelihoods: Float[Array, "B K"],
    temperature: ScalarLike,
) -> Float32[jax.Array, " B"]:
    """Return -log Σ_d p(d|x) p(y|x, d), p(d|x) = softmax(s / τ) over the selected documents (appendix A).

    Args:
      scores: float32 [B, K], of the selected documents.
      valid: bool [B, K].
      log_likelihoods: float32 [B, K], log p(y|x, d); no gradient flows into them.
      temperature: τ.

    Returns:
      float32 [B]; 0 for a row without documents.
    """
    prior = jax.nn.log_softmax(jnp.where(valid, scores / temperature, -1e30), axis=-1)
    joint = jnp.where(valid, prior + jax.lax.stop_gradient(log_likelihoods), -1e30)
    return jnp.where(jnp.any(valid, axis=-1), -jax.nn.logsumexp(joint, axis=-1), 0)


def document_log_likelihoods(
    model: ClaraModel, params: Any, prompt: PromptBatch, memories: Float[jax.Array, "B K M E"]
) -> Float32[jax.Array, "B K"]:
    """Return log p(y|x, d) given each selected document alone: the others' memories are masked in the prompt.

    It takes K forward passes of the generator, one after the other, without dropout and without a backward pass: each
    costs a third of the generator's part of a step, and the peak memory is that of one.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      prompt: rows of one prompt each.
      memories: [B, K, M, E].

    Returns:
      float32 [B, K], constants.
    """
    params, memories = jax.lax.stop_gradient((params, memories))
    _, ranks, tokens, _ = memories.shape
    rank = jnp.where(prompt.memory_index < 0, -1, prompt.memory_index // tokens)
    known = attended(model, prompt, memories)

    def given_only(j: jax.Array) -> jax.Array:
        segment_ids = jnp.where((rank < 0) | (rank == j), known, 0)
        states = target_states(model, params, prompt, memories, segment_ids)
        return target_log_likelihoods(model, params, states, prompt.labels)

    return jax.lax.map(given_only, jnp.arange(ranks)).T
