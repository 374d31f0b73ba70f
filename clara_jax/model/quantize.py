"""Weights of one byte: int8 values and a float32 scale for each output, the largest value of which becomes 127.

Products are computed with the values, widened where they are used, and scaled behind: the same as with scaled weights,
for a scale belongs to an output and not to what is summed over.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from clara_jax.model.sharding import BATCH


@flax.struct.dataclass
class Quantized:
    """Stands in the place of a kernel or a table.

    Attributes:
      values: int8, the shape of the weights.
      scale: float32, their shape without the axes that a product sums over.
    """

    values: jax.Array
    scale: jax.Array


def quantize(weights: jax.Array, summed: tuple[int, ...]) -> Quantized:
    """Rounds weights to the nearest of 255 steps.

    Args:
      summed: the axes that products sum over.
    """
    wide = weights.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=summed, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    squeezed = jnp.squeeze(scale, summed)
    # It multiplies outputs, whose rows are split over those axes.
    split = jax.P(*(None if axis in BATCH else axis for axis in jax.typeof(squeezed).sharding.spec))
    return Quantized(jnp.round(wide / scale).astype(jnp.int8), jax.reshard(squeezed, split))


def parts(weights: Any, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """What a product reads, and what scales its outputs, if anything."""
    if isinstance(weights, Quantized):
        return weights.values.astype(dtype), weights.scale.astype(dtype)
    return weights.astype(dtype), None
