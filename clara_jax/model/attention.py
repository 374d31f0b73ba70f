"""Grouped-query attention on arrays whose heads are split over the mesh's model axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clara_jax.model.sharding import BATCH


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √C) v, scores and softmax in float32.

    Args:
      q: [B, T, H, C].
      k, v: [B, S, G, C], each key/value head serving H / G query heads.
      mask: bool [B, T, S]. A token that may attend to nothing (padding) gets a mean of all values, never NaN.

    Returns:
      [B, T, H, C].
    """
    heads = jax.typeof(q).sharding.spec[2]
    if heads != jax.typeof(k).sharding.spec[2]:
        # Too few key/value heads to split: they are whole everywhere, and each device repeats them for its own queries.
        sharding = jax.P(BATCH, None, heads, None)
        k, v = (jax.reshard(jnp.repeat(x, q.shape[2] // x.shape[2], axis=2), sharding) for x in (k, v))
    batch, length, _, channels = q.shape
    groups = k.shape[2]
    q = jnp.reshape(q, (batch, length, groups, -1, channels), out_sharding=jax.P(BATCH, None, heads, None, None))
    scores = jnp.einsum("BTGQC,BSGC->BGQTS", q, k, preferred_element_type=jnp.float32) * channels**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("BGQTS,BSGC->BTGQC", weights, v)
    return jnp.reshape(mixed, (batch, length, -1, channels), out_sharding=jax.P(BATCH, None, heads, None))
