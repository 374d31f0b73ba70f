"""Results of the Python API: memories, rankings, answers with their sources, and retrieved contexts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from clara_jax.deprecation import renamed_field
from clara_jax.inference.requests import Request
from clara_jax.text.documents import Chunk


@dataclasses.dataclass(frozen=True)
class Memories:
    """Compressed documents: the output of `Clara.compress`, an input of `rank` and `answer`.

    Attributes:
      ids: one per memory; a chunk of a long document is called ``<id>#<number>``.
      array: [n, M, E], the compute dtype.
      texts: the text that each memory was compressed from.
      fingerprint: of the model that made them; another model refuses them.
    """

    ids: tuple[str, ...]
    array: np.ndarray
    texts: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of memories."""
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> Memories:
        """Return the memories at these positions, in this order."""
        rows = list(indices)
        return dataclasses.replace(
            self, ids=tuple(self.ids[i] for i in rows), array=self.array[rows], texts=tuple(self.texts[i] for i in rows)
        )


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best candidates of each question, best first.

    Attributes:
      indices: int [q, k] into the question's candidates; -1 where it has fewer than k.
      scores: float32 [q, k], cosine; -inf where there is no candidate.
    """

    indices: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """A document that an answer was generated from.

    ``rank`` counts from 1; ``score`` is None where documents were not ranked.
    """

    id: str
    rank: int
    score: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, its sources, and the log-probability of its tokens under the model."""

    text: str
    sources: tuple[Source, ...]
    tokens: tuple[int, ...]
    log_probability: float


@dataclasses.dataclass(frozen=True)
class Hit(Chunk):
    """A retrieved chunk; ``score`` is a cosine, BM25, or the sum of reciprocal ranks, and ``rank`` counts from 1."""

    score: float
    rank: int


@dataclasses.dataclass(frozen=True)
class RetrievedContext:
    """A question and the chunks that were retrieved for it.

    Attributes:
      hits: the candidates, best first; the generator reads the first ``selected``.
      request: for the engine; None where nothing was found or the best score is below the threshold.
      compress_ratio: tokens of the selected texts over the memory tokens read in their place.
      milliseconds: the time of encoding the question ("read") and of the search ("search").
      searched: the search's query text: the question, after earlier messages of the user where there are some.
      turns: the number of earlier messages that the generator reads.
    """

    question: str
    hits: tuple[Hit, ...]
    selected: int
    request: Request | None
    compress_ratio: float
    milliseconds: dict[str, float]
    searched: str
    turns: int = 0

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The hits that the generator reads."""
        return self.hits[: self.selected]

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, memories included; 0 without one."""
        return 0 if self.request is None else len(self.request.ids)


@dataclasses.dataclass(frozen=True)
class RagAnswer:
    """An answer with its context; ``text`` is None where the model abstains, and ``milliseconds`` also has "answer"."""

    text: str | None
    context: RetrievedContext
    tokens: tuple[int, ...]
    log_probability: float
    milliseconds: dict[str, float]

    asked = renamed_field("RagAnswer.asked", "context")
