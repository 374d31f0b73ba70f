"""The memory map and its scaffold, which are not the paper's: an affine image of last-layer states as memories.

In the paper a memory is the last-layer state h_j at its memory token. A model with a *memory map* (`ClaraConfig.
memory_map` "affine", absent by default) has an affine image of that state in its place, for documents and questions
alike, and may be trained with a *scaffold* that is removed during training:

    m_j = s ⊙ (h_j - c) + b + β (pool_j - b)

pool_j is the mean input embedding of the j-th of m even runs of the text's tokens (token p of n belongs to run
p m // n), m its number of memories; s, c and b [E] are trained. A stage lets β fall from 1 to 0
(`clara_jax.training.stage_config.ObjectiveConfig`); in use β is 0. docs/reading.md has what it is for, measured.

With `ClaraConfig.memory_places` "runs" each memory token follows its run instead of the whole text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, ScalarLike

from clara_jax.input_pipeline.batches import Sequences
from clara_jax.model.sharding import Array, reshape_rows
from clara_jax.model.transformer import positions_of


def map_memory(
    parameters: Mapping[str, Float[Array, " E"]],
    states: Float[Array, "... M E"],
    pooled: tuple[Float[Array, "... M E"], Bool[Array, "... M 1"]] | None = None,
    scaffold: ScalarLike = 0.0,
) -> Float32[jax.Array, "... M E"]:
    """Compute m_j = s ⊙ (h_j - c) + b + β (pool_j - b), in float32.

    Args:
      parameters: the memory map: "scale" s, "center" c, "shift" b, float32 [E].
      states: h, the last-layer states at the memory tokens, [..., M, E].
      pooled: result of `pool_runs` for the same texts; None without a scaffold. An empty run adds nothing.
      scaffold: β.
    """
    scale, center, shift = (jnp.asarray(parameters[name]) for name in ("scale", "center", "shift"))
    memory = scale * (jnp.asarray(states, jnp.float32) - center) + shift
    if pooled is None:
        return memory
    pool, found = pooled
    return memory + scaffold * jnp.where(found, pool - shift, 0)


def pool_runs(
    x: Float[Array, "N T E"], texts: Sequences
) -> tuple[Float32[jax.Array, "N S M E"], Bool[jax.Array, "N S M 1"]]:
    """Return the mean input embedding of each of the even runs of a text's tokens, one for each of its memories.

    Args:
      x: embeddings [N, T, E] of texts and memory tokens.
      texts: N rows of S texts.

    Returns:
      float32 [N, S, M, E]; and whether a run holds a token, bool [N, S, M, 1].
    """
    shape = texts.memory_positions.shape[1:]
    run, text = runs(texts)
    belongs = text[..., None] & (run[..., None] == jnp.arange(math.prod(shape)))  # [N, T, S · M]
    total = jnp.einsum("NTP,NTE->NPE", belongs.astype(jnp.float32), x.astype(jnp.float32), precision="highest")
    count = jnp.sum(belongs, axis=1)[..., None]
    return reshape_rows(total / jnp.maximum(count, 1), *shape, -1), reshape_rows(count > 0, *shape, 1)


def runs(texts: Sequences) -> tuple[Int32[jax.Array, "N T"], Bool[jax.Array, "N T"]]:
    """Return the run of each of a text's tokens: of n tokens, token p belongs to run p m // n with m memories.

    Returns:
      int32 [N, T], counted through all texts of a row: run j of text s is s M + j; and which tokens are a text's, and
      neither memory tokens nor padding, bool [N, T].
    """
    memory_tokens, member = texts.memory_positions.shape[-1], text_membership(texts)
    sequence = jnp.maximum(texts.segment_ids - 1, 0)
    length = jnp.take_along_axis(jnp.sum(member, axis=1), sequence, axis=1)
    memories = jnp.take_along_axis(jnp.sum(texts.memory_positions >= 0, axis=2), sequence, axis=1)
    # A text's tokens come first in their sequence: their positions count from 0.
    within = positions_of(texts.segment_ids) * memories // jnp.maximum(length, 1)
    return sequence * memory_tokens + within, jnp.any(member, axis=-1)


def order_by_runs(texts: Sequences) -> Int32[jax.Array, "N T"]:
    """Return the order in which each memory token follows its run: int32 [N, T], the position each token comes from.

    Padding comes last.
    """
    run, text = runs(texts)
    at, length = reshape_rows(texts.memory_positions, -1), texts.ids.shape[1]
    stands = (at[..., None] == jnp.arange(length)) & (texts.segment_ids != 0)[:, None]  # [N, S · M, T]
    number, memory = jnp.argmax(stands, axis=1), jnp.any(stands, axis=1)
    key = jnp.where(text, 2 * run, jnp.where(memory, 2 * number + 1, 2 * length * at.shape[1]))
    return jnp.argsort(key, axis=1, stable=True)


def calibrated_map(
    states: Float[Array, "N S M E"],
    pooled: tuple[Float[Array, "N S M E"], Bool[Array, "N S M 1"]],
    valid: Bool[Array, "N S"],
    strength: float,
) -> dict[str, Float32[jax.Array, " E"]]:
    """Return initial values of a memory map, with which memories have the mean and spread of pooled input embeddings.

    Args:
      states: [N, S, M, E], last-layer states at memory tokens.
      pooled: of the same texts, see `pool_runs`.
      valid: bool [N, S], which texts exist.
      strength: s is this share of the ratio of the two spreads, channel by channel: small with a scaffold, 1 without.

    Returns:
      the map's leaves, float32 [E]: the mean of the states as its center, the mean of the pooled embeddings as its
      shift.
    """
    pool, found = pooled
    counted = found & valid[..., None, None]

    def mean_and_spread(x: Array) -> tuple[jax.Array, jax.Array]:
        count = jnp.maximum(jnp.sum(counted), 1)
        mean = jnp.sum(jnp.where(counted, x, 0), axis=(0, 1, 2)) / count
        variance = jnp.sum(jnp.where(counted, jnp.square(x - mean), 0), axis=(0, 1, 2)) / count
        return mean, jnp.sqrt(variance)

    center, spread = mean_and_spread(jnp.asarray(states, jnp.float32))
    shift, target = mean_and_spread(pool)
    return {"scale": strength * target / jnp.maximum(spread, 1e-6), "center": center, "shift": shift}


def text_membership(texts: Sequences) -> Bool[jax.Array, "N T S"]:
    """Return which token belongs to which of a row's texts, memory tokens to none; bool [N, T, S].

    A text's tokens are those of its frame, too: <ENC>, bos and eos.
    """
    places, numbers = jnp.arange(texts.ids.shape[1]), jnp.arange(1, texts.memory_positions.shape[1] + 1)
    is_memory = jnp.any(reshape_rows(texts.memory_positions, -1)[..., None] == places, axis=1)
    return (texts.segment_ids[..., None] == numbers) & ~is_memory[..., None]
