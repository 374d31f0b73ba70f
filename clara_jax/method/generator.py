"""The generator: memories take the place of text in its prompt (section 2.2, 3)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.input_pipeline.batches import PromptBatch
from clara_jax.method.clara import ClaraModel
from clara_jax.model.lora import Dropout
from clara_jax.model.sharding import Array, reshape_rows


def splice(model: ClaraModel, params: Any, ids: Array, memory_index: Array, memories: Array | None) -> jax.Array:
    """Return prompt embeddings with memories in place: T = [I; M_1; ...; M_k] (section 2.2).

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      ids: int32 [B, T].
      memory_index: int32 [B, T], which of the row's memory vectors stands at a position, -1 for text.
      memories: [B, K, M, E], in rank order; None where all is text.

    Returns:
      [B, T, E]. Where memories stand, the embeddings of the memory tokens are not used.
    """
    x = model.embed(params, ids)
    if memories is None:
        return x
    vectors = reshape_rows(memories, -1, memories.shape[-1]).astype(x.dtype)
    placed = jnp.take_along_axis(vectors, jnp.maximum(memory_index, 0)[..., None], axis=1)
    return jnp.where((memory_index >= 0)[..., None], placed, x)


def target_states(
    model: ClaraModel,
    params: Any,
    prompt: PromptBatch,
    memories: Array | None,
    segment_ids: Array | None = None,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Return the generator's last-layer states that predict the targets: at the positions before the labels'.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      prompt: prompts with their targets.
      memories: [B, K, M, E] or None, as of `splice`.
      segment_ids: int32 [B, T], in place of the prompts', where some of their tokens are not to be attended.
      dropout: for the adapter's inputs, in training.

    Returns:
      [B, A, E].
    """
    x = splice(model, params, prompt.ids, prompt.memory_index, memories)
    segment_ids = prompt.segment_ids if segment_ids is None else segment_ids
    states, _ = model.forward(params, "generator", x, segment_ids, dropout=dropout)
    return jnp.take_along_axis(states, jnp.maximum(prompt.label_positions - 1, 0)[..., None], axis=1)
