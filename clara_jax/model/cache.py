"""The key/value cache of decoding: a pytree that a jitted loop carries and donates."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from clara_jax.model.config import ModelConfig
from clara_jax.model.sharding import BATCH, spec


@flax.struct.dataclass
class Cache:
    """Keys and values of all layers, with the slots that may be attended.

    Sequences are padded on the left, so one ``length`` serves the whole batch.
    """

    k: jax.Array  # [L, B, S, G, C]
    v: jax.Array  # [L, B, S, G, C]
    mask: jax.Array  # bool [B, S]
    length: jax.Array  # int32 [], slots filled so far


def empty_cache(config: ModelConfig, batch: int, slots: int, dtype: jnp.dtype) -> Cache:
    """A cache with room for ``slots`` tokens of each of ``batch`` sequences, on the current mesh."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_channels)
    heads = spec(shape, (None, None, None, "kv_heads", None), jax.sharding.get_abstract_mesh())[3]
    sharding = jax.P(None, BATCH, None, heads, None)
    return Cache(
        k=jnp.zeros(shape, dtype, out_sharding=sharding),
        v=jnp.zeros(shape, dtype, out_sharding=sharding),
        mask=jnp.zeros((batch, slots), bool, out_sharding=jax.P(BATCH, None)),
        length=jnp.zeros((), jnp.int32),
    )
