"""Counterfactual cases: the answer's entity is replaced in the document by another one; does the answer follow?

A model that answers from its parametric knowledge, or from the question alone, keeps the original answer; one that
reads its document gives the new one (entity substitution, Longpre et al. 2021, "Entity-Based Knowledge Conflicts in
Question Answering"). The substitute is the answer of another case of the same suite and of the same kind, so that it
fits and guessing does not find it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clara_jax.metrics.answers import words
from clara_jax.metrics.cases import Case
from clara_jax.metrics.controls import draws
from clara_jax.text.facts import names, numbers

LONGEST = 6  # words of an answer that stands for an entity
TRIED = 200  # candidate answers that are drawn for a case, at most
_YEAR = re.compile(r"1\d{3}|20\d{2}")
_ASKS = re.compile(r"\b(who|whom|whose|when|where|how (?:many|much|long|old|far)|which \w+|what \w+|why|how)\b")


class _Value(NamedTuple):
    """An answer that may stand for another of its kind."""

    text: str
    kind: tuple[str, str]


def counterfactual_cases(cases: Sequence[Case], seed: int, limit: int | None = None) -> tuple[Case, ...]:
    """Return the cases whose answer is a name, a number or a date in the documents, with another one in its place.

    All references are replaced wherever they occur in the documents, at word boundaries. A case is left out where its
    answer is none of these, where a capitalized word or a number of it is left over in the documents or is in the
    question, or where no other case of the suite has an answer of the same kind (what it is, and how it is asked for;
    ``tags["fact"]`` where there are any) that shares no such word with documents, question and answer. Of the new case
    the new answer is the only reference, and the old ones are ``instead_of``.

    Args:
      cases: of one suite.
      seed: of the draws; those of a case do not depend on others of the same pool.
      limit: cases at most.
    """
    values = [_value(case) for case in cases]
    pools: dict[tuple[str, str], list[str]] = {}
    for value in values:
        if value is not None:
            pools.setdefault(value.kind, []).append(value.text)
    pools = {kind: sorted(set(pool)) for kind, pool in pools.items()}  # whatever the order of the cases
    changed = (_changed(case, pools[value.kind], seed) for case, value in zip(cases, values, strict=True) if value)
    return tuple(_first((case for case in changed if case is not None), limit))


def _first(cases: Iterator[Case], limit: int | None) -> Iterator[Case]:
    for number, case in enumerate(cases):
        if number == limit:
            return
        yield case


def _value(case: Case) -> _Value | None:
    """Return the case's first reference and what kind it is; None where it is no entity."""
    if case.kind != "question" or not case.references:
        return None
    text = case.references[0].strip()
    if not 1 <= len(words(text)) <= LONGEST:
        return None
    if "fact" in case.tags:
        return _Value(text, ("", case.tags["fact"]))
    what = _what(text)
    asks = _ASKS.search(case.question.lower())
    return None if what is None else _Value(text, (what, asks[1] if asks else ""))


def _what(text: str) -> str | None:
    """Return what kind of entity a text is, None where it is none.

    Kinds are a year, a number, several numbers (a date is that, too), an amount of something, and a name.
    """
    found = numbers(text)
    if _YEAR.fullmatch(text):
        return "year"
    if found:
        unit = re.sub(r"[^a-z%$£€]", "", text.lower())
        return "numbers" if len(found) > 1 else f"amount of {unit}" if unit else "number"
    # At the start of a sentence, every word has a capital.
    return "name" if text[:1].isupper() and names(f"It is {text}") else None


def _changed(case: Case, pool: Sequence[str], seed: int) -> Case | None:
    old = {word for text in case.references for word in _identifying(text)}
    if old & set(words(case.question)) or not any(_places(text, case.references) for text in case.documents):
        return None
    taken = {word for text in (*case.documents, case.question) for word in words(text)} | old
    drawn = draws(case, seed).permutation(len(pool))[:TRIED]
    others = (pool[int(i)] for i in drawn)
    new = next((answer for answer in others if not taken & set(_identifying(answer))), None)
    if new is None:
        return None
    documents = tuple(_places(text, case.references, new) or text for text in case.documents)
    if old & {word for text in documents for word in words(text)}:
        return None
    return Case(
        case.id, case.kind, case.question, documents, (new,), case.positives, case.tags, instead_of=case.references
    )


def _identifying(text: str) -> list[str]:
    """Return the words that identify an answer: capitalized ones and numbers, or all where there are none."""
    identifying = [part for part in text.split() if part != part.lower() or any(map(str.isdigit, part))]
    return words(" ".join(identifying) or text)


def _places(text: str, answers: Sequence[str], new: str | None = None) -> str | None:
    """Return the text with every answer in it replaced, the longest first; None where there is none."""
    longest = sorted({answer.strip() for answer in answers if answer.strip()}, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in longest))
    replaced, count = pattern.subn(lambda match: new if new is not None else match[0], text)
    return replaced if count else None
