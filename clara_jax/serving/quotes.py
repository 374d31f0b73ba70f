"""The sentence of a source that an answer seems to come from: the one that shares the most with answer and question.

Words are compared, and nothing is understood: a quote helps a reader to check an answer, and proves nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from clara_jax.text.sentences import paragraph_ends, sentence_ends
from clara_jax.text.words import words

HALF = 1 / 2  # of the weight of the words, from which on a sentence is said to have them
_BLANK_LINE = re.compile(r"\n\s*\n")
_VISIBLE = re.compile(r"\S")


class Quote(NamedTuple):
    """A sentence of a text.

    Attributes:
      start: its first character.
      end: after its last one.
      answers: whether it has most of what the answer says beyond the question.
    """

    start: int
    end: int
    answers: bool


def quotes(texts: Sequence[str], question: str, answer: str) -> list[Quote | None]:
    """Return the sentence of each text that supports an answer best, None where none does.

    A word counts more the fewer of all sentences have it, so that "the" hardly counts; the words of the answer that are
    not in the question count twice as much as the question's. A sentence supports an answer that has half of what the
    answer says beyond the question, or half of the question, in these weights.

    Args:
      texts: the sources.
      question: that was asked.
      answer: that was given.
    """
    spans = [list(sentences(text)) for text in texts]
    read = [[set(words(text[start:end])) for start, end in of] for text, of in zip(texts, spans, strict=True)]
    common = Counter(word for of in read for sentence in of for word in sentence)
    count = max(1, sum(map(len, read)))

    def weight(chosen: Iterable[str], least: float = 1) -> float:
        return sum(math.log1p(count / max(least, common[word])) for word in chosen)

    asked, said = set(words(question)), set(words(answer))
    new = said - asked or said
    # A word of the answer that no sentence has speaks against them all; one of the question ("who") does not.
    all_asked, all_new = weight(asked) or 1.0, weight(new, 1 / 2) or 1.0
    found: list[Quote | None] = []
    for of, sets in zip(spans, read, strict=True):
        scores = [2 * weight(new & one) / all_new + weight(asked & one) / all_asked for one in sets]
        best = max(range(len(of)), key=scores.__getitem__, default=None)  # of equal ones the first
        if best is None:
            found.append(None)
            continue
        answers = weight(new & sets[best]) / all_new >= HALF
        about = weight(asked & sets[best]) / all_asked >= HALF
        found.append(Quote(*of[best], answers) if answers or about else None)
    return found


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each sentence of a text begins and ends; a heading and an item of a list are sentences, too."""
    block = 0
    for stop in [*(match.start() for match in _BLANK_LINE.finditer(text)), len(text)]:
        paragraph = block
        for paragraph_end in paragraph_ends(text[block:stop]):
            start = paragraph
            for length in sentence_ends(text[paragraph : block + paragraph_end]):
                end = paragraph + length
                visible = _VISIBLE.search(text, start, end)
                if visible is not None:
                    yield visible.start(), end
                start = end
            paragraph = block + paragraph_end
        block = stop
