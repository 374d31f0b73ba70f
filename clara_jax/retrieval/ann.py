"""Approximate nearest neighbours: search vectors, the first pass over a large store before the exact score.

A text's unit vector of X numbers has the direction of all its memories one after another, X = M E, or, where their
number is proportional to its length, of their mean, X = E. The score of the first pass is the inner product of two of
them, <q, m>; with a fixed number this is the exact score. With the mean μ of the documents' unit
vectors and an orthonormal basis P [256, X] of the directions in which they differ most (PCA),

    <q, m> = <q, μ> + <q, m - μ> ≈ <q, μ> + <P q, P (m - μ)>,

and <q, μ> is the same for all documents: they are ranked by <P q, v> with the search vector v = P (m - μ), which is
stored with the memory. The exact score of the survivors corrects the error of the basis and of means.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.memory_count import FIXED
from clara_jax.metrics.cosine import unit_vectors
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.rows import VECTOR_WIDTH

SAMPLE = 2048  # memories that a basis is fitted to
ROWS = 512  # memories of a read
FEWEST_FOR_VECTORS = 50_000  # fewest chunks for which `finish` makes search vectors
WRITTEN = 32 * 1024  # search vectors of a write, which reads the whole column of ids


@dataclasses.dataclass(frozen=True)
class Projection:
    """A PCA of unit vectors: μ float32 [X] and P float32 [256, X].

    Rows of P beyond the rank of the sample are zero.
    """

    mean: np.ndarray
    basis: np.ndarray
    memory_count: str

    @classmethod
    def fit(cls, units: np.ndarray, memory_count: str) -> Projection:
        """Compute the mean and the principal directions of unit vectors, float32 [n, X]."""
        mean = units.mean(axis=0)
        centred = units - mean
        # There are often more numbers in a vector than vectors in the sample: the side of these is decomposed.
        values, vectors = np.linalg.eigh(centred @ centred.T)
        keep = np.argsort(values)[::-1][:VECTOR_WIDTH]
        keep = keep[values[keep] > 1e-6 * max(values.max(), 1e-30)]
        basis = np.zeros((VECTOR_WIDTH, units.shape[1]), np.float32)
        basis[: len(keep)] = (vectors[:, keep] / np.sqrt(values[keep])).T @ centred
        return cls(mean.astype(np.float32), basis, memory_count)

    @classmethod
    def read(cls, store: DocumentStore) -> Projection | None:
        """Read the projection of a store's search vectors, None where it has none."""
        rows = store.projection()
        return None if rows is None else cls(rows[0], rows[1:], store.encoding.memory_count)

    def vectors(self, memories: np.ndarray) -> np.ndarray:
        """Return v of documents, float32 [n, 256], for memories [n, M, E]."""
        return (unit(memories, self.memory_count) - self.mean) @ self.basis.T

    def queries(self, memories: np.ndarray) -> np.ndarray:
        """Return P q of questions, float32 [n, 256], for encodings [n, M, E]."""
        return unit(memories, self.memory_count) @ self.basis.T


def build(store: DocumentStore, seed: int = 0) -> None:
    """Fit a basis to a sample of a store, write every chunk's search vector, and index them.

    Raises:
      ClaraError: the store is empty, or cannot be written.
    """
    with store.writing():
        with store.reading():
            ids, _ = store.index()
            if not ids:
                raise ClaraError(f"{store.location}: is empty; put documents in before search vectors are made")
            sample = np.random.default_rng(seed).permutation(len(ids))[:SAMPLE]
            units = [
                unit(store.memories([ids[i] for i in rows]), store.encoding.memory_count)
                for rows in np.array_split(np.sort(sample), -(-len(sample) // ROWS))
            ]
        projection = Projection.fit(np.concatenate(units), store.encoding.memory_count)
        store.set_projection(np.concatenate([projection.mean[None], projection.basis]))
        names, vectors = [], []
        for ids, _, memories in store.all_memories(ROWS):
            names += ids
            vectors.append(projection.vectors(memories))
            if len(names) >= WRITTEN:
                store.set_vectors(names, np.concatenate(vectors))
                names, vectors = [], []
        if names:
            store.set_vectors(names, np.concatenate(vectors))
        store.index_vectors()


def finish(store: DocumentStore, vectors: bool | None = None) -> None:
    """Bring the indexes up to date where they lag, after documents have been added.

    Args:
      store: the chunks.
      vectors: whether to recompute search vectors; None: where there are none yet and the store is large.
    """
    store.index_words()
    if vectors or (vectors is None and len(store) >= FEWEST_FOR_VECTORS and store.projection() is None):
        build(store)
    elif store.projection() is not None:
        store.index_vectors()


def unit(memories: np.ndarray, memory_count: str) -> np.ndarray:
    """Return the unit vectors of texts with memories [n, M, E], float32 [n, X]."""
    memories = memories.astype(np.float32)
    return unit_vectors(memories.reshape(len(memories), -1) if memory_count == FIXED else memories.sum(axis=1))
