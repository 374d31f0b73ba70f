"""Products of activations with weights in any precision, and their gradients.

Where activations are float32 and multiplied as bfloat16 (`clara_jax.model.precision`), both sides of a product are cast
to bfloat16 and its sums are float32. The gradients need a custom rule: JAX's would multiply the float32 gradient of the
output with bfloat16 weights, for which processors have no instructions. Here the gradient is cast first.

XLA on CPUs has such products only where the contracted axes are the first operand's last ones; otherwise it converts
both sides to float32, or compiles a program that fails when it runs ("Unsupported element type for DotThunk"). So axes
are moved where they are not last, and a barrier keeps XLA from undoing it.

Weights of int8, which have no gradient, take the same rule in every precision: what is kept of them for the backward
pass are their bytes, not a copy that is cast.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float, Int8


def product(
    equation: str,
    x: Float[jax.Array, " ..."],
    weights: Float[jax.Array, " ..."] | Int8[jax.Array, " ..."],
    operands: Any = None,
    out_sharding: jax.P | None = None,
    result: Any = None,
) -> Float[jax.Array, " ..."]:
    """Compute ``jnp.einsum(equation, x, weights)``.

    Args:
      equation: "first,second->result"; every letter stands in two of the three.
      x: in the dtype of the activations.
      weights: of any dtype; int8 for whole numbers that are not trained.
      operands: the dtype in which they are multiplied; default x's.
      out_sharding: of the result, where axes are summed over that are split over devices.
      result: the dtype of the result; default x's.
    """
    operands = jnp.dtype(x.dtype if operands is None else operands)
    if operands == x.dtype and weights.dtype != jnp.int8:
        weights = weights.astype(x.dtype)
        return jnp.einsum(equation, x, weights, out_sharding=out_sharding, preferred_element_type=result)
    return _cast(equation, operands, out_sharding, jnp.dtype(x.dtype if result is None else result), x, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _cast(
    equation: str,
    operands: jnp.dtype,
    out_sharding: jax.P | None,
    result: jnp.dtype,
    x: jax.Array,
    weights: jax.Array,
):
    return _sum_wide(equation, x.astype(operands), weights.astype(operands), out_sharding).astype(result)


def _forward(equation: str, operands: jnp.dtype, out_sharding: jax.P | None, result: jnp.dtype, x: Any, weights: Any):
    narrow = x.value.astype(operands), weights.value.astype(operands)
    out = _sum_wide(equation, *narrow, out_sharding).astype(result)
    # Only what a gradient needs is kept: with frozen weights no activations, and those that are kept have two bytes.
    kept_weights = weights.value if weights.value.dtype == jnp.int8 else narrow[1]
    kept = (narrow[0] if weights.perturbed else None, kept_weights if x.perturbed else None)
    return out, (*kept, _Types(jax.typeof(x.value), jax.typeof(weights.value)))


def _backward(
    equation: str, operands: jnp.dtype, out_sharding: jax.P | None, result: jnp.dtype, kept: tuple, gradient: Any
):
    del result  # the gradient's dtype
    x, weights, types = kept
    if isinstance(gradient, SymbolicZero):
        return None, None
    gradient = gradient.astype(operands)
    inputs, out = equation.split("->")
    first, second = inputs.split(",")
    of_x = of_weights = None
    if weights is not None:
        of_x = _sum_wide(f"{out},{second}->{first}", gradient, weights.astype(operands), types.x.sharding)
        of_x = of_x.astype(types.x.dtype)
    if x is not None:
        x, first = contracted_last(x, first, second)
        of_weights = _sum_wide(f"{first},{out}->{second}", x, gradient, types.weights.sharding)
        of_weights = of_weights.astype(types.weights.dtype)
    return of_x, of_weights


_cast.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.tree_util.register_static
class _Types(NamedTuple):
    """Types of a product's inputs, which are those of their gradients."""

    x: ShapedArray
    weights: ShapedArray


def contracted_last(x: Float[jax.Array, " ..."], letters: str, kept: str) -> tuple[Float[jax.Array, " ..."], str]:
    """Return x with the axes that are not among ``kept`` moved to the end, and its letters in the new order."""
    order = sorted(range(x.ndim), key=lambda axis: letters[axis] not in kept)
    moved = x.transpose(order)
    if x.dtype == jnp.bfloat16:
        # XLA would fold the transposition into the product, for which it then has no program.
        moved = jax.lax.optimization_barrier(moved)
    return moved, "".join(letters[axis] for axis in order)


def _sum_wide(equation: str, first: jax.Array, second: jax.Array, out_sharding: Any) -> jax.Array:
    return jnp.einsum(equation, first, second, preferred_element_type=jnp.float32, out_sharding=out_sharding)
