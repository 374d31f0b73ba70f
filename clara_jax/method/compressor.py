"""The compressor: a document becomes M memory vectors (section 2.2).

In the paper a memory is the last-layer state h_j at its memory token. A model with a *memory map* (`ClaraConfig.
memory_map` "affine", absent by default) gives the generator an affine image of that state, and may be trained with a
*scaffold* that is removed during training:

    m_j = s ⊙ (h_j - c) + b + β (pool_j - b)

pool_j is the mean input embedding of the j-th of M even runs of the document's tokens (token p of n belongs to run
p M // n); s, c and b [E] are trained. A stage lets β fall from 1 to 0 (`ObjectiveConfig.scaffold`); in use β is 0.
A small model does not learn to use last-layer states by itself, but it can use pooled embeddings at once, and continues
to do so while the states replace them (docs/reading.md).

In the paper the memory tokens follow the text. With `ClaraConfig.memory_places` "runs" each follows its run: a single
memory token for all places then finds what it has to summarise in its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clara_jax.method.clara import END, ClaraModel
from clara_jax.model.sharding import Array, reshape_rows
from clara_jax.model.transformer import positions_of


class Encoded(NamedTuple):
    """Output of the compressor or the query reasoner for N texts, or for N rows of S texts where rows are packed."""

    memory: jax.Array  # [N, M, E] or [N, S, M, E], the memories
    text_mean: jax.Array  # float32 [N, E] or [N, S, E], the mean last-layer state at the text's tokens; 0 without any
    memory_mean: jax.Array  # float32, of the same shape, the mean last-layer state at the memory tokens


def encode(
    model: ClaraModel,
    params: Any,
    role: str,
    ids: Array,
    mask: Array,
    keys: jax.Array | None = None,
    memory_at: Array | None = None,
    scaffold: float | jax.Array = 0.0,
) -> Encoded:
    """Encode texts, each followed by the M memory tokens.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      role: "compressor" for documents, "query_reasoner" for questions.
      ids: int32 [N, T], a text in each row, with the memory tokens at its end; or several, see ``memory_at``.
      mask: bool [N, T], attended positions, the memory tokens among them; of rows with several texts int32 [N, T], the
        number of the text, from 1, and 0 where nothing is attended.
      keys: PRNG keys [N], or [N, S], for dropout; None without.
      memory_at: int32 [N, S, M], positions of the memory tokens of each of a row's texts; -1 for an absent one.
      scaffold: β, of models with a memory map. The Python number 0.0 leaves its computation out.
    """
    x, encoded = read(model, params, role, ids, mask, keys, memory_at)
    if "map" not in params["tokens"]:
        return encoded
    pooled = None
    if not (isinstance(scaffold, float) and scaffold == 0):
        pooled = pool_runs(x, mask, model.clara.memory_tokens, memory_at)
    memory = map_memory(params["tokens"]["map"], encoded.memory, pooled, scaffold)
    return encoded._replace(memory=memory.astype(encoded.memory.dtype))


def read(
    model: ClaraModel,
    params: Any,
    role: str,
    ids: Array,
    mask: Array,
    keys: jax.Array | None,
    memory_at: Array | None,
) -> tuple[jax.Array, Encoded]:
    """Return the texts' embeddings [N, T, E] and their encoding before any memory map; arguments as of `encode`."""
    x, count = model.embed(params, ids), model.clara.memory_tokens
    if model.clara.memory_places == END:
        states, _ = model.forward(params, role, x, mask, dropout=model.dropout(keys, mask))
        return x, read_states(states, mask, count, memory_at)
    order = order_by_runs(mask, count, memory_at)
    moved, moved_mask = jnp.take_along_axis(x, order[..., None], axis=1), jnp.take_along_axis(mask, order, axis=1)
    states, _ = model.forward(params, role, moved, moved_mask, dropout=model.dropout(keys, moved_mask))
    states = jnp.take_along_axis(states, jnp.argsort(order, axis=1)[..., None], axis=1)
    return x, read_states(states, mask, count, memory_at)


def read_states(states: jax.Array, mask: Array, memory_tokens: int, memory_at: Array | None = None) -> Encoded:
    """Return memories and means of last-layer states [N, T, E]; ``mask`` and ``memory_at`` as of `encode`."""
    wide = states.astype(jnp.float32)
    if memory_at is None:
        text_mask = mask[:, :-memory_tokens, None]
        total = jnp.sum(jnp.where(text_mask, wide[:, :-memory_tokens], 0), axis=1)
        text_mean = total / jnp.maximum(jnp.sum(text_mask, axis=1), 1)
        memory = states[:, -memory_tokens:]
    else:
        at = reshape_rows(memory_at, -1)
        memory = jnp.take_along_axis(states, at[..., None], axis=1)
        memory = reshape_rows(memory, *memory_at.shape[1:], states.shape[-1])
        member = _members(mask, memory_at)
        total = jnp.einsum("NTS,NTE->NSE", member.astype(jnp.float32), wide, precision="highest")
        text_mean = total / jnp.maximum(jnp.sum(member, axis=1), 1)[..., None]
    return Encoded(memory, text_mean, jnp.mean(memory.astype(jnp.float32), axis=-2))


def map_memory(
    parameters: Mapping[str, jax.Array],
    states: jax.Array,
    pooled: tuple[jax.Array, jax.Array] | None = None,
    scaffold: float | jax.Array = 0.0,
) -> jax.Array:
    """Compute m_j = s ⊙ (h_j - c) + b + β (pool_j - b), in float32.

    Args:
      parameters: the memory map: "scale" s, "center" c, "shift" b, float32 [E].
      states: h, the last-layer states at the memory tokens, [..., M, E].
      pooled: result of `pool_runs` for the same texts; None without a scaffold. An empty run adds nothing.
      scaffold: β.
    """
    scale, center, shift = (parameters[name] for name in ("scale", "center", "shift"))
    memory = scale * (states.astype(jnp.float32) - center) + shift
    if pooled is None:
        return memory
    pool, found = pooled
    return memory + scaffold * jnp.where(found, pool - shift, 0)


def pool_runs(
    x: jax.Array, mask: Array, memory_tokens: int, memory_at: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the mean input embedding of each of the M even runs of a text's tokens.

    Args:
      x: embeddings [N, T, E] of texts and memory tokens.
      mask: as of `encode`.
      memory_tokens: M.
      memory_at: as of `encode`.

    Returns:
      float32 [N, M, E], or [N, S, M, E]; and whether a run holds a token, bool [N, M, 1] or [N, S, M, 1].
    """
    shape = (memory_tokens,) if memory_at is None else memory_at.shape[1:]
    run, text = runs(mask, memory_tokens, memory_at)
    belongs = text[..., None] & (run[..., None] == jnp.arange(math.prod(shape)))  # [N, T, S · M]
    total = jnp.einsum("NTP,NTE->NPE", belongs.astype(jnp.float32), x.astype(jnp.float32), precision="highest")
    count = jnp.sum(belongs, axis=1)[..., None]
    pooled, found = total / jnp.maximum(count, 1), count > 0
    return (pooled, found) if memory_at is None else (reshape_rows(pooled, *shape, -1), reshape_rows(found, *shape, 1))


def runs(mask: Array, memory_tokens: int, memory_at: Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Return the run of each of a text's tokens: of n tokens, token p belongs to run p M // n.

    Args:
      mask: as of `encode`.
      memory_tokens: M.
      memory_at: as of `encode`.

    Returns:
      int32 [N, T], counted through all texts of a row: run j of text s is s M + j; and which tokens are a text's, and
      neither memory tokens nor padding, bool [N, T].
    """
    # A text's tokens come first in their sequence: their positions count from 0.
    places = positions_of(mask)
    if memory_at is None:
        text = jnp.logical_and(mask, jnp.arange(mask.shape[1]) < mask.shape[1] - memory_tokens)
        length, sequence = jnp.sum(text, axis=1, keepdims=True), 0
    else:
        member = _members(mask, memory_at)
        text = jnp.any(member, axis=-1)
        sequence = jnp.maximum(mask - 1, 0)
        length = jnp.take_along_axis(jnp.sum(member, axis=1), sequence, axis=1)
    return sequence * memory_tokens + places * memory_tokens // jnp.maximum(length, 1), text


def order_by_runs(mask: Array, memory_tokens: int, memory_at: Array | None = None) -> jax.Array:
    """Return the order in which each memory token follows its run: int32 [N, T], the position each token comes from.

    Padding comes last.

    Args:
      mask: as of `encode`.
      memory_tokens: M.
      memory_at: as of `encode`.
    """
    run, text = runs(mask, memory_tokens, memory_at)
    length = mask.shape[1]
    if memory_at is None:
        number = jnp.arange(length) - (length - memory_tokens)  # of memory tokens, which end the row
        memory = mask & (number >= 0)
    else:
        at = reshape_rows(memory_at, -1)
        stands = (at[..., None] == jnp.arange(length)) & (at >= 0)[..., None]  # [N, S · M, T]
        number, memory = jnp.argmax(stands, axis=1), jnp.any(stands, axis=1)
    key = jnp.where(text, 2 * run, jnp.where(memory, 2 * number + 1, 2 * length * memory_tokens))
    return jnp.argsort(key, axis=1, stable=True)


def calibrated_map(
    states: jax.Array, pooled: tuple[jax.Array, jax.Array], valid: Array, strength: float
) -> dict[str, jax.Array]:
    """Return initial values of a memory map, with which memories have the mean and spread of pooled input embeddings.

    Args:
      states: [N, M, E], last-layer states at memory tokens.
      pooled: of the same texts, see `pool_runs`.
      valid: bool [N], which texts exist.
      strength: s is this share of the ratio of the two spreads, channel by channel: small with a scaffold, 1 without.

    Returns:
      the map's leaves, float32 [E]: the mean of the states as its center, the mean of the pooled embeddings as its
      shift.
    """
    pool, found = pooled
    counted = found & valid[:, None, None]

    def mean_and_spread(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        count = jnp.maximum(jnp.sum(counted), 1)
        mean = jnp.sum(jnp.where(counted, x, 0), axis=(0, 1)) / count
        variance = jnp.sum(jnp.where(counted, jnp.square(x - mean), 0), axis=(0, 1)) / count
        return mean, jnp.sqrt(variance)

    center, spread = mean_and_spread(states.astype(jnp.float32))
    shift, target = mean_and_spread(pool)
    return {"scale": strength * target / jnp.maximum(spread, 1e-6), "center": center, "shift": shift}


def alignment_loss(encoded: Encoded, valid: Array, reduction: str = "mean") -> jax.Array:
    """Return L_MSE of each document: squared distance between mean text state and mean memory state (section 2.2).

    Both are means of last-layer states, before any memory map.

    Args:
      encoded: the documents' encodings.
      valid: bool [N] or [N, S], which documents are present.
      reduction: over the E channels: "sum", the paper's squared norm, or "mean", as the released code computes it.

    Returns:
      float32, shaped as ``valid``; 0 where a document is absent.
    """
    squares = jnp.square(encoded.text_mean - encoded.memory_mean)
    distance = {"mean": jnp.mean, "sum": jnp.sum}[reduction](squares, axis=-1)
    return jnp.where(valid, distance, 0)


def _members(mask: Array, memory_at: Array) -> jax.Array:
    """Return which token belongs to which of a row's texts, memory tokens to none; bool [N, T, S]."""
    at = reshape_rows(memory_at, -1)
    is_memory = jnp.any(at[..., None] == jnp.arange(mask.shape[1]), axis=1)
    return (mask[..., None] == jnp.arange(1, memory_at.shape[1] + 1)) & ~is_memory[..., None]
