"""Products in one dtype with sums in another: values and gradients against float64, and what they are computed with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from clara_jax.model.products import product

EQUATIONS = {
    "NE,EHC->NHC": ((24, 16), (16, 2, 8)),
    "NHC,HCE->NE": ((24, 2, 8), (2, 8, 16)),
    "BTE,VE->BTV": ((3, 8, 16), (10, 16)),
}
TOLERANCE = 1e-2  # of the largest value: bfloat16 has 8 bits


def dots(function, *arrays):
    """(dtypes of the operands, dtype of the result) of every product."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found.append((*(x.aval.dtype.name for x in eqn.invars), eqn.outvars[0].aval.dtype.name))
            for inner in jaxprs_in_params(eqn.params):
                walk(inner)

    walk(jax.make_jaxpr(function)(*arrays).jaxpr)
    return found


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_values_and_gradients(equation, stored, mesh222):
    rng = np.random.default_rng(0)
    x, weights = (rng.normal(size=shape) for shape in EQUATIONS[equation])
    cotangent = rng.normal(size=np.einsum(equation, x, weights).shape)
    inputs, out = equation.split("->")
    first, second = inputs.split(",")
    letters = {"N": ("replica", "data"), "B": None, "H": "model", "V": "model"}

    def put(array, names, dtype):
        spec = jax.P(*(letters.get(letter) for letter in names))
        return jax.device_put(jnp.asarray(array, dtype), jax.NamedSharding(mesh222, spec))

    split = jax.P(*(letters.get(letter) for letter in out))

    def both(x, weights, cotangent):
        value, pull = jax.vjp(lambda *args: product(equation, *args, jnp.bfloat16, split), x, weights)
        return value, *pull(cotangent)

    arrays = put(x, first, "float32"), put(weights, second, stored), put(cotangent, out, "float32")
    with jax.set_mesh(mesh222):
        found = jax.jit(both)(*arrays)
        assert dots(both, *arrays) == [("bfloat16", "bfloat16", "float32")] * 3
    assert [leaf.dtype.name for leaf in found] == ["float32", "float32", stored]
    assert all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(found[1:], arrays, strict=False))
    expected = (
        np.einsum(equation, x, weights),
        np.einsum(f"{out},{second}->{first}", cotangent, weights),
        np.einsum(f"{first},{out}->{second}", x, cotangent),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=0, atol=TOLERANCE * np.abs(other).max())


def test_nothing_is_kept_or_computed_for_frozen_weights():
    x, weights = jnp.ones((24, 16)), jnp.ones((16, 8), jnp.bfloat16)

    def value(x, weights):
        return jnp.sum(product("NE,EF->NF", x, weights, jnp.bfloat16) ** 2)

    assert len(dots(jax.grad(value), x, weights)) == 2
    _, pull = jax.vjp(lambda inputs: product("NE,EF->NF", inputs, weights, jnp.bfloat16), x)
    assert {leaf.shape for leaf in jax.tree.leaves(pull)} == {weights.shape}  # not x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_dtype_is_a_plain_product(dtype):
    x, weights = jnp.ones((4, 8), dtype), jnp.ones((8, 2))
    value = product("NE,EF->NF", x, weights)
    assert value.dtype == dtype and dots(lambda *args: product("NE,EF->NF", *args), x, weights) == [(dtype,) * 3]
    assert product("NE,EF->NF", x, weights, dtype, result=jnp.float32).dtype == jnp.float32
