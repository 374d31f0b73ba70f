"""Duplicates: questions that ask what another one asks, of the same document or of an evaluation (decontamination).

Training data must not repeat the questions of evaluations. A question matches if its words are those of an
evaluation's question in the same order, or if the sets of their words are nearly the same. At 0.8, one of 28,572
training questions of SQuAD matches a development question of other articles, and it does ask the same. From 0.75 on
twelve do, eleven of them by their form alone ("What does the acronym ... stand for?").

The index is exact. Sets of n and m words that are similar enough have a word in common among the n - t n + 1 rarest of
one and the m - t m + 1 rarest of the other, t being the threshold, and m is from t n to n / t (prefix filter: Bayardo,
Ma and Srikant 2007).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import json_kind, read_json_lines
from clara_jax.synthesis.checks import YES_NO
from clara_jax.text.words import in_a_row, jaccard, words, written_words

NEAR = 0.8  # Jaccard similarity of the sets of words
ROUNDING = 1e-9


def duplicate(question: str, answer: str, earlier: Sequence[tuple[str, str]]) -> int | None:
    """Return the index of the first earlier (question, answer) that asks the same of the same document, else None.

    Two questions ask the same if their words are the same in the same order, whatever the answers; or if their sets of
    words are nearly the same (Jaccard similarity `NEAR`) and one answer is part of the other and is not yes or no,
    unless each has a capitalized word or a number that the other lacks: then they ask about two things. By the second
    rule 43 of the 7,861 pairs of the published sample of CLaRa's data are duplicates, about three quarters of them
    rightly; from 0.7 to 0.8 half would be.
    """
    asked, answered = words(question), in_a_row(words(answer))
    open_ended = YES_NO.match(answer.strip()) is None
    for index, (other, other_answer) in enumerate(earlier):
        found = words(other)
        if found == asked:
            return index
        near = open_ended and jaccard(set(asked), set(found)) >= NEAR
        if near and not _about_others(question, other):
            other_answered = in_a_row(words(other_answer))
            if answered in other_answered or other_answered in answered:
                return index
    return None


class HeldOutMatch(NamedTuple):
    """A question of an evaluation that another question repeats.

    Attributes:
      where: "file.jsonl:17".
      question: verbatim.
      similarity: 1.0 where the words are the same in the same order, else Jaccard similarity of their sets.
    """

    where: str
    question: str
    similarity: float


class HeldOutQuestions:
    """An index of the questions of evaluations.

    Args:
      questions: ("file.jsonl:17", question) of each.
    """

    def __init__(self, questions: Iterable[tuple[str, str]]):
        self._questions: list[tuple[str, str]] = []
        self._equal: dict[str, int] = {}
        sets = []
        for where, question in questions:
            found = words(question)
            if found and self._equal.setdefault(in_a_row(found), len(sets)) == len(sets):
                self._questions.append((where, question))
                sets.append(frozenset(found))
        self._sets = sets
        self._frequency = Counter(word for members in sets for word in members)
        self._having: defaultdict[tuple[str, int], list[int]] = defaultdict(list)  # by a rare word and the set's size
        for index, members in enumerate(sets):
            for word in self._rarest(members):
                self._having[word, len(members)].append(index)

    @classmethod
    def from_files(cls, paths: Sequence[str | os.PathLike]) -> HeldOutQuestions:
        """Index the questions of JSONL files: "question" of every record, a string or a list.

        Records of paraphrases have none.

        Raises:
          ClaraError: a file that cannot be read or holds no question, a line whose "question" is missing or is neither
            text nor a list of texts.
        """
        return cls(pair for path in paths for pair in _questions(os.fspath(path)))

    def __len__(self) -> int:
        """Return the number of distinct questions."""
        return len(self._sets)

    @property
    def digest(self) -> str:
        """A digest of all questions, which is part of the journal's settings."""
        return hashlib.sha256("\n".join(self._equal).encode()).hexdigest()[:16]

    def find(self, question: str) -> HeldOutMatch | None:
        """Return the most similar question of an evaluation (the first of equals), None where none is similar."""
        found = words(question)
        equal = self._equal.get(in_a_row(found))
        if equal is not None:
            return HeldOutMatch(*self._questions[equal], 1.0)
        members = frozenset(found)
        sizes = range(math.ceil(len(members) * NEAR - ROUNDING), math.floor(len(members) / NEAR + ROUNDING) + 1)
        places = itertools.product(self._rarest(members), sizes)
        candidates = {index for place in places for index in self._having.get(place, ())}
        near = [(-jaccard(members, self._sets[index]), index) for index in candidates]
        similarity, index = min(near, default=(0.0, -1))
        return HeldOutMatch(*self._questions[index], -similarity) if -similarity >= NEAR else None

    def _rarest(self, members: frozenset[str]) -> list[str]:
        """Return the rarest words of a set: every similar set shares one of them (prefix filter)."""
        count = math.floor(len(members) * (1 - NEAR) + ROUNDING) + 1
        return sorted(members, key=lambda word: (self._frequency[word], word))[:count]


def _questions(path: str) -> Iterator[tuple[str, str]]:
    some = False
    for where, fields in read_json_lines(path):
        for question in _asked(fields, where):
            some = True
            yield where, question
    if not some:
        raise ClaraError(f"{path}: the file holds no question; name files that an evaluation reads")


def _asked(fields: Any, where: str) -> list[str]:
    if not isinstance(fields, Mapping):
        raise ClaraError(f"{where}: the line holds {json_kind(fields)}; each line must be a JSON object")
    if fields.get("data_type") == "paraphrase":
        return []
    value = fields.get("question")
    if value is None:
        raise ClaraError(f'{where}: "question" is missing')
    questions = value if isinstance(value, list) else [value]
    for question in questions:
        if not isinstance(question, str):
            raise ClaraError(f'{where}: "question" holds {json_kind(question)}; it must be a string or a list of them')
    return questions


def _about_others(question: str, other: str) -> bool:
    """Return whether each question has a capitalized word or a number that the other lacks."""
    a, b = (
        {word for word in written_words(text)[1:] if word[0].isupper() or word[0].isdigit()}
        for text in (question, other)
    )
    return bool(a - b and b - a)
