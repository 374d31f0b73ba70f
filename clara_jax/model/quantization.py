"""Matrices as int8 values with float32 scales: the frozen base of QLoRA training, and compact checkpoints.

A quantized kernel stands in the parameters in the place of an array, as ``{"values": int8 [..., in..., out...],
"scales": float32 [..., out...]}``: one scale for each output channel (of each layer), so that a product may be scaled
after it is summed, and a kernel never exists in more than a byte a number outside of a product's operands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from clara_jax.errors import ClaraError
from clara_jax.model.products import product

CHOICES = (NONE, INT8) = ("none", "int8")  # of the base's kernels; tables, norms and biases keep the precision's dtype
KERNEL_PARTS = (VALUES, SCALES) = ("values", "scales")


def check(quantization: str) -> None:
    """Raise an error for an unknown quantization.

    Raises:
      ClaraError: ``quantization`` is none of `CHOICES`; the message names them.
    """
    if quantization not in CHOICES:
        raise ClaraError(f"quantization: {quantization!r} must be one of {', '.join(CHOICES)}")


def quantize(leaf: np.ndarray, axes: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values and float32 scales with leaf ~ values * scales.

    Args:
      leaf: floating point of any shape.
      axes: those that share a scale; the scales have size 1 there.
    """
    leaf = np.asarray(leaf, np.float32)
    scales = np.abs(leaf).max(axes, keepdims=True) / np.float32(127)
    values = np.rint(leaf / np.where(scales > 0, scales, 1)).astype(np.int8)
    return values, scales


def dequantize(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return float32 values * scales, the inverse of `quantize` up to rounding."""
    return values.astype(np.float32) * scales


def quantize_kernel(kernel: np.ndarray, inputs: int) -> dict[str, np.ndarray]:
    """Return a stacked kernel [L, in..., out...] with ``inputs`` input axes as `KERNEL_PARTS`."""
    values, scales = quantize(kernel, tuple(range(1, 1 + inputs)))
    return {VALUES: values, SCALES: scales.reshape(*kernel.shape[:1], *kernel.shape[1 + inputs :])}


def is_quantized(kernel: Any) -> bool:
    """Return whether what stands in the place of a kernel is `KERNEL_PARTS`."""
    return isinstance(kernel, Mapping)


def kernel_of(path: str) -> str | None:
    """Return the path of the kernel that a leaf of `KERNEL_PARTS` belongs to, or None for another leaf."""
    kernel, _, part = path.rpartition("/")
    return kernel if part in KERNEL_PARTS and "/kernel/" in path else None


def quantized_kernels(paths: Iterable[str]) -> list[str]:
    """Return the paths of the kernels that leaves of `KERNEL_PARTS` belong to, each once, of leaves by path."""
    return list(dict.fromkeys(kernel for path in paths if (kernel := kernel_of(path)) is not None))


def wide_kernel(kernel: jax.Array | Mapping[str, jax.Array]) -> Float32[jax.Array, "L ..."]:
    """Return a stacked kernel [L, in..., out...] in float32, quantized or not."""
    if not isinstance(kernel, Mapping):
        return kernel.astype(jnp.float32)
    values, scales = kernel[VALUES], kernel[SCALES]
    inputs = range(1, 1 + values.ndim - scales.ndim)
    return values.astype(jnp.float32) * jnp.expand_dims(scales, tuple(inputs))


def quantized_product(
    equation: str,
    x: Float[jax.Array, "N ..."],
    kernel: Mapping[str, jax.Array],
    operands: Any = None,
    out_sharding: jax.P | None = None,
) -> Float[jax.Array, "N ..."]:
    """Multiply x [N, in...] with a quantized kernel of one layer: (x · values) · scales, in x's dtype.

    Integers up to 127 are exact in bfloat16, so the product is rounded no more than one with the kernel that the parts
    stand for. Gradients flow to x alone, through the same product.

    Args:
      equation: see `clara_jax.model.products.product`.
      x: activations.
      kernel: `KERNEL_PARTS`.
      operands: see `clara_jax.model.products.product`.
      out_sharding: of the result.
    """
    y = product(equation, x, kernel[VALUES], operands, out_sharding, jnp.float32)
    return (y * kernel[SCALES]).astype(x.dtype)
