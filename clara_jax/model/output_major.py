"""Kernels with their outputs before their inputs, in the order in which a CPU reads them once a token.

XLA's products on CPUs read such a kernel as it lies, bfloat16 included, which they widen in registers; of the usual
order they would make a transposed copy in every call. They do so for two rows and more: a single row would be
multiplied by another program, for which XLA writes the whole kernel down in float32 first. So it is given a companion.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class OutputMajor:
    """Stands in the place of a kernel.

    Attributes:
      values: [outputs..., inputs...], of all layers or of one.
    """

    values: jax.Array


def stored_product(equation: str, x: jax.Array, values: jax.Array, out_sharding: jax.P | None = None) -> jax.Array:
    """The einsum of x [N, ...] with weights, multiplied as these are stored and summed in float32; float32 [N, ...].

    Args:
      equation: of the einsum; its first letter is that of the rows.
    """
    narrow = values.dtype == jnp.bfloat16
    x = x.astype(values.dtype)
    alone = narrow and len(x) == 1
    y = jnp.einsum(
        equation,
        jnp.concatenate([x, x]) if alone else x,
        values,
        preferred_element_type=jnp.float32,
        # Products of bfloat16 are exact in float32 anyway; asked for "highest", XLA would widen the weights.
        precision=jax.lax.Precision.DEFAULT if narrow else None,
        out_sharding=out_sharding,
    )
    return y[:1] if alone else y
