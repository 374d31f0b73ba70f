"""Kernels with their outputs before their inputs, in the order in which a CPU reads them once a token.

XLA's products on CPUs read such a kernel in place, bfloat16 included, which they widen in registers; of a kernel in the
usual order they would make a transposed copy in every call. This holds for two rows and more: a single row would be
multiplied by another program, for which XLA first writes the whole kernel in float32. So a single row is doubled.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32


@flax.struct.dataclass
class OutputMajor:
    """A kernel with its outputs first, which stands in the parameters in the kernel's place.

    Attributes:
      values: [outputs..., inputs...], with a leading layer axis where layers are stacked.
    """

    values: jax.Array


def stored_product(
    equation: str, x: Float[jax.Array, "N ..."], values: Float[jax.Array, " ..."], out_sharding: jax.P | None = None
) -> Float32[jax.Array, "N ..."]:
    """Multiply x [N, ...] with weights in the dtype they are stored in, summed in float32; float32 [N, ...].

    Args:
      equation: of the einsum; its first letter is that of the rows.
      x: cast to the weights' dtype.
      values: of an `OutputMajor`.
      out_sharding: of the result.
    """
    narrow = values.dtype == jnp.bfloat16
    x = x.astype(values.dtype)
    single = narrow and len(x) == 1
    y = jnp.einsum(
        equation,
        jnp.concatenate([x, x]) if single else x,
        values,
        preferred_element_type=jnp.float32,
        # Products of bfloat16 are exact in float32 anyway; with "highest" XLA would widen the weights.
        precision=jax.lax.Precision.DEFAULT if narrow else None,
        out_sharding=out_sharding,
    )
    return y[:1] if single else y
