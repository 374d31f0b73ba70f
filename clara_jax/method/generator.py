"""The generator: memories take the place of text in its prompt; its loss is the language model's (section 2.2, 3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.data.tokenization import IGNORED
from clara_jax.method.clara import ClaraModel

CHUNK = 128  # target positions whose logits exist at one time


def splice(model: ClaraModel, params: Any, ids: jax.Array, memory_index: jax.Array, memories: jax.Array) -> jax.Array:
    """Prompt embeddings with memories in place: T = [I; M_1; ...; M_k] (section 2.2).

    Args:
      ids: int32 [B, T].
      memory_index: int32 [B, T], which of the row's memory vectors stands at a position, -1 for text.
      memories: [B, K, M, E], in rank order.

    Returns:
      [B, T, E]. The embeddings of the memory tokens themselves are not used where memories stand.
    """
    x = model.embed(params, ids)
    vectors = jax.vmap(lambda own: own.reshape(-1, own.shape[-1]))(memories).astype(x.dtype)
    placed = jnp.take_along_axis(vectors, jnp.maximum(memory_index, 0)[..., None], axis=1)
    return jnp.where((memory_index >= 0)[..., None], placed, x)


def language_model_loss(
    model: ClaraModel, params: Any, states: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of the targets: -Σ_t log p(a_t | I, M, a_<t), summed over all labelled tokens (L_CE).

    Args:
      states: [B, A, E], the generator's last-layer states at the positions before the labels'.
      labels: int32 [B, A], `IGNORED` where there is no loss.

    Returns:
      the sum, float32 [], and the number of labelled tokens that the greedy choice gets right, float32 [].
    """
    targets = labels.shape[1]
    loss = correct = jnp.float32(0)
    for start in range(0, targets, CHUNK):
        stop = min(start + CHUNK, targets)
        # The logits of a chunk are made again in the backward pass: a [B, A, V] float32 array would outweigh the model.
        chunk = jax.checkpoint(partial(_chunk_loss, model))
        chunk_loss, chunk_correct = chunk(params, states[:, start:stop], labels[:, start:stop])
        loss, correct = loss + chunk_loss, correct + chunk_correct
    return loss, correct


def _chunk_loss(model: ClaraModel, params: Any, states: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    base, added = model.logits(params, states)
    parts = [(base, 0)] + ([(added, model.config.vocab_size)] if added is not None else [])
    normalizer = jax.nn.logsumexp(jnp.stack([jax.nn.logsumexp(part, axis=-1) for part, _ in parts]), axis=0)
    # A sum over "is this the label" instead of a gather: each device looks only at its own slice of the vocabulary.
    picked = sum(
        jnp.sum(jnp.where(labels[..., None] == offset + jnp.arange(part.shape[-1]), part, 0), axis=-1)
        for part, offset in parts
    )
    best = jnp.max(jnp.stack([jnp.max(part, axis=-1) for part, _ in parts]), axis=0)
    counted = labels != IGNORED
    return jnp.sum(jnp.where(counted, normalizer - picked, 0)), jnp.sum(counted & (picked >= best), dtype=jnp.float32)
