"""Keys and values of tokens that were processed before.

The model reads them and returns those of its new tokens; storing them between two calls is left to the caller.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int32

from clara_jax.model.config import ModelConfig
from clara_jax.model.sharding import BATCH, spec


@flax.struct.dataclass
class KVCache:
    """Keys and values of all layers: the first ``lengths`` slots of a row are valid, in order; the rest is never read.

    Attributes:
      k, v: [L, B, G, S, C]. Heads stand before slots, so that scores of a head are one matrix product.
      lengths: int32 [B].
    """

    k: jax.Array
    v: jax.Array
    lengths: jax.Array

    @property
    def slots(self) -> int:
        """Slots of a row, S."""
        return self.k.shape[3]

    def put(self, new: KVCache, at: Int32[jax.Array, " B"]) -> KVCache:
        """Return a cache with all slots of ``new`` written from slot ``at`` of each row on.

        Args:
          new: its lengths are added to ``at``.
          at: int32 [B]; at + new.slots <= slots, or what is written moves to the front.
        """

        def write(old: jax.Array, update: jax.Array) -> jax.Array:
            each = jax.vmap(lambda x, y, slot: jax.lax.dynamic_update_slice(x, y, (0, 0, slot, 0)), (1, 1, 0), 1)
            return each(old, update.astype(old.dtype), at)

        return KVCache(write(self.k, new.k), write(self.v, new.v), at + new.lengths)

    def cut(self, at: Int32[jax.Array, " B"], slots: int) -> KVCache:
        """Return ``slots`` slots from slot ``at``, int32 [B], of each row on; none of them counts as valid."""

        def take(x: jax.Array) -> jax.Array:
            cut = jax.vmap(lambda row, slot: jax.lax.dynamic_slice_in_dim(row, slot, slots, axis=2), (1, 0), 1)
            return cut(x, at)

        return KVCache(take(self.k), take(self.v), jnp.zeros_like(self.lengths))

    def replace_where(self, rows: Bool[jax.Array, " B"], other: KVCache) -> KVCache:
        """Return a cache with the given rows, bool [B], taken from another one of the same shape."""
        k, v = (
            jnp.where(rows[None, :, None, None, None], new.astype(x.dtype), x)
            for x, new in ((self.k, other.k), (self.v, other.v))
        )
        return KVCache(k, v, jnp.where(rows, other.lengths, self.lengths))


def empty(config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype) -> KVCache:
    """Return an empty cache of ``slots`` tokens for each of ``rows`` sequences, on the current mesh."""
    sharding = kv_cache_spec(config, jax.sharding.get_abstract_mesh())
    shape = (config.layers, rows, config.kv_heads, slots, config.head_dim)
    k, v = (jnp.zeros(shape, dtype, out_sharding=sharding) for _ in range(2))
    return KVCache(k, v, jnp.zeros(rows, jnp.int32, out_sharding=jax.P(BATCH)))


def kv_cache_spec(config: ModelConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, rows: bool = True) -> jax.P:
    """Return how keys and values [L, B, G, S, C] are split; ``rows``: whether over rows, too."""
    heads = spec((config.kv_heads,), ("kv_heads",), mesh)[0]
    return jax.P(None, BATCH if rows else None, heads, None, None)
