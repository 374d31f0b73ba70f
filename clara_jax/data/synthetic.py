"""A synthetic corpus: invented people, places and works, their facts, and questions that only the documents answer.

Every record is a pure function of (config, stage, split, index): any of a million can be made without those before it.

An entity's name is a pair of words. The pairs of a split are whole diagonals of the table of all pairs, so every word
stands in every split equally often, and no pair stands in both: the entities of "eval" are unseen, their words are not.
Facts are drawn uniformly and independently of names, so without the document an answer is right once in ``values``
times; that is chance level. An answer never stands in its question, since names and values share no word.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import STAGES, Record

SPLITS = ("train", "eval")
CACHED = 2**17  # facts and documents kept, most of them used by many records

_ONSETS = "Ba De Fi Go Hu Ka Le Mi No Pu Ra Se Ti Vo Wu Za Bri Cla Dro Fre".split()
_MIDDLES = "ban del fim gor hul kam len mir nos pur ral set tiv von wun zal bril clam drof fren".split()
_NAME_WORDS = len(_ONSETS) * len(_MIDDLES)

_TOWNS = (
    "Oslo Lima Accra Quito Perth Turin Kyoto Rouen Cairo Dakar Hanoi Izmir Lagos Malmo Natal Porto Quebec Riga Sofia "
    "Tunis Ulm Vaduz Warsaw York"
).split()
_TRADES = (
    "painter baker weaver sailor tailor miner doctor judge nurse potter singer dancer farmer banker barber cook "
    "diver guard jeweller lawyer mason pilot poet smith"
).split()
_INSTRUMENTS = (
    "flute harp lute viola piano drum horn cello banjo guitar fiddle bassoon trumpet tuba zither bagpipe mandolin "
    "clarinet trombone sitar gong bugle lyre recorder"
).split()
_COUNTRIES = (
    "Norway Peru Ghana Japan France Egypt Senegal Vietnam Turkey Nigeria Sweden Brazil Portugal Canada Latvia Bulgaria "
    "Tunisia Germany Poland England Chile Kenya India Spain"
).split()
_GOODS = (
    "cheese salt wool silk wine honey glass paper iron copper amber coal tea rice olives pearls timber marble leather "
    "pepper linen soap sugar cotton"
).split()
_GENRES = (
    "novel ballad poem farce song diary comedy tragedy sonnet hymn fable satire memoir sermon letter chant ballet saga "
    "psalm lament riddle thriller romance parody"
).split()
_MATERIALS = (
    "parchment vellum bronze clay slate ivory velvet canvas birch cedar granite tin wax papyrus bamboo jade brass "
    "silver gold lead chalk bone oak steel"
).split()
_YEARS = [str(1500 + 20 * i) for i in range(24)]
MOST_VALUES = len(_YEARS)


class _Fact(NamedTuple):
    """One attribute: its name, its values, clauses that state a value, questions for it; "{}" is an entity's name."""

    name: str
    values: Sequence[str]
    clauses: tuple[str, ...]
    questions: tuple[str, ...]


class _Kind(NamedTuple):
    """A kind of entity: the pronoun of later sentences, the endings of its two name words, its facts in order."""

    pronoun: str
    endings: tuple[str, str]
    facts: tuple[_Fact, ...]


PERSON, PLACE, WORK = range(3)
_KINDS = (
    _Kind(
        "This person",
        ("a", "son"),
        (
            _Fact(
                "town",
                _TOWNS,
                ("was born in {}", "comes from {}", "grew up in {}"),
                ("Where was {} born?", "Where is {} from?", "In which town did {} grow up?"),
            ),
            _Fact(
                "trade",
                _TRADES,
                ("works as a {}", "is a {} by trade", "earns money as a {}"),
                ("What does {} do?", "Which trade has {}?", "As what does {} earn money?"),
            ),
            _Fact(
                "instrument",
                _INSTRUMENTS,
                ("plays the {}", "practises the {}", "owns a {}"),
                ("What does {} play?", "What does {} practise?", "Which instrument does {} own?"),
            ),
        ),
    ),
    _Kind(
        "This place",
        ("ville", "dale"),
        (
            _Fact(
                "country",
                _COUNTRIES,
                ("lies in {}", "is found in {}", "belongs to {}"),
                ("Where does {} lie?", "Where is {} found?", "To which country does {} belong?"),
            ),
            _Fact(
                "goods",
                _GOODS,
                ("sells {}", "is known for {}", "lives off {}"),
                ("What does {} sell?", "What made {} known?", "What does {} live off?"),
            ),
            _Fact(
                "year",
                _YEARS,
                ("was founded in {}", "dates from {}", "was first settled in {}"),
                ("When was {} founded?", "How old is {}?", "In which year was {} first settled?"),
            ),
        ),
    ),
    _Kind(
        "This work",
        ("ic", "song"),
        (
            _Fact(
                "genre",
                _GENRES,
                ("is a famous {}", "is read as a {}", "counts as a {}"),
                ("Which genre is {}?", "What is {} called?", "As what does {} count?"),
            ),
            _Fact(
                "material",
                _MATERIALS,
                ("is carried by {}", "is preserved on {}", "was copied onto {}"),
                ("What carries {}?", "What preserves {}?", "Onto which material was {} copied?"),
            ),
            _Fact(
                "year",
                _YEARS,
                ("appeared in {}", "was finished in {}", "was first seen in {}"),
                ("When did {} appear?", "When was {} finished?", "In which year was {} first seen?"),
            ),
        ),
    ),
)
MOST_ATTRIBUTES, MOST_PHRASINGS = len(_KINDS[0].facts), len(_KINDS[0].facts[0].clauses)

# Where there are complex questions, a work's document states its maker, and the question names the work alone.
_MAKER = "maker"
_MAKER_CLAUSES = ("is by {}", "was made by {}", "comes from the hand of {}")
_MAKER_QUESTIONS = ("Who made {}?", "By whom is {}?", "From whose hand does {} come?")
_MAKER_OF = "the maker of {}"


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
        check("name_words", 4 <= self.name_words <= _NAME_WORDS, f"it must be from 4 to {_NAME_WORDS}")
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
        return len(_KINDS) * self.name_words * (self.train_partners if split == "train" else self.eval_partners)


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


class _Entity(NamedTuple):
    """A pair of name words: the first, and the diagonal of the table of pairs that fixes the second."""

    kind: int
    first: int
    diagonal: int


def record(config: SyntheticConfig, stage: str, split: str, index: int) -> Record:
    """Return the record of a place in a split, made without any other; see `records`."""
    if stage not in STAGES:
        raise ClaraError(f"stage {stage!r} is unknown; it must be one of {', '.join(STAGES)}")
    count = _records(config, split)
    if not 0 <= index < count:
        raise ClaraError(f"synthetic:{split}:{index}: there are {count} records, counted from 0")
    return _world(config).record(stage, split, index)


def records(config: SyntheticConfig, stage: str, split: str) -> list[Record]:
    """Return the records of a split: ``train_records`` or ``eval_records`` of them.

    Args:
      config: of the corpus.
      stage: "scp" (kind "qa": all questions about one document, or "paraphrase"), "instruct" (a question over
        ``instruct_documents``), "end_to_end" or "retrieval" (the same question over ``candidates``).
      split: "train" or "eval".

    Raises:
      ClaraError: an unknown stage or split.
    """
    return [record(config, stage, split, index) for index in range(_records(config, split))]


def documents(config: SyntheticConfig, split: str) -> Iterator[SyntheticDocument]:
    """Yield all documents of a split, ``config.entities(split)`` of them, one per entity."""
    _records(config, split)
    world = _world(config)
    for number in range(config.entities(split)):
        entity = world.entity(split, number)
        yield SyntheticDocument(world.name(entity), world.document(entity))


def asked(config: SyntheticConfig, split: str) -> Iterator[tuple[SyntheticQuestion, ...]]:
    """Yield rounds of all questions about a person, a place and a work; no document comes twice.

    Every round asks for the same attributes of other entities, so that whole rounds are balanced.
    """
    _records(config, split)
    world = _world(config)
    numbers = range(config.entities(split) // len(_KINDS))
    for number in _shuffled(numbers, world.random("asked", split)):
        entities = [world.entity(split, number, kind) for kind in range(len(_KINDS))]
        yield tuple(question for entity in entities for question in world.asked(entity))


def vocabulary(config: SyntheticConfig) -> list[str]:
    """Return short texts that hold every word of all records of both splits."""
    texts = [_MAKER_OF, *_MAKER_CLAUSES, *_MAKER_QUESTIONS]
    for number, kind in enumerate(_KINDS):
        texts += [_word(number, place, i) for place in range(2) for i in range(config.name_words)]
        texts.append(f"{kind.pronoun}, and.")
        for fact in kind.facts[: config.attributes]:
            texts += [*fact.clauses, *fact.questions, *fact.values[: config.values]]
    return [text.replace("{}", " ") for text in texts]


def write(config: SyntheticConfig, directory: str | os.PathLike, stages: Sequence[str] = STAGES) -> list[Path]:
    """Write ``<stage>.<split>.jsonl``, which `read_records` reads as the same records, into a folder that is made.

    Returns:
      the files, stage by stage.
    """
    directory, paths = Path(directory), []
    directory.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        for split in SPLITS:
            paths.append(directory / f"{stage}.{split}.jsonl")
            with paths[-1].open("w", encoding="utf-8") as file:
                for index in range(_records(config, split)):
                    file.write(json.dumps(_fields(record(config, stage, split, index))) + "\n")
    return paths


def _fields(record: Record) -> dict[str, object]:
    """Return a record as a line of its file."""
    fields = {"qid": record.qid, "docs": record.documents}
    if record.kind == "question":
        question, answer = record.questions[0], record.answers[0]
        return fields | {"question": question, "answer": answer, "pos_index": record.positives}
    return fields | {"data_type": record.kind, "question": record.questions, "answers": record.answers}


def _records(config: SyntheticConfig, split: str) -> int:
    if split not in SPLITS:
        raise ClaraError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}")
    return config.train_records if split == "train" else config.eval_records


class _World:
    """The facts of the invented world, by hashing: only the order of the diagonals is stored."""

    def __init__(self, config: SyntheticConfig):
        self.config = config
        partners = config.train_partners + config.eval_partners
        self.spans = {"train": range(config.train_partners), "eval": range(config.train_partners, partners)}
        self.facts, self.document = lru_cache(CACHED)(self.facts), lru_cache(CACHED)(self.document)
        self.shifts = [
            _shuffled(range(config.name_words), self.random("diagonals", kind)) for kind in range(len(_KINDS))
        ]

    def random(self, *what: object) -> Random:
        """Return a generator for one purpose; only its ``random()`` is used, whose values Python promises to keep."""
        return Random(repr((self.config.seed, *what)))

    # --- entities ---

    def entity(self, split: str, number: int, kind: int | None = None) -> _Entity:
        """Return an entity of a split by number, of all kinds in turn or of one."""
        if kind is None:
            number, kind = divmod(number, len(_KINDS))
        diagonal, first = divmod(number, self.config.name_words)
        return _Entity(kind, first, self.spans[split][diagonal])

    def draw(self, rng: Random, split: str, kind: int | None = None) -> _Entity:
        """Draw an entity of a split, of any kind or of one."""
        count = self.config.entities(split)
        return self.entity(split, _below(rng, count if kind is None else count // len(_KINDS)), kind)

    def second(self, entity: _Entity) -> int:
        """Return the index of the second word of an entity's name."""
        return (entity.first + self.shifts[entity.kind][entity.diagonal]) % self.config.name_words

    def name(self, entity: _Entity) -> str:
        """Return an entity's name, two words."""
        return f"{_word(entity.kind, 0, entity.first)} {_word(entity.kind, 1, self.second(entity))}"

    def facts(self, entity: _Entity) -> tuple[str, ...]:
        """Return the values of an entity's attributes, in their order, and the maker's name of a work that has one."""
        rng = self.random("facts", *entity)
        kind = _KINDS[entity.kind]
        facts = [fact.values[_below(rng, self.config.values)] for fact in kind.facts[: self.config.attributes]]
        return (*facts, self.name(self.maker(entity))) if self.has_maker(entity) else tuple(facts)

    def has_maker(self, entity: _Entity) -> bool:
        """Return whether an entity's document names its maker."""
        return entity.kind == WORK and self.config.complex_share > 0

    def maker(self, work: _Entity) -> _Entity:
        """Return the person who made a work."""
        split = "train" if work.diagonal in self.spans["train"] else "eval"
        return self.draw(self.random("maker", *work), split, PERSON)

    # --- texts ---

    def document(self, entity: _Entity, rendering: int = 0) -> str:
        """Return an entity's document; other renderings state the same facts in other words and another order."""
        rng, kind = self.random("document", *entity), _KINDS[entity.kind]
        sentences = [fact.clauses for fact in kind.facts[: self.config.attributes]]
        sentences += [_MAKER_CLAUSES] * self.has_maker(entity)
        clauses = [
            choices[(_below(rng, self.config.phrasings) + rendering) % self.config.phrasings].format(value)
            for choices, value in zip(sentences, self.facts(entity), strict=True)
        ]
        head = [self.name(entity)]
        if self.config.phrasings > 1:
            turn = (_below(rng, len(clauses)) + rendering) % len(clauses)
            clauses = clauses[turn:] + clauses[:turn]
            if len(clauses) > 1 and rng.random() < 0.5:
                head = [f"{head[0]} {clauses.pop(0)}.", kind.pronoun]
        return f"{' '.join(head)} {_joined(clauses)}."

    def question(self, rng: Random, entity: _Entity, fact: int, name: str | None = None) -> str:
        """Return a question for a fact of an entity, under the entity's name unless another is given."""
        facts = _KINDS[entity.kind].facts[: self.config.attributes]
        choices = facts[fact].questions if fact < len(facts) else _MAKER_QUESTIONS
        return choices[_below(rng, self.config.phrasings)].format(name or self.name(entity))

    def asked(self, entity: _Entity) -> Iterator[SyntheticQuestion]:
        """Yield all questions about an entity, in the order of its facts."""
        rng, document = self.random("asked", *entity), SyntheticDocument(self.name(entity), self.document(entity))
        facts = self.facts(entity)
        stated = sorted(facts, key=lambda fact: _word_place(document.text, fact))
        names = [*(fact.name for fact in _KINDS[entity.kind].facts[: self.config.attributes]), _MAKER]
        for i, answer in enumerate(facts):
            question = self.question(rng, entity, i)
            yield SyntheticQuestion(document, question, answer, names[i], stated.index(answer), len(facts))

    # --- records ---

    def record(self, stage: str, split: str, index: int) -> Record:
        """Return the record of a place in a split."""
        # All stages but scp ask the same question at the same place.
        rng = self.random("scp" if stage == "scp" else "question", split, index)
        where = f"synthetic:{split}:{index}"
        if stage == "scp":
            return self.scp(rng, split, where)
        count = self.config.instruct_documents if stage == "instruct" else self.config.candidates
        if rng.random() < self.config.complex_share:
            work = self.draw(rng, split, WORK)
            entity = self.maker(work)
            gold, name = [work, entity], _MAKER_OF.format(self.name(work))
            fact = _below(rng, self.config.attributes)
        else:
            entity = self.draw(rng, split)
            gold, name = [entity], None
            fact = _below(rng, self.config.attributes + self.has_maker(entity))
        question, answer = self.question(rng, entity, fact, name), self.facts(entity)[fact]
        chosen = _shuffled(self.candidates(rng, split, gold, fact, count), rng)
        positives = tuple(i for i, candidate in enumerate(chosen) if candidate in gold)
        texts = tuple(self.document(candidate) for candidate in chosen)
        return Record("question", texts, (question,), (answer,), (answer,), positives, where, where)

    def scp(self, rng: Random, split: str, where: str) -> Record:
        """Return a record of scp: a paraphrase, or all questions about one document."""
        paraphrase, entity = rng.random() < self.config.paraphrase_share, self.draw(rng, split)
        text = (self.document(entity),)
        if paraphrase:
            other = (self.document(entity, 1),)
            return Record("paraphrase", text, (), other, other, (), where, where)
        answers = self.facts(entity)
        questions = tuple(self.question(rng, entity, fact) for fact in range(len(answers)))
        return Record("qa", text, questions, answers, answers, (), where, where)

    def candidates(self, rng: Random, split: str, gold: list[_Entity], fact: int, count: int) -> list[_Entity]:
        """Return the gold documents' entities and others, no entity twice, so that no other document answers."""
        chosen = list(gold)
        while len(chosen) < count:
            hard = rng.random() < self.config.hard_share
            other = self.hard(rng, split, gold[_below(rng, len(gold))], fact) if hard else self.draw(rng, split)
            if other not in chosen:
                chosen.append(other)
        return chosen

    def hard(self, rng: Random, split: str, entity: _Entity, fact: int) -> _Entity:
        """Draw another entity of the kind, with the same first word, the same second word, or mostly the same fact."""
        way, span = _below(rng, 3), self.spans[split]
        diagonal = span[_below(rng, len(span))]
        if way == 0:
            return entity._replace(diagonal=diagonal)
        if way == 1:
            shift = self.shifts[entity.kind][diagonal]
            return _Entity(entity.kind, (self.second(entity) - shift) % self.config.name_words, diagonal)
        value = self.facts(entity)[fact]
        other = self.draw(rng, split, entity.kind)
        for _ in range(2 * self.config.values - 1):
            if self.facts(other)[fact] == value:
                break
            other = self.draw(rng, split, entity.kind)
        return other


@lru_cache(maxsize=8)
def _world(config: SyntheticConfig) -> _World:
    return _World(config)


def _word(kind: int, place: int, index: int) -> str:
    """Return a name word; the stride makes neighbours look different, and no two words are the same."""
    stem = index * 147 % _NAME_WORDS
    return _ONSETS[stem % len(_ONSETS)] + _MIDDLES[stem // len(_ONSETS)] + _KINDS[kind].endings[place]


def _joined(clauses: Sequence[str]) -> str:
    """Return clauses joined as "a", "a and b" or "a, b and c"."""
    *most, last = clauses
    return f"{', '.join(most)} and {last}" if most else last


def _word_place(text: str, word: str) -> int:
    """Return where a word begins in a text that holds it, as a whole word: names end in "song"."""
    match = re.search(rf"\b{word}\b", text)
    assert match is not None  # a document states all of its facts
    return match.start()


def _below(rng: Random, count: int) -> int:
    return int(rng.random() * count)


def _shuffled(items: Sequence, rng: Random) -> list:
    order = sorted((rng.random(), i) for i in range(len(items)))
    return [items[i] for _, i in order]
