"""Cases over altered documents: a needle is a fact that is inserted, a counterfactual an answer that is replaced.

*Needles*: one sentence with an invented fact is inserted into a document, and a question asks for it. What a memory
keeps may depend on the position of a fact in the document and on its kind. Documents, facts and subjects are drawn anew
for every case, so that cases are independent; every position meets every kind of fact equally often.

*Counterfactuals*: the answer's entity is replaced in the document by another one; does the answer follow? A model that
answers from its parametric knowledge, or from the question alone, keeps the original answer; one that reads its
document gives the new one (entity substitution, Longpre et al. 2021, "Entity-Based Knowledge Conflicts in Question
Answering"). The substitute is the answer of another case of the same suite and of the same kind, so that it fits and
guessing does not find it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, product
from random import Random
from typing import NamedTuple, TypeVar

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.drawn import drawn
from clara_jax.metrics.answers import cover_match
from clara_jax.metrics.answers import words as words_of
from clara_jax.metrics.cases import Case
from clara_jax.metrics.controls import draws
from clara_jax.text.facts import names, numbers
from clara_jax.text.sentences import sentence_ends

POSITIONS = {"beginning": 0.0, "first third": 1 / 3, "middle": 1 / 2, "last third": 2 / 3, "end": 1.0}
NEEDLE_WORDS = 150  # about 200 tokens: below the paper's longest document (256)
NEEDLE_ROUNDS = 20  # every position with every kind of fact as often, 300 cases
LEAST_SHARE = 0.5  # of the words allowed; in a shorter document all positions are the same
SENTENCE_WORDS = 12  # of an inserted sentence, at most
LONGEST_ANSWER = 6  # words of an answer that stands for an entity
TRIED = 200  # candidate answers that are drawn for a case, at most

_STEMS = "Al Bren Cor Dun Els Far Gar Hol Ivel Jar Kes Lor Mar Nor Orv Pel Quin Ros Sel Tor Und Vel Wen Yar".split()
_ENDINGS = "brook combe dray fold garth hurst lock mere nock stow thorpe wick".split()
_FORENAMES = (
    "Agnes Bruno Clara Dieter Edith Felix Greta Hugo Irene Jonas Karin Lewis Miriam Nils Olga Pavel Rita Simon Thea "
    "Ulrich Vera Walter Yvonne Zora"
).split()
_SURNAMES = (
    "Abbott Becker Cardoso Dalgaard Eklund Farkas Gruber Hollis Ivanov Jensen Kovacs Lindqvist Moreau Novak Okafor "
    "Pereira Quist Rossi Sandoval Tanner Urban Vidal Whitlock Zeller"
).split()
_MONTHS = ("January February March April May June July August September October November December").split()
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

_YEAR = re.compile(r"1\d{3}|20\d{2}")
_ASKS = re.compile(r"\b(who|whom|whose|when|where|how (?:many|much|long|old|far)|which \w+|what \w+|why|how)\b")

Item = TypeVar("Item")


class _Fact(NamedTuple):
    """A kind of fact.

    Attributes:
      draw: draws a value, as all its spellings, the document's first.
      templates: sentences with "{subject}" and "{value}", each with a question that asks for the value.
    """

    draw: Callable[[Random], tuple[str, ...]]
    templates: tuple[tuple[str, str], ...]


def number_spellings(number: int) -> tuple[str, ...]:
    """Return the spellings of a whole number from 0 to 999, in digits and in English words.

    Both are there with and without hyphens, since normalization would make one word of two, and with and without the
    British "and".
    """
    hundreds, rest = divmod(number, 100)
    if rest < 20:
        below = (_ONES[rest],)
    else:
        tens, ones = _TENS[rest // 10 - 2], rest % 10
        below = (f"{tens}-{_ONES[ones]}", f"{tens} {_ONES[ones]}") if ones else (tens,)
    if hundreds:
        head = f"{_ONES[hundreds]} hundred"
        below = tuple(f"{head}{link}{words}" for link in (" and ", " ") for words in below) if rest else (head,)
    return (str(number), *below)


def date_spellings(day: int, month: int, year: int) -> tuple[str, ...]:
    """Return the spellings of a date in English, and in figures with the year first; a month from 1 to 12."""
    name = _MONTHS[month - 1]
    ending = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return (
        f"{day} {name} {year}",
        f"{name} {day}, {year}",
        f"{day}{ending} {name} {year}",
        f"{day}{ending} of {name} {year}",
        f"{name} {day}{ending}, {year}",
        f"{year}-{month:02}-{day:02}",
    )


FACTS = {
    "name": _Fact(
        lambda rng: (f"{_one(rng, _FORENAMES)} {_one(rng, _SURNAMES)}",),
        (
            ("The {subject} lighthouse was kept by {value}.", "Who kept the {subject} lighthouse?"),
            ("The architect of the {subject} bridge was {value}.", "Who was the architect of the {subject} bridge?"),
            ("The ferry at {subject} belongs to {value}.", "To whom does the ferry at {subject} belong?"),
            ("In {subject} the school is led by {value}.", "Who leads the school in {subject}?"),
        ),
    ),
    "number": _Fact(
        lambda rng: number_spellings(_one(rng, range(11, 1000))),
        (
            ("The choir of {subject} counts {value} singers.", "How many singers does the choir of {subject} count?"),
            ("The {subject} tower has {value} steps.", "How many steps does the {subject} tower have?"),
            ("There are {value} maps in the {subject} library.", "How many maps are there in the {subject} library?"),
            ("The orchard at {subject} holds {value} trees.", "How many trees does the orchard at {subject} hold?"),
        ),
    ),
    "date": _Fact(
        lambda rng: date_spellings(_one(rng, range(1, 29)), _one(rng, range(1, 13)), _one(rng, range(1700, 2020))),
        (
            ("The {subject} canal was opened on {value}.", "On which date was the {subject} canal opened?"),
            ("The bell of {subject} was cast on {value}.", "On which date was the bell of {subject} cast?"),
            ("A storm broke the {subject} pier on {value}.", "On which date did a storm break the {subject} pier?"),
            ("The treaty of {subject} was signed on {value}.", "On which date was the treaty of {subject} signed?"),
        ),
    ),
}


def needle_cases(
    documents: Iterable[str], seed: int, limit: int | None = None, words: int = NEEDLE_WORDS
) -> tuple[Case, ...]:
    """Return questions for an inserted sentence.

    Tags: "position", one of `POSITIONS`, the share of the document's words before the sentence, as near as sentence
    boundaries allow; and "fact", "name", "number" or "date". Neither the value nor the subject occurs elsewhere in the
    document. References are all spellings of the value.

    Args:
      documents: English; all white space becomes one space, and the first of several lines, mostly a title, is left
        out. They are taken in a random order, cyclically; those that have too few sentences for the positions to
        differ, or less than half the words, are skipped.
      seed: of everything that is drawn. The cases of a smaller ``limit`` are the first ones of a larger.
      limit: cases at most, rounded down to whole rounds of 15, but at least one; never more than 20 rounds.
      words: longest document, the sentence included; longer documents lose their last sentences.

    Raises:
      ClaraError: no document is suitable.
    """
    cells = list(product(POSITIONS, FACTS))
    rounds = NEEDLE_ROUNDS if limit is None else min(max(limit // len(cells), 1), NEEDLE_ROUNDS)
    fillers = _cycle(_fillers(documents, seed, words), words)
    return tuple(_case(cell, number, next(fillers), seed) for number in range(rounds) for cell in cells)


def _case(cell: tuple[str, str], number: int, filler: _Filler, seed: int) -> Case:
    position, fact = cell
    rng = _random(seed, "needle", number, position, fact)
    draw, templates = FACTS[fact]
    while True:
        subject, values = _one(rng, _STEMS) + _one(rng, _ENDINGS), draw(rng)
        if not cover_match(filler.text, (subject, *values)):
            break
    sentence, question = _one(rng, templates)
    at = filler.borders[position]
    parts = (filler.text[:at].strip(), sentence.format(subject=subject, value=values[0]), filler.text[at:].strip())
    document = " ".join(part for part in parts if part)
    tags = {"position": position, "fact": fact}
    name = f"{position}, {fact}, {number + 1}"
    return Case(name, "question", question.format(subject=subject), (document,), values, (0,), tags)


class _Filler(NamedTuple):
    """A text, and the character offset of the sentence boundary for every position."""

    text: str
    borders: dict[str, int]


def _fillers(documents: Iterable[str], seed: int, words: int) -> Iterator[_Filler]:
    rng = _random(seed, "fillers")
    unique = list(dict.fromkeys(documents))
    for _, document in sorted((rng.random(), document) for document in unique):
        filler = _filler(document, words)
        if filler is not None:
            yield filler


def _filler(document: str, words: int) -> _Filler | None:
    """Return the document's first sentences; None where they are not suitable."""
    text = " ".join((document.partition("\n")[2] or document).split())
    least, most = LEAST_SHARE * words, words - SENTENCE_WORDS
    if len(text.split()) < least:
        return None
    ends = [0, *sentence_ends(text)]
    counts = [len(text[:end].split()) for end in ends]
    kept = sum(count <= most for count in counts)
    total = counts[kept - 1]
    nearest = [min(range(kept), key=lambda i: abs(counts[i] - share * total)) for share in POSITIONS.values()]
    if total < least or len(set(nearest)) < len(nearest):
        return None
    return _Filler(text[: ends[kept - 1]], {name: ends[i] for name, i in zip(POSITIONS, nearest, strict=True)})


def _cycle(fillers: Iterator[_Filler], words: int) -> Iterator[_Filler]:
    found = []
    for filler in fillers:
        found.append(filler)
        yield filler
    if not found:
        raise ClaraError(
            f"needle: no document has {LEAST_SHARE * words:.0f} words and enough sentences; take longer documents, or "
            "a smaller size, as needle/100"
        )
    while True:
        yield from found


def _random(*what: object) -> Random:
    """Return a generator; only its ``random()`` is used, whose values are stable across versions of Python."""
    return Random(repr(what))


def _one(rng: Random, items: Sequence[Item]) -> Item:
    return items[int(rng.random() * len(items))]


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
      limit: cases at most, see `clara_jax.input_pipeline.drawn`.
    """
    values = [_value(case) for case in cases]
    pools: dict[tuple[str, str], list[str]] = {}
    for value in values:
        if value is not None:
            pools.setdefault(value.kind, []).append(value.text)
    pools = {kind: sorted(set(pool)) for kind, pool in pools.items()}  # whatever the order of the cases
    pairs = list(zip(cases, values, strict=True))
    asked = pairs if limit is None else drawn(pairs, len(pairs))  # which are changed is not known before
    changed = (_changed(case, pools[value.kind], seed) for case, value in asked if value)
    return tuple(islice((case for case in changed if case is not None), limit))


def _value(case: Case) -> _Value | None:
    """Return the case's first reference and what kind it is; None where it is no entity."""
    if case.kind != "question" or not case.references:
        return None
    text = case.references[0].strip()
    if not 1 <= len(words_of(text)) <= LONGEST_ANSWER:
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
    if old & set(words_of(case.question)) or not any(_places(text, case.references) for text in case.documents):
        return None
    taken = {word for text in (*case.documents, case.question) for word in words_of(text)} | old
    drawn = draws(case, seed).permutation(len(pool))[:TRIED]
    others = (pool[int(i)] for i in drawn)
    new = next((answer for answer in others if not taken & set(_identifying(answer))), None)
    if new is None:
        return None
    documents = tuple(_places(text, case.references, new) or text for text in case.documents)
    if old & {word for text in documents for word in words_of(text)}:
        return None
    return Case(
        case.id, case.kind, case.question, documents, (new,), case.positives, case.tags, instead_of=case.references
    )


def _identifying(text: str) -> list[str]:
    """Return the words that identify an answer: capitalized ones and numbers, or all where there are none."""
    identifying = [part for part in text.split() if part != part.lower() or any(map(str.isdigit, part))]
    return words_of(" ".join(identifying) or text)


def _places(text: str, answers: Sequence[str], new: str | None = None) -> str | None:
    """Return the text with every answer in it replaced, the longest first; None where there is none."""
    longest = sorted({answer.strip() for answer in answers if answer.strip()}, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in longest))
    replaced, count = pattern.subn(lambda match: new if new is not None else match[0], text)
    return replaced if count else None
