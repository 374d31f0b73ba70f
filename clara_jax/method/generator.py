"""The generator: memories take the place of text in its prompt (section 2.2, 3)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.method.clara import ClaraModel
from clara_jax.model.sharding import reshape_rows


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
    vectors = reshape_rows(memories, -1, memories.shape[-1]).astype(x.dtype)
    placed = jnp.take_along_axis(vectors, jnp.maximum(memory_index, 0)[..., None], axis=1)
    return jnp.where((memory_index >= 0)[..., None], placed, x)
