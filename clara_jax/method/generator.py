"""The generator: memories take the place of text in its prompt, and the answer's tokens are its loss (sections 2.2, 3).

    L_CE = -Σ_t log p(a_t | I, M_1, ..., M_k, a_<t)

over the tokens a_t of the target, with the instruction I and k documents' memories. The paper gives the sum of one
example; a batch is averaged over its labelled tokens (the released code), or over the means of its records.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int32, Key

from clara_jax.input_pipeline.batches import PromptBatch
from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.memory_count import FIXED, existing
from clara_jax.method.clara import ClaraModel
from clara_jax.method.cross_entropy import language_model_loss
from clara_jax.model.lora import Dropout
from clara_jax.model.sharding import Array, reshape_rows

CE_OVER = (TOKENS, RECORDS) = ("tokens", "records")


def answer_terms(
    model: ClaraModel,
    params: Any,
    prompt: PromptBatch,
    memories: Float[Array, "B K M E"] | None,
    keys: Key[jax.Array, "B S"] | None = None,
    ce_over: str = TOKENS,
) -> dict[str, Float32[jax.Array, ""]]:
    """Return L_CE of the prompts' targets given the memories, as sums over the batch: float32 [].

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      prompt: prompts with their targets.
      memories: [B, K, M, E], in rank order; None where all is text.
      keys: PRNG keys [B, S], for dropout; None without.
      ce_over: "tokens" counts each label alike; "records" each record, by `label_weights`.

    Returns:
      "ce", the sum of the (weighted) losses; "accuracy", the number of labels that have the largest logit where all
      earlier ones are given.
    """
    segment_ids = attended(model, prompt, memories)
    states = target_states(model, params, prompt, memories, segment_ids, model.dropout(keys, segment_ids))
    weights = label_weights(prompt) if ce_over == RECORDS else None
    ce, correct = language_model_loss(model, params, states, prompt.labels, weights)
    return {"ce": ce, "accuracy": correct}


def attended(model: ClaraModel, prompt: PromptBatch, memories: Float[Array, "B K M E"] | None) -> Int32[Array, "B T"]:
    """Return the prompts' segment ids without the places of memories that a document does not have: int32 [B, T].

    A prompt has M places for each document. Where a text has fewer memories, in proportion to its length, nothing
    attends to the places of the others, and no position counts them, as if the prompt had none.
    """
    if memories is None or model.clara.memory_count == FIXED:
        return prompt.segment_ids
    exist = reshape_rows(existing(memories, model.clara.memory_count), -1)
    absent = (prompt.memory_index >= 0) & ~jnp.take_along_axis(exist, jnp.maximum(prompt.memory_index, 0), axis=1)
    return jnp.where(absent, 0, prompt.segment_ids)


def label_weights(prompt: PromptBatch) -> Float32[jax.Array, "B A"]:
    """Return weights float32 [B, A]: one over the number of labels of the label's record, 0 where there is no label.

    Their sum is the number of records that have labels, and a weighted sum over labels is a sum over records of their
    means.
    """
    labelled = prompt.labels != IGNORED
    record = jnp.take_along_axis(prompt.segment_ids, prompt.label_positions, axis=1)
    number = jnp.sum((record[:, :, None] == record[:, None, :]) & labelled[:, None, :], axis=-1)
    return labelled / jnp.maximum(number, 1).astype(jnp.float32)


def splice(
    model: ClaraModel,
    params: Any,
    ids: Int32[Array, "B T"],
    memory_index: Int32[Array, "B T"],
    memories: Float[Array, "B K M E"] | None,
) -> Float[jax.Array, "B T E"]:
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
    memories: Float[Array, "B K M E"] | None,
    segment_ids: Int32[Array, "B T"] | None = None,
    dropout: Dropout | None = None,
) -> Float[jax.Array, "B A E"]:
    """Return the generator's last-layer states that predict the targets: at the positions before the labels'.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      prompt: prompts with their targets.
      memories: [B, K, M, E] or None, as of `splice`.
      segment_ids: int32 [B, T], in place of the prompts', where some of their tokens are not to be attended; default
        `attended`.
      dropout: for the adapter's inputs, in training.

    Returns:
      [B, A, E].
    """
    x = splice(model, params, prompt.ids, prompt.memory_index, memories)
    segment_ids = attended(model, prompt, memories) if segment_ids is None else segment_ids
    states, _ = model.forward(params, "generator", x, segment_ids, dropout=dropout)
    return jnp.take_along_axis(states, jnp.maximum(prompt.label_positions - 1, 0)[..., None], axis=1)
