"""The invented world of the synthetic corpus: its sizes, its entities, their facts and the documents that state them.

An entity's name is a pair of words. The pairs of a split are whole diagonals of the table of all pairs, so every word
stands in every split equally often, and no pair stands in both: the entities of "eval" are unseen, their words are not.
Facts are drawn uniformly and independently of names, so without the document an answer is right once in
``attribute_values`` times; that is chance level. An answer never stands in its question, since names and values share
no word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Annotated, NamedTuple

from clara_jax.config_checks import Count, Fraction, Natural, Whole, check, group_paths, require, section
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

SPLITS = ("train", "eval")
CACHED = 2**17  # facts and documents kept, most of them used by many records


SYNTHETIC_NAMES = group_paths(
    {
        "world": "name_words train_partners eval_partners attributes values:attribute_values phrasings",
        "records": (
            "train_records:train eval_records:eval candidates instruct_documents hard_share complex_share "
            "paraphrase_share"
        ),
    }
)


@section("synthetic.world")
class SyntheticWorldConfig:
    """The entities of the synthetic corpus, and what its documents say of them."""

    name_words: Annotated[Whole, f"a whole number from 4 to {NAME_WORDS}"] = 64
    """Words that can stand at each of a name's two places."""
    train_partners: Annotated[Whole, "a whole number, at least 2"] = 48
    """Second words that a first word is paired with in training; there are 3 · `name_words` · partners entities, a
    third of them people, places and works each."""
    eval_partners: Annotated[Whole, "a whole number, at least 2"] = 8
    """The same of held-out entities; with `train_partners` no more than `name_words`."""
    attributes: Annotated[Whole, f"a whole number from 1 to {MOST_ATTRIBUTES}"] = 2
    """Facts of a document."""
    attribute_values: Annotated[Whole, f"a whole number from 2 to {MOST_VALUES}"] = 16
    """Different values of an attribute; guessing is right once in as many times."""
    phrasings: Annotated[Whole, f"a whole number from 1 to {MOST_PHRASINGS}"] = 2
    """Ways to state a fact and to ask for it; with one, all documents of a kind are built alike."""

    def __post_init__(self):
        for field, least, most in (
            ("name_words", 4, NAME_WORDS),
            ("attributes", 1, MOST_ATTRIBUTES),
            ("attribute_values", 2, MOST_VALUES),
            ("phrasings", 1, MOST_PHRASINGS),
        ):
            check(self, field, least <= getattr(self, field) <= most, f"it must be from {least} to {most}")
        for field in ("train_partners", "eval_partners"):  # a hard candidate needs another partner
            check(self, field, getattr(self, field) >= 2, "it must be at least 2")
        rule = f"with eval_partners {self.eval_partners} it may not exceed name_words {self.name_words}"
        check(self, "train_partners", self.train_partners + self.eval_partners <= self.name_words, rule)

    def entities(self, split: str) -> int:
        """Return the number of a split's entities, which is that of its documents."""
        return len(KINDS) * self.name_words * (self.train_partners if split == "train" else self.eval_partners)


@section("synthetic.records")
class SyntheticRecordsConfig:
    """The records of the synthetic corpus: how many, and how difficult."""

    train: Count = 20000
    """Records of every stage in training."""
    eval: Count = 512
    """The same of held-out records."""
    candidates: Count = 8
    """Documents of a record of `end_to_end` and `retrieval`."""
    instruct_documents: Count = 3
    """Documents of a record of `instruct`."""
    hard_share: Fraction = 0.5
    """Share of the other documents that are hard: they have a name word or a fact of the right one."""
    complex_share: Fraction = 0.0
    """Share of questions that need two documents, "Where was the maker of ... born?". Above 0 the documents of works
    name their makers."""
    paraphrase_share: Fraction = 0.25
    """Share of paraphrases in the records of `scp`."""


@section("synthetic", old_names=SYNTHETIC_NAMES)
class SyntheticConfig:
    """The sizes and the difficulty of the synthetic corpus."""

    seed: Natural = 0
    """Of the world: names, facts, documents, questions."""
    world: SyntheticWorldConfig = SyntheticWorldConfig()
    records: SyntheticRecordsConfig = SyntheticRecordsConfig()

    def __post_init__(self):
        # Hard candidates are of one kind: half of a split's are enough to find others among.
        most = self.world.name_words * min(self.world.train_partners, self.world.eval_partners) // 2
        gold = 2 if self.records.complex_share else 1
        rule = f"it must be from {gold} (the documents that answer) to {most} (half of a split's of a kind)"
        for field in ("candidates", "instruct_documents"):
            value = getattr(self.records, field)
            require(gold <= value <= most, "synthetic.records.", field, value, rule)


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
        self.config, self.sizes = config, config.world
        train, partners = config.world.train_partners, config.world.train_partners + config.world.eval_partners
        self.spans = {"train": range(train), "eval": range(train, partners)}
        self.facts, self.document = lru_cache(CACHED)(self.facts), lru_cache(CACHED)(self.document)
        words = range(self.sizes.name_words)
        self.shifts = [shuffled(words, self.random("diagonals", kind)) for kind in range(len(KINDS))]

    def random(self, *what: object) -> Random:
        """Return a generator for one purpose; only its ``random()`` is used, whose values Python promises to keep."""
        return Random(repr((self.config.seed, *what)))

    # --- entities ---

    def entity(self, split: str, number: int, kind: int | None = None) -> Entity:
        """Return an entity of a split by number, of all kinds in turn or of one."""
        if kind is None:
            number, kind = divmod(number, len(KINDS))
        diagonal, first = divmod(number, self.sizes.name_words)
        return Entity(kind, first, self.spans[split][diagonal])

    def draw(self, rng: Random, split: str, kind: int | None = None) -> Entity:
        """Draw an entity of a split, of any kind or of one."""
        count = self.sizes.entities(split)
        return self.entity(split, below(rng, count if kind is None else count // len(KINDS)), kind)

    def second(self, entity: Entity) -> int:
        """Return the index of the second word of an entity's name."""
        return (entity.first + self.shifts[entity.kind][entity.diagonal]) % self.sizes.name_words

    def name(self, entity: Entity) -> str:
        """Return an entity's name, two words."""
        return f"{word(entity.kind, 0, entity.first)} {word(entity.kind, 1, self.second(entity))}"

    def facts(self, entity: Entity) -> tuple[str, ...]:
        """Return the values of an entity's attributes, in their order, and the maker's name of a work that has one."""
        rng = self.random("facts", *entity)
        kind = KINDS[entity.kind]
        facts = [fact.values[below(rng, self.sizes.attribute_values)] for fact in kind.facts[: self.sizes.attributes]]
        return (*facts, self.name(self.maker(entity))) if self.has_maker(entity) else tuple(facts)

    def has_maker(self, entity: Entity) -> bool:
        """Return whether an entity's document names its maker."""
        return entity.kind == WORK and self.config.records.complex_share > 0

    def maker(self, work: Entity) -> Entity:
        """Return the person who made a work."""
        split = "train" if work.diagonal in self.spans["train"] else "eval"
        return self.draw(self.random("maker", *work), split, PERSON)

    # --- texts ---

    def document(self, entity: Entity, rendering: int = 0) -> str:
        """Return an entity's document; other renderings state the same facts in other words and another order."""
        rng, kind = self.random("document", *entity), KINDS[entity.kind]
        sentences = [fact.clauses for fact in kind.facts[: self.sizes.attributes]]
        sentences += [MAKER_CLAUSES] * self.has_maker(entity)
        clauses = [
            choices[(below(rng, self.sizes.phrasings) + rendering) % self.sizes.phrasings].format(value)
            for choices, value in zip(sentences, self.facts(entity), strict=True)
        ]
        head = [self.name(entity)]
        if self.sizes.phrasings > 1:
            turn = (below(rng, len(clauses)) + rendering) % len(clauses)
            clauses = clauses[turn:] + clauses[:turn]
            if len(clauses) > 1 and rng.random() < 0.5:
                head = [f"{head[0]} {clauses.pop(0)}.", kind.pronoun]
        return f"{' '.join(head)} {_joined(clauses)}."

    def question(self, rng: Random, entity: Entity, fact: int, name: str | None = None) -> str:
        """Return a question for a fact of an entity, under the entity's name unless another is given."""
        facts = KINDS[entity.kind].facts[: self.sizes.attributes]
        choices = facts[fact].questions if fact < len(facts) else MAKER_QUESTIONS
        return choices[below(rng, self.sizes.phrasings)].format(name or self.name(entity))

    def asked(self, entity: Entity) -> Iterator[SyntheticQuestion]:
        """Yield all questions about an entity, in the order of its facts."""
        rng, document = self.random("asked", *entity), SyntheticDocument(self.name(entity), self.document(entity))
        facts = self.facts(entity)
        stated = sorted(facts, key=lambda fact: _word_place(document.text, fact))
        names = [*(fact.name for fact in KINDS[entity.kind].facts[: self.sizes.attributes]), MAKER]
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
