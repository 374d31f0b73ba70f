"""The cosine in numpy, of vectors on the host; of memories on the devices it is `clara_jax.method.reranker`'s."""

from __future__ import annotations

import numpy as np


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [n, E] of floats to length one, in their precision; the vector 0 stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(lengths.dtype).tiny)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosines between all a [n, E] and all b [m, E]: [n, m]; 0 with the vector 0."""
    return unit_vectors(a) @ unit_vectors(b).T
