"""Which chunks of a store a question is answered from: by memories, by words, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.retrieval.conditions import compiled
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.exact import ExactSearch
from clara_jax.retrieval.first_pass import Projection, unit

HOW = ("memory", "words", "both")
SURVIVORS = 20  # of the first pass, for each chunk that is asked for
FUSED = 50  # best of each ranking that are joined
_RRF = 60  # reciprocal rank fusion: what is added to every rank (Cormack et al. 2009)


class Found(NamedTuple):
    """A chunk's id and its score: the cosine ("memory"), BM25 ("words"), or the sum of 1 / (60 + rank) ("both")."""

    id: str
    score: float


class Search:
    """Searches a store.

    By memories the score is the paper's, over all chunks, as long as these fit the budget; a larger store that has
    search vectors (`clara_jax.retrieval.first_pass`) is searched by these first, and the survivors get the exact score.
    A larger one that has none is read whole for each search.

    Args:
      mesh: of the devices that hold the memories.
      budget: bytes that memories may take there.
    """

    def __init__(self, store: DocumentStore, mesh: jax.sharding.Mesh, budget: int):
        self._store, self._exact = store, ExactSearch(store, mesh, budget)
        self._projection: Projection | None = None
        self._projected = 0  # the version of what is in the store

    def __call__(
        self,
        question: str,
        query: np.ndarray | None,
        k: int,
        how: str = "memory",
        where: str | None = None,
        first_pass: bool | None = None,
    ) -> list[Found]:
        """The k best chunks for a question, best first.

        Args:
          question: its text, for "words" and "both".
          query: its memory [M, E], for "memory" and "both".
          how: one of `HOW`.
          where: a condition that a chunk must meet, e.g. "document = 'a.md'"; see `clara_jax.retrieval.conditions`.
          first_pass: whether to search by search vectors first; None to do so where memories do not fit.

        Raises:
          ClaraError: an unknown way; a condition that cannot be understood; a first pass without search vectors.
        """
        if how not in HOW:
            raise ClaraError(f"how: {how!r} must be one of {', '.join(HOW)}")
        if where is not None:
            compiled(where)  # says what is wrong with it
        with self._store.reading():
            if how == "memory":
                return self._memory(query, k, where, first_pass)
            if how == "words":
                return self._words(question, k, where)
            wide = max(k, FUSED)
            return fuse([self._memory(query, wide, where, first_pass), self._words(question, wide, where)])[:k]

    def _memory(self, query: np.ndarray, k: int, where: str | None, first_pass: bool | None) -> list[Found]:
        projection = self._vectors() if first_pass or (first_pass is None and not self._exact.fits) else None
        if projection is None:
            if first_pass:
                raise ClaraError(
                    f"{self._store.location}: has no search vectors; make them with python -m clara_jax.compress "
                    "--index"
                )
            allowed = None if where is None else set(self._store.where(where))
            return [Found(*hit) for hit in self._exact(query[None], k, allowed)[0]]
        vector = projection.queries(query[None])[0]
        ids = self._store.nearest(vector, SURVIVORS * k, where)
        scores = unit(self._store.memories(ids)) @ unit(query[None])[0]
        order = sorted(zip(ids, scores.tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))
        return [Found(*hit) for hit in order[:k]]

    def _words(self, question: str, k: int, where: str | None) -> list[Found]:
        return [Found(*hit) for hit in self._store.words(question, k, where)]

    def _vectors(self) -> Projection | None:
        version = self._store.projection_version
        if version != self._projected:
            self._projection, self._projected = Projection.read(self._store), version
        return self._projection


def fuse(rankings: Sequence[Sequence[Found]]) -> list[Found]:
    """Reciprocal rank fusion: each ranking gives a chunk 1 / (60 + rank)."""
    sums: dict[str, float] = {}
    for ranking in rankings:
        for rank, found in enumerate(ranking, 1):
            sums[found.id] = sums.get(found.id, 0.0) + 1 / (_RRF + rank)
    return sorted((Found(*item) for item in sums.items()), key=lambda found: (-found.score, found.id))
