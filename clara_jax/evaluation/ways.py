"""The ways in which a case can be dealt with: the method itself, controls, text, rankers; and which cases each takes.

A system is a model and a way, "<model>/<way>". Controls say what the memories are worth: what a way with nothing, or
with the wrong thing, in their place answers as well was not read from them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from clara_jax.evaluation.cases import Case, Suite

Document = TypeVar("Document")

PRUNED_RATE = 4  # tokens of a text for each that pruning keeps


@dataclasses.dataclass(frozen=True)
class Way:
    """How documents come before the generator, or are ranked.

    Attributes:
      name: see `WAYS`.
      does: for people.
      control: it is there to be worse than the model itself.
      fits: (suite, case, k) -> whether the case can be dealt with so, and differently from another way.
      first: so many of a suite's cases at most; None for all.
    """

    name: str
    does: str
    control: bool
    fits: Callable[[Suite, Case, int], bool]
    first: int | None = None


def gold(case: Case) -> tuple[int, ...]:
    """The documents that an answer is to be found in: the positive ones, or the only one."""
    return case.positives or ((0,) if len(case.documents) == 1 else ())


def _always(suite: Suite, case: Case, k: int) -> bool:
    return True


def _asks(suite: Suite, case: Case, k: int) -> bool:
    return case.kind == "question"


def _chooses(suite: Suite, case: Case, k: int) -> bool:
    return case.kind == "question" and len(case.documents) > 1


def _knows(suite: Suite, case: Case, k: int) -> bool:
    return case.kind != "autoencode" and bool(gold(case))  # a text in the prompt would only be copied


def _knows_better(suite: Suite, case: Case, k: int) -> bool:
    return bool(case.positives) and len(case.positives) < len(case.documents)


def _reads_several(suite: Suite, case: Case, k: int) -> bool:
    return len(case.documents) > 1 and not (suite.ranked and k == 1)


def _leaves_some(suite: Suite, case: Case, k: int) -> bool:
    return suite.ranked and len(case.documents) > k


def _ranks(suite: Suite, case: Case, k: int) -> bool:
    return suite.ranked


MEMORY_WAYS = (
    Way("clara", "memories of the documents that the query reasoner puts first, or of all", False, _always),
    Way("no_memory", "the same prompt, the memories cut out", True, _always),
    Way("other_memory", "memories of another case's documents", True, _always),
    Way("shuffled_memory", "the same memory vectors in random order", True, _always),
    Way("shuffled_within", "the same memory vectors, those of each document in random order", True, _reads_several),
    Way("gold_memory", "memories of the right documents alone", True, _knows_better),
    Way("random_selection", "memories of random candidates", True, _leaves_some),
)
CRAMMED = Way("crammed", "memories that were optimised for their document, an upper bound", False, _always)
TEXT_WAYS = (
    Way("closed_book", "no documents", False, _asks),
    Way("text_top1", "the text that BM25 puts first", False, _chooses),
    Way("text_topk", "the k texts that BM25 puts first, or all", False, _chooses),
    Way("text_oracle", "the right texts alone", False, _knows),
    Way("text_truncated", "the same texts as text_topk, each cut to as many tokens as a memory has", False, _asks),
    Way(
        "text_pruned",
        f"the same texts, of each the quarter of its tokens ({PRUNED_RATE}x) that the base model expects least",
        False,
        _asks,
    ),
)
REMEMBERING = frozenset(way.name for way in (*MEMORY_WAYS, CRAMMED))
RANK_WAY = Way("rank", "candidates in another ranker's order; nothing is answered", False, _ranks)
WAYS = {way.name: way for way in (*MEMORY_WAYS, CRAMMED, *TEXT_WAYS, RANK_WAY)}


def cases_of(way: Way, suite: Suite, k: int) -> list[Case]:
    """The suite's cases that a way takes."""
    others = other_cases(suite) if way.name == "other_memory" else None
    fitting = [case for case in suite.cases if way.fits(suite, case, k) and (others is None or case.id in others)]
    return fitting[: way.first]


def other_cases(suite: Suite) -> Mapping[str, Case]:
    """For each case another one, see `disjoint_others`. Cases that share documents with every other are left out."""
    found = disjoint_others([frozenset(case.documents) for case in suite.cases])
    return {case.id: suite.cases[i] for case, i in zip(suite.cases, found, strict=True) if i is not None}


def disjoint_others(contents: Sequence[frozenset]) -> list[int | None]:
    """Return for each set of documents the place of another one that shares none with it; None where all do.

    The search begins half of the list away and goes on cyclically: what stands next to one another in a data set is
    often of one article, or two windows of one paragraph, and no control for each other.
    """
    count, found = len(contents), []
    for number, own in enumerate(contents):
        away = ((number + count // 2 + i) % count for i in range(count))
        found.append(next((i for i in away if i != number and contents[i].isdisjoint(own)), None))
    return found


def draws(case: Case, seed: int) -> np.random.Generator:
    """Random numbers of a case: the same in every run, whatever else is asked."""
    return np.random.default_rng((seed, zlib.crc32(case.id.encode("utf-8", "surrogatepass"))))


def repeated(documents: Sequence[Document], count: int) -> tuple[Document, ...]:
    """So many documents, the same ones again where they are too few."""
    return tuple(documents[i % len(documents)] for i in range(count))
