"""The compressor: M last-layer states stand for a document (section 2.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clara_jax.method.clara import ClaraModel


class Encoded(NamedTuple):
    """What the compressor or the query reasoner makes of N texts; of N rows of S texts where rows hold several."""

    memory: jax.Array  # [N, M, E] or [N, S, M, E], the last-layer states at the memory tokens
    text_mean: jax.Array  # float32 [N, E] or [N, S, E], the mean of those at the text's tokens; 0 where there are none


def encode(
    model: ClaraModel,
    params: Any,
    role: str,
    ids: jax.Array,
    mask: jax.Array,
    keys: jax.Array | None = None,
    memory_at: jax.Array | None = None,
) -> Encoded:
    """Reads texts, each followed by the M memory tokens.

    Args:
      role: "compressor" for documents, "query_reasoner" for questions.
      ids: int32 [N, T], a text in each row, which the memory tokens end; or several, see ``memory_at``.
      mask: bool [N, T], attended positions, the memory tokens among them; of rows with several texts int32 [N, T], the
        number of the text, from 1, and 0 where nothing is attended.
      keys: PRNG keys [N], or [N, S], for dropout; None without.
      memory_at: int32 [N, S, M], where the memory tokens of each of a row's texts stand; -1 for an absent one.
    """
    x = model.embed(params, ids)
    states, _ = model.forward(params, role, x, mask, dropout=model.dropout(keys, mask))
    return read_states(states, mask, model.clara.memory_tokens, memory_at)


def read_states(states: jax.Array, mask: jax.Array, memory_tokens: int, memory_at: jax.Array | None = None) -> Encoded:
    """`Encoded` of the last-layer states [N, T, E]; ``mask`` and ``memory_at`` as for `encode`."""
    wide = states.astype(jnp.float32)
    if memory_at is None:
        text_mask = mask[:, :-memory_tokens, None]
        total = jnp.sum(jnp.where(text_mask, wide[:, :-memory_tokens], 0), axis=1)
        return Encoded(states[:, -memory_tokens:], total / jnp.maximum(jnp.sum(text_mask, axis=1), 1))
    count = memory_at.shape[1]
    at = jax.vmap(jnp.ravel)(memory_at)
    memory = jax.vmap(lambda own: own.reshape(*memory_at.shape[1:], -1))(
        jnp.take_along_axis(states, at[..., None], axis=1)
    )
    is_memory = jnp.any(at[..., None] == jnp.arange(mask.shape[1]), axis=1)
    member = (mask[..., None] == jnp.arange(1, count + 1)) & ~is_memory[..., None]  # [N, T, S]
    total = jnp.einsum("NTS,NTE->NSE", member.astype(jnp.float32), wide, precision="highest")
    return Encoded(memory, total / jnp.maximum(jnp.sum(member, axis=1), 1)[..., None])


def alignment_loss(encoded: Encoded, valid: jax.Array, reduction: str = "mean") -> jax.Array:
    """L_MSE of each document: the squared distance between the mean text state and the mean memory state (section 2.2).

    Args:
      valid: bool [N] or [N, S], which documents are present.
      reduction: over the E channels: "sum", the paper's squared norm, or "mean", as the released code computes it.

    Returns:
      float32, shaped as ``valid``; 0 where a document is absent.
    """
    squares = jnp.square(encoded.text_mean - jnp.mean(encoded.memory.astype(jnp.float32), axis=-2))
    distance = {"mean": jnp.mean, "sum": jnp.sum}[reduction](squares, axis=-1)
    return jnp.where(valid, distance, 0)
