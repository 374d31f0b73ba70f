"""The shapes in the signatures of `clara_jax.method` are checked in all tests."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from clara_jax.memory_count import FIXED
from clara_jax.method.reranker import relevance_scores


def test_a_wrong_shape_or_dtype_is_refused():
    query, documents = np.ones((2, 3, 4), np.float32), np.ones((2, 5, 3, 4), np.float32)
    assert relevance_scores(query, documents, FIXED).shape == (2, 5)
    for wrong in (documents[:1], documents[:, :, :2], documents[0], documents.astype(np.int32)):
        with pytest.raises(TypeCheckError, match="documents"):
            relevance_scores(query, wrong, FIXED)
