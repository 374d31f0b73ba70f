"""The shapes in the signatures of `clara_jax.inference` are checked in all tests."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from clara_jax.inference.decode import initial_state
from clara_jax.inference.prefix_cache import key


def test_a_wrong_shape_or_dtype_is_refused():
    limit, seed, ones = jnp.full(3, 8), jnp.arange(3, dtype=jnp.uint32), jnp.ones(3)
    assert initial_state(limit, ones, ones, seed).token.shape == (3,)
    for wrong in (seed[:2], seed[None], seed.astype(jnp.int32)):
        with pytest.raises(TypeCheckError, match="seed"):
            initial_state(limit, ones, ones, wrong)
    with pytest.raises(TypeCheckError, match="memories"):
        key([1], [0], np.ones((2, 4), np.float32), False)
