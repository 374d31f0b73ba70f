"""Ranking of memories: their score with the query reasoner's encoding of a question."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from clara_jax.distributed import gather
from clara_jax.method.reranker import EXCLUDED, late_interaction, relevance_scores
from clara_jax.model.sharding import BATCH, put_batch

_PRODUCTS = 64  # questions' vectors whose products with the rows of a shard are held at a time
_relevance = jax.jit(relevance_scores, static_argnums=2)


def rank_memories(
    queries: Float[np.ndarray, "q M E"],
    candidates: Sequence[Float[np.ndarray, "_ M E"]],
    k: int,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    memory_count: str,
) -> tuple[Int[np.ndarray, "q ranks"], Float32[np.ndarray, "q ranks"]]:
    """Rank each question's candidates.

    Args:
      queries: encodings of questions, [q, M, E].
      candidates: of each question, memories [n, M, E] of the same dtype.
      k: the number of candidates to return; fewer where no question has so many.
      batch_size: questions per device call; the mesh divides it.
      mesh: the devices.
      memory_count: see `clara_jax.method.reranker.score_vectors`.

    Returns:
      int [q, k] into the question's candidates, best first, -1 where it has fewer; their float32 [q, k] scores, -inf
      where there is no candidate.
    """
    width = max(1, min(k, max((len(memories) for memories in candidates), default=1)))
    indices, scores = np.full((len(queries), width), -1), np.full((len(queries), width), -np.inf, np.float32)
    for start in range(0, len(queries), batch_size):
        batch = candidates[start : start + batch_size]
        block = _scores(queries[start : start + batch_size], batch, batch_size, mesh, memory_count)
        order = np.argsort(-block, axis=1, kind="stable")[:, :width]
        for row, picked in enumerate(order):
            picked = picked[: len(batch[row])]
            indices[start + row, : len(picked)] = picked
            scores[start + row, : len(picked)] = block[row, picked]
    return indices, scores


@partial(jax.jit, static_argnums=(4, 5))
def best_rows(
    queries: jax.Array, rows: jax.Array, norms: jax.Array, usable: jax.Array, k: int, mesh: jax.sharding.Mesh
) -> tuple[jax.Array, jax.Array]:
    """Return `late_interaction` float32 [Q, shards·k] and places int32 [Q, shards·k] of each shard's best rows.

    Args:
      queries: float32 [Q, S, X], see `clara_jax.method.reranker.score_vectors`.
      rows: [R, T, X], sharded over the batch axes.
      norms: of the rows' vectors, float32 [R, T], sharded likewise.
      usable: bool [R], sharded likewise; rows that are not get the score -inf.
      k: the number of rows of each shard.
      mesh: of the rows.
    """

    def best_of_shard(queries, rows, norms, usable):
        score = partial(late_interaction, documents=rows.astype(jnp.float32), norms=norms)
        at_once = max(1, _PRODUCTS // queries.shape[1])
        scores = jnp.where(usable, jax.lax.map(score, queries, batch_size=at_once), -jnp.inf)
        best, places = jax.lax.top_k(scores, k)
        return best, places + jax.lax.axis_index(BATCH) * len(rows)

    split = jax.P(BATCH)
    out = jax.P(None, BATCH)
    return jax.shard_map(best_of_shard, mesh=mesh, in_specs=(jax.P(), split, split, split), out_specs=(out, out))(
        queries, rows, norms, usable
    )


def norms_of(rows: Float[np.ndarray, "R T X"]) -> Float32[np.ndarray, "R T"]:
    """Return the norms of rows' vectors, as `best_rows` takes them."""
    return np.sqrt(np.einsum("RTX,RTX->RT", rows, rows, dtype=np.float32))


def trimmed(vectors: Float32[np.ndarray, "Q S X"]) -> Float32[np.ndarray, "Q used X"]:
    """Return a question's vectors without places that no question uses, but for a power of two of them: few shapes."""
    used = np.flatnonzero(vectors.any(axis=(0, 2)))
    return vectors[:, : 1 << int(used.max(initial=0)).bit_length()]


def _scores(
    queries: np.ndarray,
    candidates: Sequence[np.ndarray],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    memory_count: str,
) -> np.ndarray:
    """Return scores [q, D], far below any where a question has no such candidate."""
    width = _round_up(max(len(memories) for memories in candidates), 8)
    documents = np.zeros((batch_size, width, *queries.shape[1:]), queries.dtype)
    for row, memories in enumerate(candidates):
        documents[row, : len(memories)] = memories
    padded = np.zeros((batch_size, *queries.shape[1:]), queries.dtype)
    padded[: len(queries)] = queries
    with jax.set_mesh(mesh):
        scores = gather(_relevance(*put_batch((padded, documents), mesh), memory_count))[: len(queries)]
    valid = np.arange(width) < np.array([[len(memories)] for memories in candidates])
    return np.where(valid, scores, EXCLUDED)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
