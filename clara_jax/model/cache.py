"""Keys and values of tokens that were read before: the model reads them and gives those of its new tokens; where they
are kept between two calls is the caller's business."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from clara_jax.model.config import ModelConfig
from clara_jax.model.sharding import BATCH, spec


@flax.struct.dataclass
class Past:
    """Keys and values of all layers: of a row the first ``lengths`` slots count, in order, and the rest is never read.

    Attributes:
      k, v: [L, B, G, S, C]. Heads stand before slots, so that scores of a head are one matrix product.
      lengths: int32 [B].
    """

    k: jax.Array
    v: jax.Array
    lengths: jax.Array

    @property
    def slots(self) -> int:
        return self.k.shape[3]

    def put(self, new: Past, at: jax.Array) -> Past:
        """With all slots of ``new`` written from slot ``at`` of each row on; its lengths are added.

        Args:
          at: int32 [B]; at + new.slots <= slots, or what is written moves to the front.
        """

        def write(old: jax.Array, own: jax.Array) -> jax.Array:
            update = jax.vmap(lambda x, y, slot: jax.lax.dynamic_update_slice(x, y, (0, 0, slot, 0)), (1, 1, 0), 1)
            return update(old, own.astype(old.dtype), at)

        return Past(write(self.k, new.k), write(self.v, new.v), at + new.lengths)

    def cut(self, at: jax.Array, slots: int) -> Past:
        """``slots`` slots from slot ``at`` of each row on; none of them counts."""

        def take(x: jax.Array) -> jax.Array:
            cut = jax.vmap(lambda row, slot: jax.lax.dynamic_slice_in_dim(row, slot, slots, axis=2), (1, 0), 1)
            return cut(x, at)

        return Past(take(self.k), take(self.v), jnp.zeros_like(self.lengths))

    def replace_where(self, rows: jax.Array, other: Past) -> Past:
        """With the rows, bool [B], of another of the same shape."""
        k, v = (
            jnp.where(rows[None, :, None, None, None], own.astype(x.dtype), x)
            for x, own in ((self.k, other.k), (self.v, other.v))
        )
        return Past(k, v, jnp.where(rows, other.lengths, self.lengths))


def empty(config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype) -> Past:
    """Room for ``slots`` tokens of each of ``rows`` sequences, on the current mesh."""
    sharding = past_spec(config, jax.sharding.get_abstract_mesh())
    shape = (config.layers, rows, config.kv_heads, slots, config.head_channels)
    k, v = (jnp.zeros(shape, dtype, out_sharding=sharding) for _ in range(2))
    return Past(k, v, jnp.zeros(rows, jnp.int32, out_sharding=jax.P(BATCH)))


def past_spec(config: ModelConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, rows: bool = True) -> jax.P:
    """How keys and values [L, B, G, S, C] are split; ``rows``: whether over rows, too."""
    heads = spec((config.kv_heads,), ("kv_heads",), mesh)[0]
    return jax.P(None, BATCH if rows else None, heads, None, None)
