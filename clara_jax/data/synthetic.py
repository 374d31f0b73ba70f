"""A synthetic corpus: records about invented people, places and works, with questions that only the documents answer.

Every record is a pure function of (config, stage, split, index): any of a million can be made without those before it.
The people, places and works, and what the documents say of them, are those of `clara_jax.data.synthetic_world`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

from clara_jax.data.lexicon import KINDS, MAKER_CLAUSES, MAKER_OF, MAKER_QUESTIONS, WORK, word
from clara_jax.data.synthetic_world import (
    SPLITS,
    Entity,
    SyntheticConfig,
    SyntheticDocument,
    SyntheticQuestion,
    World,
    below,
    shuffled,
)
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import write_json_lines
from clara_jax.input_pipeline.records import STAGES, Record


def record(config: SyntheticConfig, stage: str, split: str, index: int) -> Record:
    """Return the record of a place in a split, made without any other; see `records`."""
    if stage not in STAGES:
        raise ClaraError(f"stage {stage!r} is unknown; it must be one of {', '.join(STAGES)}")
    count = _records(config, split)
    if not 0 <= index < count:
        raise ClaraError(f"synthetic:{split}:{index}: there are {count} records, counted from 0")
    return _record(_world(config), stage, split, index)


def records(config: SyntheticConfig, stage: str, split: str) -> list[Record]:
    """Return the records of a split: ``records.train`` or ``records.eval`` of them.

    Args:
      config: of the corpus.
      stage: "scp" (kind "qa": all questions about one document, or "paraphrase"), "instruct" (a question over
        ``records.instruct_documents``), "end_to_end" or "retrieval" (the same question over ``records.candidates``).
      split: "train" or "eval".

    Raises:
      ClaraError: an unknown stage or split.
    """
    return [record(config, stage, split, index) for index in range(_records(config, split))]


def documents(config: SyntheticConfig, split: str) -> Iterator[SyntheticDocument]:
    """Yield all documents of a split, ``config.world.entities(split)`` of them, one per entity."""
    _records(config, split)
    world = _world(config)
    for number in range(config.world.entities(split)):
        entity = world.entity(split, number)
        yield SyntheticDocument(world.name(entity), world.document(entity))


def asked(config: SyntheticConfig, split: str) -> Iterator[tuple[SyntheticQuestion, ...]]:
    """Yield rounds of all questions about a person, a place and a work; no document comes twice.

    Every round asks for the same attributes of other entities, so that whole rounds are balanced.
    """
    _records(config, split)
    world = _world(config)
    numbers = range(config.world.entities(split) // len(KINDS))
    for number in shuffled(numbers, world.random("asked", split)):
        entities = [world.entity(split, number, kind) for kind in range(len(KINDS))]
        yield tuple(question for entity in entities for question in world.asked(entity))


def vocabulary(config: SyntheticConfig) -> list[str]:
    """Return short texts that hold every word of all records of both splits."""
    texts = [MAKER_OF, *MAKER_CLAUSES, *MAKER_QUESTIONS]
    for number, kind in enumerate(KINDS):
        texts += [word(number, place, i) for place in range(2) for i in range(config.world.name_words)]
        texts.append(f"{kind.pronoun}, and.")
        for fact in kind.facts[: config.world.attributes]:
            texts += [*fact.clauses, *fact.questions, *fact.values[: config.world.attribute_values]]
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


def write_world(config: SyntheticConfig, directory: str | os.PathLike, questions: int = 24) -> None:
    """Write what no training record knows: ``documents.jsonl`` of the split "eval", and questions about some of them.

    A line of ``questions.jsonl`` has ``question``, ``answers`` and ``document``, the id of the one that answers it.

    Args:
      config: of the corpus.
      directory: is made where it is missing; files of these names are replaced.
      questions: at most so many.
    """
    with write_json_lines(Path(directory, "documents.jsonl")) as write_line:
        for document in documents(config, "eval"):
            write_line(document._asdict())
    with write_json_lines(Path(directory, "questions.jsonl")) as write_line:
        for one in itertools.islice(itertools.chain.from_iterable(asked(config, "eval")), questions):
            write_line({"question": one.question, "answers": [one.answer], "document": one.document.id})


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
    return config.records.train if split == "train" else config.records.eval


@lru_cache(maxsize=8)
def _world(config: SyntheticConfig) -> World:
    return World(config)


def _record(world: World, stage: str, split: str, index: int) -> Record:
    """Return the record of a place in a split."""
    # All stages but scp ask the same question at the same place.
    rng = world.random("scp" if stage == "scp" else "question", split, index)
    where = f"synthetic:{split}:{index}"
    if stage == "scp":
        return _scp(world, rng, split, where)
    count = world.config.records.instruct_documents if stage == "instruct" else world.config.records.candidates
    if rng.random() < world.config.records.complex_share:
        work = world.draw(rng, split, WORK)
        entity = world.maker(work)
        gold, name = [work, entity], MAKER_OF.format(world.name(work))
        fact = below(rng, world.sizes.attributes)
    else:
        entity = world.draw(rng, split)
        gold, name = [entity], None
        fact = below(rng, world.sizes.attributes + world.has_maker(entity))
    question, answer = world.question(rng, entity, fact, name), world.facts(entity)[fact]
    chosen = shuffled(_candidates(world, rng, split, gold, fact, count), rng)
    positives = tuple(i for i, candidate in enumerate(chosen) if candidate in gold)
    texts = tuple(world.document(candidate) for candidate in chosen)
    return Record("question", texts, (question,), (answer,), (answer,), positives, where, where)


def _scp(world: World, rng: Random, split: str, where: str) -> Record:
    """Return a record of scp: a paraphrase, or all questions about one document."""
    paraphrase, entity = rng.random() < world.config.records.paraphrase_share, world.draw(rng, split)
    text = (world.document(entity),)
    if paraphrase:
        other = (world.document(entity, 1),)
        return Record("paraphrase", text, (), other, other, (), where, where)
    answers = world.facts(entity)
    questions = tuple(world.question(rng, entity, fact) for fact in range(len(answers)))
    return Record("qa", text, questions, answers, answers, (), where, where)


def _candidates(world: World, rng: Random, split: str, gold: list[Entity], fact: int, count: int) -> list[Entity]:
    """Return the gold documents' entities and others, no entity twice, so that no other document answers."""
    chosen = list(gold)
    while len(chosen) < count:
        hard = rng.random() < world.config.records.hard_share
        other = _hard(world, rng, split, gold[below(rng, len(gold))], fact) if hard else world.draw(rng, split)
        if other not in chosen:
            chosen.append(other)
    return chosen


def _hard(world: World, rng: Random, split: str, entity: Entity, fact: int) -> Entity:
    """Draw another entity of the kind, with the same first word, the same second word, or mostly the same fact."""
    way, span = below(rng, 3), world.spans[split]
    diagonal = span[below(rng, len(span))]
    if way == 0:
        return entity._replace(diagonal=diagonal)
    if way == 1:
        shift = world.shifts[entity.kind][diagonal]
        return Entity(entity.kind, (world.second(entity) - shift) % world.sizes.name_words, diagonal)
    value = world.facts(entity)[fact]
    other = world.draw(rng, split, entity.kind)
    for _ in range(2 * world.sizes.attribute_values - 1):
        if world.facts(other)[fact] == value:
            break
        other = world.draw(rng, split, entity.kind)
    return other
