"""The compressor: M last-layer states stand for a document (section 2.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clara_jax.method.clara import ClaraModel


class Encoded(NamedTuple):
    """What the compressor or the query reasoner makes of N texts."""

    memory: jax.Array  # [N, M, E], the last-layer states at the memory tokens
    states: jax.Array  # [N, T, E], all last-layer states


def encode(
    model: ClaraModel, params: Any, role: str, ids: jax.Array, mask: jax.Array, keys: jax.Array | None = None
) -> Encoded:
    """Reads texts that end with the M memory tokens.

    Args:
      role: "compressor" for documents, "query_reasoner" for questions.
      ids: int32 [N, T].
      mask: bool [N, T], attended positions, the memory tokens among them.
      keys: PRNG keys [N] for dropout, None without.
    """
    x = model.embed(params, ids)
    states, _ = model.forward(params, role, x, mask, dropout=model.dropout(keys, mask))
    return Encoded(states[:, -model.clara.memory_tokens :], states)


def alignment_loss(encoded: Encoded, mask: jax.Array, reduction: str = "mean") -> jax.Array:
    """L_MSE of each document: the squared distance between the mean text state and the mean memory state (section 2.2).

    Args:
      mask: bool [N, T], as given to `encode`.
      reduction: over the E channels: "sum", the paper's squared norm, or "mean", as the released code computes it.

    Returns:
      float32 [N]; 0 where a document is absent.
    """
    states, memory = encoded.states.astype(jnp.float32), encoded.memory.astype(jnp.float32)
    length = memory.shape[1]
    text, text_mask = states[:, :-length], mask[:, :-length, None]
    count = jnp.sum(text_mask, axis=1)
    text_mean = jnp.sum(jnp.where(text_mask, text, 0), axis=1) / jnp.maximum(count, 1)
    squares = jnp.square(text_mean - jnp.mean(memory, axis=1))
    distance = {"mean": jnp.mean, "sum": jnp.sum}[reduction](squares, axis=-1)
    return jnp.where(count[:, 0] > 0, distance, 0)
