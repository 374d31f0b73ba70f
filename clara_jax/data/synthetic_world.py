"""The invented world of the synthetic corpus: its sizes, its entities, their facts and the documents that state them.

An entity's name is a pair of words. The pairs of a split are whole diagonals of the table of all pairs, so every word
stands in every split equally often, and no pair stands in both: the entities of "eval" are unseen, their words are not.
Facts are drawn uniformly and independently of names, so without the document an answer is right once in ``values``
times; that is chance level. An answer never stands in its question, since names and values share no word.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

from clara_jax.data.lexicon import (
    KINDS,
    MAKER,
    MAKER_CLAUSES,
    MAKER_QUESTIONS,
    MOST_ATTRIBUTES,
    MOST_PHRASINGS,
    MOST_VALUES,
    NAME_WORDS,
    PERSON,
    WORK,
    word,
)
from clara_jax.errors import ClaraError

SPLITS = ("train", "eval")
CACHED = 2**17  # facts and documents kept, most of them used by many records


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The sizes and the difficulty of the corpus.

    Attributes:
      seed: of the world: names, facts, documents, questions.
      name_words: words that can stand at each of a name's two places.
      train_partners, eval_partners: second words that a first word is paired with, in each split; there are
        3 · name_words · partners entities, a third of them people, places and works each.
      train_records, eval_records: records of every stage.
      attributes: facts of a document.
      values: different values of an attribute; guessing is right once in as many times.
      phrasings: ways to state a fact and to ask for it; with one, all documents of a kind are built alike.
      candidates: documents of a record of end_to_end and retrieval.
      instruct_documents: documents of a record of instruct.
      hard_share: share of the other documents that are hard: they have a name word or a fact of the right one.
      complex_share: share of questions that need two documents, "Where was the maker of ... born?". Above 0 the
        documents of works name their makers.
      paraphrase_share: share of paraphrases in the records of scp.
    """

    seed: int = 0
    name_words: int = 64
    train_partners: int = 48
    eval_partners: int = 8
    train_records: int = 20000
    eval_records: int = 512
    attributes: int = 2
    values: int = 16
    phrasings: int = 2
    candidates: int = 8
    instruct_documents: int = 3
    hard_share: float = 0.5
    complex_share: float = 0.0
    paraphrase_share: float = 0.25

    def __post_init__(self):
        def check(field: str, condition: bool, rule: str):
            if not condition:
                raise ClaraError(f"config.synthetic.{field} is {getattr(self, field)!r}; {rule}")

        check("seed", self.seed >= 0, "it must be zero or positive")
        check("name_words", 4 <= self.name_words <= NAME_WORDS, f"it must be from 4 to {NAME_WORDS}")
        for split in SPLITS:  # a hard candidate needs another partner
            check(f"{split}_partners", getattr(self, f"{split}_partners") >= 2, "it must be at least 2")
            check(f"{split}_records", getattr(self, f"{split}_records") >= 1, "it must be at least 1")
        rule = f"with eval_partners {self.eval_partners} it may not exceed name_words {self.name_words}"
        check("train_partners", self.train_partners + self.eval_partners <= self.name_words, rule)
        for field, least, most in (
            ("attributes", 1, MOST_ATTRIBUTES),
            ("values", 2, MOST_VALUES),
            ("phrasings", 1, MOST_PHRASINGS),
        ):
            check(field, least <= getattr(self, field) <= most, f"it must be from {least} to {most}")
        # Hard candidates are of one kind: half of a split's are enough to find others among.
        most = self.name_words * min(self.train_partners, self.eval_partners) // 2
        gold = 2 if self.complex_share else 1
        for field in ("candidates", "instruct_documents"):
            rule = f"it must be from {gold} (the documents that answer) to {most} (half of a split's of a kind)"
            check(field, gold <= getattr(self, field) <= most, rule)
        for field in ("hard_share", "complex_share", "paraphrase_share"):
            check(field, 0 <= getattr(self, field) <= 1, "it must be from 0 to 1")

    def entities(self, split: str) -> int:
        """Return the number of a split's entities, which is that of its documents."""
        return len(KINDS) * self.name_words * (self.train_partners if split == "train" else self.eval_partners)


class SyntheticDocument(NamedTuple):
    """A document of the corpus; ``id`` is its entity's name."""

    id: str
    text: str


class SyntheticQuestion(NamedTuple):
    """A question about one document.

    Attributes:
      fact: the attribute that is asked for, e.g. "town".
      place, places: where the document states it: as which of its facts, from 0, and of how many.
    """

    document: SyntheticDocument
    question: str
    answer: str
    fact: str
    place: int
    places: int


class Entity(NamedTuple):
    """A pair of name words: the first, and the diagonal of the table of pairs that fixes the second."""

    kind: int
    first: int
    diagonal: int


class World:
    """The facts of the invented world, by hashing: only the order of the diagonals is stored."""

    def __init__(self, config: SyntheticConfig):
        self.config = config
        partners = config.train_partners + config.eval_partners
        self.spans = {"train": range(config.train_partners), "eval": range(config.train_partners, partners)}
        self.facts, self.document = lru_cache(CACHED)(self.facts), lru_cache(CACHED)(self.document)
        self.shifts = [shuffled(range(config.name_words), self.random("diagonals", kind)) for kind in range(len(KINDS))]

    def random(self, *what: object) -> Random:
        """Return a generator for one purpose; only its ``random()`` is used, whose values Python promises to keep."""
        return Random(repr((self.config.seed, *what)))

    # --- entities ---

    def entity(self, split: str, number: int, kind: int | None = None) -> Entity:
        """Return an entity of a split by number, of all kinds in turn or of one."""
        if kind is None:
            number, kind = divmod(number, len(KINDS))
        diagonal, first = divmod(number, self.config.name_words)
        return Entity(kind, first, self.spans[split][diagonal])

    def draw(self, rng: Random, split: str, kind: int | None = None) -> Entity:
        """Draw an entity of a split, of any kind or of one."""
        count = self.config.entities(split)
        return self.entity(split, below(rng, count if kind is None else count // len(KINDS)), kind)

    def second(self, entity: Entity) -> int:
        """Return the index of the second word of an entity's name."""
        return (entity.first + self.shifts[entity.kind][entity.diagonal]) % self.config.name_words

    def name(self, entity: Entity) -> str:
        """Return an entity's name, two words."""
        return f"{word(entity.kind, 0, entity.first)} {word(entity.kind, 1, self.second(entity))}"

    def facts(self, entity: Entity) -> tuple[str, ...]:
        """Return the values of an entity's attributes, in their order, and the maker's name of a work that has one."""
        rng = self.random("facts", *entity)
        kind = KINDS[entity.kind]
        facts = [fact.values[below(rng, self.config.values)] for fact in kind.facts[: self.config.attributes]]
        return (*facts, self.name(self.maker(entity))) if self.has_maker(entity) else tuple(facts)

    def has_maker(self, entity: Entity) -> bool:
        """Return whether an entity's document names its maker."""
        return entity.kind == WORK and self.config.complex_share > 0

    def maker(self, work: Entity) -> Entity:
        """Return the person who made a work."""
        split = "train" if work.diagonal in self.spans["train"] else "eval"
        return self.draw(self.random("maker", *work), split, PERSON)

    # --- texts ---

    def document(self, entity: Entity, rendering: int = 0) -> str:
        """Return an entity's document; other renderings state the same facts in other words and another order."""
        rng, kind = self.random("document", *entity), KINDS[entity.kind]
        sentences = [fact.clauses for fact in kind.facts[: self.config.attributes]]
        sentences += [MAKER_CLAUSES] * self.has_maker(entity)
        clauses = [
            choices[(below(rng, self.config.phrasings) + rendering) % self.config.phrasings].format(value)
            for choices, value in zip(sentences, self.facts(entity), strict=True)
        ]
        head = [self.name(entity)]
        if self.config.phrasings > 1:
            turn = (below(rng, len(clauses)) + rendering) % len(clauses)
            clauses = clauses[turn:] + clauses[:turn]
            if len(clauses) > 1 and rng.random() < 0.5:
                head = [f"{head[0]} {clauses.pop(0)}.", kind.pronoun]
        return f"{' '.join(head)} {_joined(clauses)}."

    def question(self, rng: Random, entity: Entity, fact: int, name: str | None = None) -> str:
        """Return a question for a fact of an entity, under the entity's name unless another is given."""
        facts = KINDS[entity.kind].facts[: self.config.attributes]
        choices = facts[fact].questions if fact < len(facts) else MAKER_QUESTIONS
        return choices[below(rng, self.config.phrasings)].format(name or self.name(entity))

    def asked(self, entity: Entity) -> Iterator[SyntheticQuestion]:
        """Yield all questions about an entity, in the order of its facts."""
        rng, document = self.random("asked", *entity), SyntheticDocument(self.name(entity), self.document(entity))
        facts = self.facts(entity)
        stated = sorted(facts, key=lambda fact: _word_place(document.text, fact))
        names = [*(fact.name for fact in KINDS[entity.kind].facts[: self.config.attributes]), MAKER]
        for i, answer in enumerate(facts):
            question = self.question(rng, entity, i)
            yield SyntheticQuestion(document, question, answer, names[i], stated.index(answer), len(facts))


def _joined(clauses: Sequence[str]) -> str:
    """Return clauses joined as "a", "a and b" or "a, b and c"."""
    *most, last = clauses
    return f"{', '.join(most)} and {last}" if most else last


def _word_place(text: str, word: str) -> int:
    """Return where a word begins in a text that holds it, as a whole word: names end in "song"."""
    match = re.search(rf"\b{word}\b", text)
    assert match is not None  # a document states all of its facts
    return match.start()


def below(rng: Random, count: int) -> int:
    """Draw a whole number from 0 up to, but not including, a count."""
    return int(rng.random() * count)


def shuffled(items: Sequence, rng: Random) -> list:
    """Return items in an order that is drawn."""
    order = sorted((rng.random(), i) for i in range(len(items)))
    return [items[i] for _, i in order]
