"""Suites in the synthetic world, for models that were trained on it, about entities that no training record has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from clara_jax.data import synthetic
from clara_jax.data.lexicon import MOST_PHRASINGS
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.evaluation.case_files import question_case
from clara_jax.evaluation.counterfactual import counterfactual_cases
from clara_jax.input_pipeline.records import Record
from clara_jax.metrics.cases import Case, Suite

SPLIT = "eval"


def world_suite(part: str, world: SyntheticConfig, limit: int | None = None) -> Suite:
    """Return the suite of one of `PARTS`, named "world/<part>".

    Args:
      part: a key of `PARTS`.
      world: the synthetic world the model was trained on.
      limit: cases at most, ``eval_records`` without; of the needles, whole rounds of balanced questions, at least one.

    Raises:
      ClaraError: the world has none of this part.
    """
    make, ranked = PARTS[part]
    count = world.eval_records if limit is None else min(limit, world.eval_records)
    return Suite(f"world/{part}", ranked, make(world, count))


def usual_parts(world: SyntheticConfig) -> list[str]:
    """Return the parts that resemble the training data; paraphrases only where that has some."""
    return [*USUAL, "paraphrase"] if _paraphrases(world) else [*USUAL]


def _end_to_end(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    return _questions(world, "end_to_end", count)


def _documents(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    return _questions(world, "instruct", count)


def _needle(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    cases: list[Case] = []
    for questions in synthetic.asked(world, SPLIT):
        if cases and len(cases) + len(questions) > count:
            break
        for one in questions:
            tags = {"position": f"{one.place + 1} of {one.places}", "fact": one.fact}
            name = f"{one.document.id}, {one.fact}"
            cases.append(Case(name, "question", one.question, (one.document.text,), (one.answer,), (0,), tags))
    return tuple(cases)


def _counterfactual(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    cases = counterfactual_cases(_needle(world, world.eval_records), world.seed, count)
    if not cases:
        raise ClaraError("world/counterfactual: there are too few documents for one's answer to stand in another's")
    return cases


def _paraphrase(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    records = _paraphrases(world)[:count]
    if not records:
        raise ClaraError(
            f"world/paraphrase: the world has no paraphrases (synthetic.paraphrase_share is {world.paraphrase_share})"
        )
    return tuple(Case(record.qid, "paraphrase", "", record.documents, record.gold_answers) for record in records)


def _hard(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    return _questions(dataclasses.replace(world, hard_share=1.0), "end_to_end", count)


def _other_words(world: SyntheticConfig, count: int) -> tuple[Case, ...]:
    if world.phrasings == MOST_PHRASINGS:
        raise ClaraError(
            f"world/other_words: the model was trained on all {MOST_PHRASINGS} phrasings; there are no other words"
        )
    return _questions(dataclasses.replace(world, phrasings=MOST_PHRASINGS), "instruct", count)


# What makes a part, and whether its documents are ranked.
PARTS: Mapping[str, tuple[Callable[[SyntheticConfig, int], tuple[Case, ...]], bool]] = {
    "end_to_end": (_end_to_end, True),
    "documents": (_documents, False),
    "needle": (_needle, False),
    "counterfactual": (_counterfactual, False),
    "paraphrase": (_paraphrase, False),
    "hard": (_hard, True),
    "other_words": (_other_words, False),
}
USUAL = ("end_to_end", "documents", "needle")


def _questions(world: SyntheticConfig, stage: str, count: int) -> tuple[Case, ...]:
    records = (synthetic.record(world, stage, SPLIT, index) for index in range(count))
    return tuple(question_case(record, record.qid) for record in records)


def _paraphrases(world: SyntheticConfig) -> list[Record]:
    return [record for record in synthetic.records(world, "scp", SPLIT) if record.kind == "paraphrase"]
