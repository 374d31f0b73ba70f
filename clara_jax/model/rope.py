"""Rotary position embedding (Su et al. 2021) with the frequency tables that released models use."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from clara_jax.model.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, long: bool = False) -> Float32[np.ndarray, " pairs"]:
    """Return radians per position of each rotating pair, float32 [channels / 2]; ``long``: LongRoPE's second table."""
    frequencies = rope.theta ** -(np.arange(0, rope.channels, 2, dtype=np.float64) / rope.channels)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        # Long waves are stretched, short ones kept, those between blended (Llama 3.1).
        waves = 2 * math.pi / frequencies
        low, high = (
            rope.original_positions / rope.low_frequency_factor,
            rope.original_positions / rope.high_frequency_factor,
        )
        blend = (rope.original_positions / waves - rope.low_frequency_factor) / (
            rope.high_frequency_factor - rope.low_frequency_factor
        )
        between = (1 - blend) * frequencies / rope.factor + blend * frequencies
        frequencies = np.where(waves > low, frequencies / rope.factor, np.where(waves < high, frequencies, between))
    elif rope.kind == "longrope":
        frequencies = frequencies / np.asarray(rope.long_factors if long else rope.short_factors)
    return frequencies.astype(np.float32)


def rotations(
    rope: RopeConfig, positions: Int32[jax.Array, "B T"], attended: Int32[jax.Array, " B #T"]
) -> tuple[Float32[jax.Array, "B T pairs"], Float32[jax.Array, "B T pairs"]]:
    """Return cosines and sines of the tokens' angles, float32 [B, T, channels / 2].

    Args:
      rope: the frequency tables.
      positions: int32 [B, T].
      attended: int32 [B, T] or [B, 1], the number of attended tokens of a token's sequence. LongRoPE chooses its table
        by it; if padding counted, a row's result would depend on its batch.
    """
    table = jnp.asarray(inverse_frequencies(rope))
    if rope.kind == "longrope":
        is_long = (attended > rope.original_positions)[..., None]
        table = jnp.where(is_long, jnp.asarray(inverse_frequencies(rope, long=True)), table)
    angles = positions[..., None].astype(jnp.float32) * table
    return jnp.cos(angles) * rope.attention_scale, jnp.sin(angles) * rope.attention_scale


def rotate(
    x: Float[jax.Array, "B T heads C"],
    rotation: tuple[Float32[jax.Array, "B T pairs"], Float32[jax.Array, "B T pairs"]],
) -> Float[jax.Array, "B T heads C"]:
    """Rotate the first channels of each head, x [B, T, heads, C]; pairs are (i, i + channels/2). The rest passes."""
    cos, sin = (r[:, :, None, :] for r in rotation)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
