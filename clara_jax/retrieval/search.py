"""Retrieval of the chunks that a question is answered from: by memories, by words, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.retrieval.ann import Projection
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.exact_search import ExactSearch

HOW = ("memory", "words", "both")
SURVIVORS = 20  # candidates of the first pass for each chunk of the result
FUSED = 50  # best chunks of each ranking that are fused
_RRF = 60  # the constant of reciprocal rank fusion, added to every rank (Cormack et al. 2009)


class ScoredId(NamedTuple):
    """A chunk's id and its score: the model's ("memory"), BM25 ("words"), or the sum of 1 / (60 + rank) ("both")."""

    id: str
    score: float


class Search:
    """Search of a store.

    The score of a search by memories is `clara_jax.method.reranker.relevance_scores`, over all chunks, as long as these
    fit the budget; a larger store that has search vectors (`clara_jax.retrieval.ann`) is searched by these first, and
    the survivors get the exact score. A larger store without search vectors is read whole for each search.

    Args:
      store: the chunks.
      mesh: of the devices that hold the memories.
      budget: bytes that memories may take there.
    """

    def __init__(self, store: DocumentStore, mesh: jax.sharding.Mesh, budget: int):
        self._store, self._exact_search = store, ExactSearch(store, mesh, budget)
        self._projection: Projection | None = None
        self._projected = 0  # the version of the store's projection

    def __call__(
        self,
        question: str,
        query: np.ndarray | None,
        k: int,
        how: str = "memory",
        where: str | None = None,
        ann: bool | None = None,
    ) -> list[ScoredId]:
        """Return the k best chunks for a question, best first.

        Args:
          question: its text, for "words" and "both".
          query: its encoding [M, E], for "memory" and "both".
          k: the number of chunks.
          how: one of `HOW`.
          where: a filter condition on chunks, e.g. "document = 'a.md'"; see `clara_jax.retrieval.conditions`.
          ann: whether to search by search vectors first; None to do so where memories do not fit.

        Raises:
          ClaraError: an unknown ``how``; a condition that cannot be parsed; a first pass without search vectors.
        """
        if how not in HOW:
            raise ClaraError(f"how: {how!r} must be one of {', '.join(HOW)}")
        if where is not None:
            self._store.check_condition(where)
        with self._store.reading():
            if how == "words":
                return self._words(question, k, where)
            assert query is not None  # required by the other two
            if how == "memory":
                return self._memory(query, k, where, ann)
            wide = max(k, FUSED)
            return fuse([self._memory(query, wide, where, ann), self._words(question, wide, where)])[:k]

    def _memory(self, query: np.ndarray, k: int, where: str | None, ann: bool | None) -> list[ScoredId]:
        projection = self._vectors() if ann or (ann is None and not self._exact_search.fits) else None
        if projection is None:
            if ann:
                raise ClaraError(
                    f"{self._store.location}: has no search vectors; make them with python -m clara_jax.compress "
                    "--index"
                )
            allowed = None if where is None else set(self._store.where(where))
            return [ScoredId(*hit) for hit in self._exact_search(query[None], k, allowed)[0]]
        vector = projection.queries(query[None])[0]
        ids = self._store.nearest(vector, SURVIVORS * k, where)
        return [ScoredId(*hit) for hit in self._exact_search.among(query[None], k, ids)[0]]

    def _words(self, question: str, k: int, where: str | None) -> list[ScoredId]:
        return [ScoredId(*hit) for hit in self._store.words(question, k, where)]

    def _vectors(self) -> Projection | None:
        version = self._store.projection_version
        if version != self._projected:
            self._projection, self._projected = Projection.read(self._store), version
        return self._projection


def fuse(rankings: Sequence[Sequence[ScoredId]]) -> list[ScoredId]:
    """Fuse rankings by reciprocal ranks: each gives a chunk 1 / (60 + rank)."""
    sums: dict[str, float] = {}
    for ranking in rankings:
        for rank, found in enumerate(ranking, 1):
            sums[found.id] = sums.get(found.id, 0.0) + 1 / (_RRF + rank)
    return sorted((ScoredId(*item) for item in sums.items()), key=lambda found: (-found.score, found.id))
