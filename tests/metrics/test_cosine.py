"""The host's cosine is the devices'."""

import numpy as np
import pytest

from clara_jax.memory_count import FIXED
from clara_jax.method.reranker import relevance_scores
from clara_jax.metrics.cosine import cosines, unit_vectors


def test_known_values():
    a, b = np.array([[3.0, 0], [0, 4]]), np.array([[0.0, 4], [0, -4], [3, 0]])
    np.testing.assert_allclose(cosines(a, b), [[0, 0, 1], [1, -1, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_stays_and_small_vectors_have_length_one(dtype):
    found = unit_vectors(np.array([[0, 0], [3e-12, 4e-12], [3, 4]], dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, [[0, 0], [0.6, 0.8], [0.6, 0.8]], rtol=1e-6)


def test_it_is_the_score_of_the_paper():
    rng = np.random.default_rng(0)
    query, documents = rng.normal(size=(4, 8)), rng.normal(size=(5, 4, 8))
    documents[2] = 0
    expected = relevance_scores(query[None].astype(np.float32), documents[None].astype(np.float32), FIXED)[0]
    np.testing.assert_allclose(cosines(query.reshape(1, -1), documents.reshape(5, -1))[0], expected, atol=1e-6)
