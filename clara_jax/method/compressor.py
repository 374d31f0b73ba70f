"""The compressor: a document, or a question, becomes M memory vectors (section 2.2), and the loss that aligns them.

In the paper a memory is the last-layer state (after the final norm) at its memory token, and the memory tokens follow
the text. A model may have an affine map of the states in their place, and memory tokens within the text
(`clara_jax.method.memory_map`): for documents and questions, so that scores and the generator see mapped vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Key, ScalarLike

from clara_jax.input_pipeline.batches import Sequences
from clara_jax.method.clara import END, ClaraModel
from clara_jax.method.memory_map import map_memory, order_by_runs, pool_runs, text_membership
from clara_jax.model.sharding import Array, reshape_rows


class Encoded(NamedTuple):
    """Output of the compressor or the query reasoner for N rows of S texts (S = 1 where rows are not packed)."""

    memory: Float[jax.Array, "N S M E"]  # the memories; zero beyond a text's last
    text_mean: Float32[jax.Array, "N S E"]  # the mean state at the tokens of the framed text (<ENC>, bos, text, eos)
    memory_mean: Float32[jax.Array, "N S E"]  # the mean state at the memory tokens


def encode(
    model: ClaraModel,
    params: Any,
    role: str,
    texts: Sequences,
    keys: Key[jax.Array, "N S"] | None = None,
    scaffold: ScalarLike = 0.0,
) -> Encoded:
    """Encode texts, each followed by its memory tokens.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      role: "compressor" for documents, "query_reasoner" for questions.
      texts: N rows of S texts.
      keys: PRNG keys [N, S], for dropout; None without.
      scaffold: β, of models with a memory map. The Python number 0.0 leaves its computation out.
    """
    x, encoded = encode_before_map(model, params, role, texts, keys)
    if "map" not in params["tokens"]:
        return encoded
    pooled = None
    if not (isinstance(scaffold, float) and scaffold == 0):
        pooled = pool_runs(x, texts)
    memory = map_memory(params["tokens"]["map"], encoded.memory, pooled, scaffold)
    memory = jnp.where((texts.memory_positions >= 0)[..., None], memory, 0)
    return encoded._replace(memory=memory.astype(encoded.memory.dtype))


def encode_before_map(
    model: ClaraModel, params: Any, role: str, texts: Sequences, keys: Key[jax.Array, "N S"] | None
) -> tuple[Float[jax.Array, "N T E"], Encoded]:
    """Return the texts' embeddings [N, T, E] and their encoding before any memory map; arguments as of `encode`."""
    x, segment_ids = model.embed(params, texts.ids), texts.segment_ids
    if model.clara.memory_places == END:
        states, _ = model.forward(params, role, x, segment_ids, dropout=model.dropout(keys, segment_ids))
        return x, pool_states(states, texts)
    order = order_by_runs(texts)
    moved, moved_ids = jnp.take_along_axis(x, order[..., None], axis=1), jnp.take_along_axis(segment_ids, order, axis=1)
    states, _ = model.forward(params, role, moved, moved_ids, dropout=model.dropout(keys, moved_ids))
    return x, pool_states(jnp.take_along_axis(states, jnp.argsort(order, axis=1)[..., None], axis=1), texts)


def pool_states(states: Float[Array, "N T E"], texts: Sequences) -> Encoded:
    """Gather the last-layer states [N, T, E] at the memory tokens, and average those of text and memory tokens."""
    at = texts.memory_positions
    memory = jnp.take_along_axis(states, reshape_rows(at, -1)[..., None], axis=1)
    memory = jnp.where((at >= 0)[..., None], reshape_rows(memory, *at.shape[1:], states.shape[-1]), 0)
    member = text_membership(texts)
    total = jnp.einsum("NTS,NTE->NSE", member.astype(jnp.float32), states.astype(jnp.float32), precision="highest")
    text_mean = total / jnp.maximum(jnp.sum(member, axis=1), 1)[..., None]
    memory_mean = jnp.sum(memory.astype(jnp.float32), axis=-2) / jnp.maximum(jnp.sum(at >= 0, axis=-1), 1)[..., None]
    return Encoded(memory, text_mean, memory_mean)


def alignment_loss(encoded: Encoded, valid: Bool[Array, "B D"], reduction: str = "mean") -> Float32[jax.Array, "B D"]:
    """Return L_MSE of each document: squared distance between mean text state and mean memory state (section 2.2).

    Both are means of last-layer states, before any memory map; the text's are those of its framed tokens.

    Args:
      encoded: the documents' encodings, [B, D, ...] (`clara_jax.method.stages.encode_documents`).
      valid: bool [B, D], which documents are present.
      reduction: over the E channels: "sum", the paper's squared norm, or "mean", as the released code computes it.

    Returns:
      float32, shaped as ``valid``; 0 where a document is absent.
    """
    squares = jnp.square(encoded.text_mean - encoded.memory_mean)
    distance = {"mean": jnp.mean, "sum": jnp.sum}[reduction](squares, axis=-1)
    return jnp.where(valid, distance, 0)
