"""The shapes in the signatures of `clara_jax.model` are checked in all tests."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from clara_jax.model.rope import rotate
from clara_jax.model.transformer import positions_of


def test_a_wrong_shape_or_dtype_is_refused():
    x, angles = jnp.ones((2, 3, 4, 8)), jnp.ones((2, 3, 2))
    assert rotate(x, (angles, angles)).shape == x.shape
    for wrong in (x[:1], x[:, :2], x[0], x.astype(jnp.int32)):
        with pytest.raises(TypeCheckError, match=r"of clara_jax\.model\.rope\.rotate\."):
            rotate(wrong, (angles, angles))
    for wrong in (np.ones(3, bool), np.ones((2, 3), np.float32)):
        with pytest.raises(TypeCheckError, match="mask"):
            positions_of(wrong)
