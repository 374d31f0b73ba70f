"""Kernels in int8: what they stand for, and products with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.model.quantization import (
    CHOICES,
    check,
    is_quantized,
    quantize_kernel,
    quantized_kernels,
    quantized_product,
    wide_kernel,
)

# Of one layer: equation, shapes of x and of the kernel, and the axes of a sum's result on the mesh.
EQUATIONS = {
    "NE,EHC->NHC": ((24, 16), (16, 2, 8), 1),
    "NHC,HCE->NE": ((24, 2, 8), (2, 8, 16), 2),
}


def kernels(equation, layers=1):
    """A float32 kernel whose channels differ in size, and the same quantized."""
    _, shape, inputs = EQUATIONS[equation]
    wide = np.random.default_rng(0).normal(size=(layers, *shape)).astype(np.float32)
    wide *= np.geomspace(0.01, 10, shape[-1], dtype=np.float32)
    return wide, quantize_kernel(wide, inputs), inputs


@pytest.mark.parametrize("equation", EQUATIONS)
def test_each_output_channel_has_a_scale(equation):
    wide, kernel, inputs = kernels(equation, layers=3)
    outputs = wide.shape[1 + inputs :]
    assert kernel["values"].shape == wide.shape and kernel["values"].dtype == np.int8
    assert kernel["scales"].shape == (3, *outputs) and kernel["scales"].dtype == np.float32
    axes = tuple(range(1, 1 + inputs))
    largest = np.abs(wide).max(axes, keepdims=True)
    error = np.abs(np.asarray(wide_kernel(kernel)) - wide)
    assert (error <= 1.001 * largest / 254).all() and error.max() > 0, "half a step of each channel, small or large"
    again = quantize_kernel(np.asarray(wide_kernel(kernel)), inputs)
    np.testing.assert_array_equal(again["values"], kernel["values"])
    assert is_quantized(kernel) and not is_quantized(jnp.asarray(wide))
    np.testing.assert_array_equal(np.asarray(wide_kernel(jnp.asarray(wide))), wide)


@pytest.mark.parametrize("carried, operands", [("float32", None), ("float32", "bfloat16"), ("bfloat16", None)])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_product_is_that_with_the_dequantized_kernel(equation, carried, operands, mesh222):
    _, kernel, _ = kernels(equation)
    kernel = {name: jnp.asarray(array[0]) for name, array in kernel.items()}
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=EQUATIONS[equation][0]), carried)
    wide = np.asarray(wide_kernel({name: array[None] for name, array in kernel.items()}))[0].astype(np.float64)
    expected = np.einsum(equation, np.asarray(x, np.float64), wide)
    cotangent = rng.normal(size=expected.shape)
    inputs, out = equation.split("->")
    first, second = inputs.split(",")
    gradient = np.einsum(f"{out},{second}->{first}", cotangent, wide)
    letters = {"N": ("replica", "data"), "H": "model", "E": "data"}

    def put(array, names):
        spec = jax.P(*(None if names[0] == "N" and letter == "E" else letters.get(letter) for letter in names))
        return jax.device_put(array, jax.NamedSharding(mesh222, spec))

    # As they are declared: values along both axes, scales whole along the embedding.
    scales = jax.P(*("model" if letter == "H" else None for letter in out[1:]))
    kernel = {
        "values": put(kernel["values"], second),
        "scales": jax.device_put(kernel["scales"], jax.NamedSharding(mesh222, scales)),
    }
    split = jax.P(("replica", "data"), *("model" if letter == "H" else None for letter in out[1:]))

    def both(x, kernel, cotangent):
        value, pull = jax.vjp(lambda x: quantized_product(equation, x, kernel, operands, split), x)
        return value, *pull(cotangent.astype(value.dtype))

    with jax.set_mesh(mesh222):
        found = jax.jit(both)(put(x, first), kernel, put(jnp.asarray(cotangent, jnp.float32), out))
    for array, wanted in zip(found, (expected, gradient), strict=True):
        assert array.dtype == carried
        # Relative to each output channel: bfloat16 has 8 bits.
        tolerance = 1e-5 if (carried, operands) == ("float32", None) else 2e-2
        scale = np.abs(wanted).max(0, keepdims=True)
        assert (np.abs(np.asarray(array, np.float64) - wanted) <= tolerance * scale).all()


def test_the_backward_pass_keeps_bytes():
    """And no copy of the kernels that is cast: in a scan over layers it would be as large as the base was."""
    _, kernel, _ = kernels("NE,EHC->NHC", layers=5)
    x = jnp.ones((24, 16), jnp.bfloat16)

    def layer(x, kernel):
        return quantized_product("NE,EHC->NHC", x, kernel).reshape(24, 16), None

    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(lambda x: jax.lax.scan(layer, x, kernel)[0], x)[1], x))
    assert any(leaf.dtype == jnp.int8 and leaf.size == kernel["values"].size for leaf in kept)
    assert all(leaf.size < kernel["values"].size for leaf in kept if leaf.dtype != jnp.int8), kept


def test_names():
    assert quantized_kernels(["base/layers/mlp/up/kernel/up", "base/layers/attention_norm/scale"]) == []
    paths = [f"base/layers/mlp/up/kernel/up/{part}" for part in ("values", "scales")]
    assert quantized_kernels(paths) == ["base/layers/mlp/up/kernel/up"]
    for name in CHOICES:
        check(name)
    with pytest.raises(ClaraError, match="quantization: 'int4' must be one of none, int8"):
        check("int4")
