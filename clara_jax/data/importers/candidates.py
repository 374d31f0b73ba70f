"""Candidates: every question's documents, completed to N from a pool.

- **oracle**: the gold documents are in, at most N - 1 of them; then the question's other documents and those that the
  retriever ranks highest; all shuffled.
- **normal**: the result of a search: the N documents ranked highest, in rank order, gold or not.

The choice depends on the question, its id, the seed and the documents of the pool, not on the order of anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from random import Random

import numpy as np

from clara_jax.data.importers.examples import ImportedExample
from clara_jax.data.importers.retrievers import Retriever
from clara_jax.metrics.answers import normalize

ORACLE, NORMAL = "oracle", "normal"
MODES = (ORACLE, NORMAL)
NO_GOLD = "no gold document is known, which the mode oracle needs"

# Answers that stand in many texts without being answered there.
_UNTRACEABLE = ("", "yes", "no", "noanswer")
_NORMALIZED_TEXTS = 1 << 16  # kept; a text of the pool is a candidate of several questions


class Pool:
    """The documents to choose from, each text once.

    Attributes:
      texts: in an order that depends on the texts alone and looks random.
      place: the index of each text.
    """

    def __init__(self, texts: Iterable[str]):
        self.texts = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
        self.place = {text: i for i, text in enumerate(self.texts)}


@dataclasses.dataclass(frozen=True)
class CandidateOptions:
    """How candidates are chosen.

    Attributes:
      count: N, the candidates of a question; fewer only where the pool is exhausted.
      mode: "oracle" or "normal".
      drop_answer_bearing: leave out documents that are not gold but in which an answer stands.
      seed: of the shuffling, and of the choice among documents with equal scores.
      most_gold: at most so many gold documents in oracle mode, the first ones; the others are not candidates at all.
      titled: documents begin with their title.
    """

    count: int = 20
    mode: str = ORACLE
    drop_answer_bearing: bool = False
    seed: int = 0
    most_gold: int | None = None
    titled: bool = True


@dataclasses.dataclass
class CandidateStatistics:
    """Statistics of the candidates, summed over questions.

    Attributes:
      questions: with candidates.
      with_gold: of which a gold document is known.
      gold_share: for each cutoff k the sum, over questions with gold, of the share of gold documents that the
        retriever ranks among the first k of the pool.
      answer_bearing: documents that are not gold but hold an answer: candidates, or dropped.
      questions_answer_bearing: questions that had such documents.
      short: questions with fewer than N candidates.
    """

    cutoffs: tuple[int, ...]
    questions: int = 0
    with_gold: int = 0
    gold_share: dict[int, float] = dataclasses.field(default_factory=dict)
    answer_bearing: int = 0
    questions_answer_bearing: int = 0
    short: int = 0

    @classmethod
    def of(cls, options: CandidateOptions) -> CandidateStatistics:
        """Return empty statistics with the cutoffs 1, 5 and N."""
        return cls(tuple(sorted({1, min(5, options.count), options.count})))

    def add(self, gold: list[str], ranking: _Ranking, pool: Pool, bearing: int, short: bool) -> None:
        """Add a question."""
        self.questions += 1
        self.with_gold += bool(gold)
        self.answer_bearing += bearing
        self.questions_answer_bearing += bearing > 0
        self.short += short
        places = {pool.place.get(text, -1) for text in gold}
        for cutoff in self.cutoffs if gold else ():
            share = len(places & ranking.first(cutoff)) / len(gold)
            self.gold_share[cutoff] = self.gold_share.get(cutoff, 0.0) + share


@dataclasses.dataclass(frozen=True)
class ExampleWithCandidates:
    """A question with its candidates; ``positives`` are indices of gold ones, sorted."""

    example: ImportedExample
    documents: tuple[str, ...]
    positives: tuple[int, ...]


def choose_candidates(
    examples: Sequence[ImportedExample],
    pool: Pool,
    retriever: Retriever,
    options: CandidateOptions,
    statistics: CandidateStatistics,
) -> Iterator[ExampleWithCandidates]:
    """Choose the candidates of examples, in their order.

    Args:
      examples: in oracle mode, with a gold document each (see `has_gold`).
      pool: the documents to choose from.
      retriever: over ``pool.texts``.
      options: how candidates are chosen.
      statistics: every question is added to it.
    """
    finder = _AnswerFinder()
    all_scores = retriever.scores([example.question for example in examples])
    for example, scores in zip(examples, all_scores, strict=True):
        gold, others = _texts(example, options.titled)
        # Equal scores, above all 0, are taken from another place on for every question.
        start = _hash(options.seed, example.id) % max(len(pool.texts), 1)
        ranking = _Ranking(scores, start, 4 * options.count)
        found = (pool.texts[index] for index in ranking)
        choice = _Choice(gold, finder, example.answers, options)
        if options.mode == ORACLE:
            # Files order a question's documents by chance or by a search; so do we.
            others.sort(key=lambda text: -scores[pool.place[text]] if text in pool.place else 0.0)
            choice.take(gold[: min(options.most_gold or len(gold), max(options.count - 1, 1))])
            choice.take(text for text in itertools.chain(others, found) if text not in gold)
            chosen = _shuffled(choice.texts, Random(f"{options.seed} {example.id}"))
        else:
            choice.take(found)
            chosen = choice.texts
        statistics.add(gold, ranking, pool, choice.bearing, short=len(chosen) < options.count)
        yield ExampleWithCandidates(example, tuple(chosen), tuple(i for i, text in enumerate(chosen) if text in gold))


def has_gold(example: ImportedExample) -> bool:
    """Return whether a gold document of the example is known."""
    return any(example.gold)


class _Choice:
    """The candidates of one question, as they are taken.

    Attributes:
      texts: at most N, each once.
      bearing: documents met that are not gold but hold an answer; they are among ``texts`` unless they are dropped.
    """

    def __init__(self, gold: list[str], finder: _AnswerFinder, answers: Sequence[str], options: CandidateOptions):
        self.texts: list[str] = []
        self.bearing = 0
        self._gold, self._finder, self._answers, self._options = gold, finder, finder.traceable(answers), options
        self._met: set[str] = set()

    def take(self, texts: Iterable[str]) -> None:
        """Take the first of the texts, as many as there is room for."""
        for text in texts:
            if len(self.texts) == self._options.count:
                break
            if text in self._met:
                continue
            self._met.add(text)
            if text not in self._gold and self._finder(self._answers, text):
                self.bearing += 1
                if self._options.drop_answer_bearing:
                    continue
            self.texts.append(text)


class _Ranking:
    """The indices of a pool by falling score, sorted no further than they are asked for.

    Among equal scores those from ``start`` on come first, counted in a circle.
    """

    def __init__(self, scores: np.ndarray, start: int, ahead: int):
        """Sort the first indices.

        Args:
          scores: [n].
          start: the first index among equal scores.
          ahead: so many are sorted at once.
        """
        self._scores, self._start = scores, start
        size, ahead = len(scores), min(ahead, len(scores))
        least = np.partition(scores, size - ahead)[size - ahead] if size else 0
        self._least, self._head = least, self._sorted(np.flatnonzero(scores >= least))

    def __iter__(self) -> Iterator[int]:
        yield from map(int, self._head)
        yield from map(int, self._sorted(np.flatnonzero(self._scores < self._least)))

    def first(self, count: int) -> set[int]:
        """Return the first ``count`` indices, at most those that are sorted."""
        return set(map(int, self._head[:count]))

    def _sorted(self, indices: np.ndarray) -> np.ndarray:
        turn = (indices - self._start) % max(len(self._scores), 1)
        return indices[np.lexsort((turn, -self._scores[indices]))]


class _AnswerFinder:
    """A test of whether an answer's words follow each other in a text, both normalized as for exact match."""

    def __init__(self):
        self._padded = lru_cache(_NORMALIZED_TEXTS)(lambda text: f" {normalize(text)} ")

    def traceable(self, answers: Iterable[str]) -> tuple[str, ...]:
        """Return the answers that can be looked for in texts, normalized."""
        return tuple(f" {words} " for words in map(normalize, answers) if words not in _UNTRACEABLE)

    def __call__(self, answers: tuple[str, ...], text: str) -> bool:
        """Return whether one of the answers stands in a text.

        Args:
          answers: as `traceable` gives them.
          text: not normalized.
        """
        return bool(answers) and any(answer in self._padded(text) for answer in answers)


def _texts(example: ImportedExample, titled: bool) -> tuple[list[str], list[str]]:
    """Return the example's gold documents and its others, each text once."""
    texts = [document.full(titled) for document in example.documents]
    gold = list(dict.fromkeys(text for text, is_gold in zip(texts, example.gold, strict=True) if is_gold))
    return gold, [text for text in dict.fromkeys(texts) if text not in gold]


def _hash(*what: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big")


def _shuffled(items: Sequence[str], rng: Random) -> list[str]:
    # random() alone keeps its values between versions of Python.
    order = sorted((rng.random(), i) for i in range(len(items)))
    return [items[i] for _, i in order]
