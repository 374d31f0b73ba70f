"""The conditions under which cases are answered: the method itself, controls, baselines, rankers; and their cases.

Results are named "<model>/<condition>". Controls show whether the memories are used: what is answered as well with
nothing, or with something wrong, in their place was not read from them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from clara_jax.memory_count import PROPORTIONAL, existing
from clara_jax.metrics.cases import Case, Suite

Document = TypeVar("Document")

NO_MEMORY, OTHER_MEMORY = "no_memory", "other_memory"
SHUFFLED, SHUFFLED_WITHIN, RANDOM_SELECTION = "shuffled_memory", "shuffled_within", "random_selection"
# What training measures beside a held-out value, and its words for it.
HELD_OUT_CONTROLS = {NO_MEMORY: "no memory", OTHER_MEMORY: "another's memory"}
PRUNED_RATE = 4  # tokens of a text for each that pruning keeps


@dataclasses.dataclass(frozen=True)
class Condition:
    """What the generator is given in place of a case's documents, or how they are ranked.

    Attributes:
      name: see `CONDITIONS`.
      description: one line for help texts and reports.
      control: expected to be worse than the model itself.
      fits: (suite, case, k) -> whether the condition applies to the case, and differs from the others there.
      first: the number of a suite's cases that are asked, at most; None for all.
    """

    name: str
    description: str
    control: bool
    fits: Callable[[Suite, Case, int], bool]
    first: int | None = None


def gold(case: Case) -> tuple[int, ...]:
    """Return the indices of the documents that contain the answer: the positives, or the only document."""
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


MEMORY_CONDITIONS = (
    Condition("clara", "memories of the documents that the query reasoner puts first, or of all", False, _always),
    Condition(NO_MEMORY, "the same prompt, the memories cut out", True, _always),
    Condition(OTHER_MEMORY, "memories of another case's documents", True, _always),
    Condition(SHUFFLED, "the same memory vectors in random order", True, _always),
    Condition(SHUFFLED_WITHIN, "the same memory vectors, those of each document in random order", True, _reads_several),
    Condition("gold_memory", "memories of the right documents alone", True, _knows_better),
    Condition(RANDOM_SELECTION, "memories of random candidates", True, _leaves_some),
)
CRAMMED = Condition("crammed", "memories that were optimised for their document, an upper bound", False, _always)
TEXT_CONDITIONS = (
    Condition("closed_book", "no documents", False, _asks),
    Condition("text_top1", "the text that BM25 puts first", False, _chooses),
    Condition("text_topk", "the k texts that BM25 puts first, or all", False, _chooses),
    Condition("text_oracle", "the right texts alone", False, _knows),
    Condition(
        "text_truncated", "the same texts as text_topk, each cut to as many tokens as a memory has", False, _asks
    ),
    Condition(
        "text_pruned",
        f"the same texts, of each the quarter of its tokens ({PRUNED_RATE}x) that the base model expects least",
        False,
        _asks,
    ),
)
ON_MEMORIES = frozenset(condition.name for condition in (*MEMORY_CONDITIONS, CRAMMED))
RANK_CONDITION = Condition("rank", "candidates in another ranker's order; nothing is answered", False, _ranks)
CONDITIONS = {
    condition.name: condition for condition in (*MEMORY_CONDITIONS, CRAMMED, *TEXT_CONDITIONS, RANK_CONDITION)
}


def cases_of(condition: Condition, suite: Suite, k: int) -> list[Case]:
    """Return the suite's cases that a condition applies to."""
    others = other_cases(suite) if condition.name == OTHER_MEMORY else None
    fitting = [case for case in suite.cases if condition.fits(suite, case, k) and (others is None or case.id in others)]
    return fitting[: condition.first]


def other_cases(suite: Suite) -> Mapping[str, Case]:
    """Return another case for each case, by id, see `disjoint_others`.

    Cases that share documents with every other are left out.
    """
    found = disjoint_others([frozenset(case.documents) for case in suite.cases])
    return {case.id: suite.cases[i] for case, i in zip(suite.cases, found, strict=True) if i is not None}


def disjoint_others(contents: Sequence[frozenset]) -> list[int | None]:
    """Return for each set of documents the index of another one that shares none with it; None where all do.

    The search begins `half_away` and goes on cyclically.
    """
    count, found = len(contents), []
    for number, (documents, start) in enumerate(zip(contents, half_away(count), strict=True)):
        away = ((start + i) % count for i in range(count))
        found.append(next((i for i in away if i != number and contents[i].isdisjoint(documents)), None))
    return found


def half_away(count: int) -> list[int]:
    """Return for each of a list's items the index of the one half of the list away, cyclically.

    Neighbours in a data set are often of one article, or two windows of one paragraph, and no control for each other.
    """
    return [(number + count // 2) % count for number in range(count)]


def draws(case: Case, seed: int) -> np.random.Generator:
    """Return the random generator of a case: the same in every run, whatever else is asked."""
    return np.random.default_rng((seed, zlib.crc32(case.id.encode("utf-8", "surrogatepass"))))


def repeated(documents: Sequence[Document], count: int) -> tuple[Document, ...]:
    """Return ``count`` documents, repeating them cyclically where they are too few."""
    return tuple(documents[i % len(documents)] for i in range(count))


def shuffled(memories: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return memories [K, M, E] with all of their vectors in random order; rows of zeros are none, and stay."""
    vectors = memories.reshape(-1, memories.shape[2]).copy()
    there = np.flatnonzero(existing(vectors, PROPORTIONAL))
    vectors[there] = vectors[rng.permutation(there)]
    return vectors.reshape(memories.shape)


def shuffled_within(memories: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return memories [K, M, E], K at least 1, with the vectors of each in random order."""
    return np.stack([memory[rng.permutation(len(memory))] for memory in memories])


def random_selection(case: Case, k: int, seed: int) -> tuple[int, ...]:
    """Return the indices of k of the case's documents, or of all, at random; see `draws`."""
    return tuple(draws(case, seed).permutation(len(case.documents))[:k].tolist())
