"""Answer distillation: the target of a question is the answer of a teacher that reads the texts of its documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.formats.jsonl import read_json_lines
from clara_jax.input_pipeline.records import ANSWER_FIELDS, REFERENCE_FIELDS, Record, parse_record
from clara_jax.synthesis.checks import CheckLimits, DocumentText, pair_problem
from clara_jax.synthesis.items import digest
from clara_jax.synthesis.journal import Dropped, Item, ItemOutcome
from clara_jax.synthesis.steps import RejectedError, StepRunner

KIND = "answer"


def record_items(paths: Sequence[str]) -> Iterator[Item]:
    """Yield the records of the stage instruct (or end_to_end), each a question over documents; answers may be missing.

    Raises:
      ClaraError: a file that cannot be read, a line that is no such record.
    """
    for path in paths:
        for where, fields in read_json_lines(path):
            parse_record(fields, "instruct", where, answered=False)
            yield Item(f"{Path(path).name}:{where.rpartition(':')[2]}", digest(fields), fields)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that answers questions from raw documents.

    Attributes:
      ask: runs the step "teacher".
      limits: the thresholds of the checks of its answers.
      k: number of documents that it reads, the first ones of the record; None for all.
    """

    ask: StepRunner
    limits: CheckLimits = CheckLimits()
    k: int | None = None

    async def __call__(self, item: Item) -> list[ItemOutcome]:
        """Return the teacher's answer as the only outcome, or the reason why there is none to train on."""
        record = _record(item)
        documents, (question,) = record.documents[: self.k], record.questions
        detected = self.ask.prompts.detect_language(text := "\n\n".join(documents))
        language = self.ask.prompts.language_for(detected)
        try:
            answer = await self.ask(item.id, "teacher", language, documents=documents, question=question)
        except RejectedError as rejected:
            return [ItemOutcome(KIND, None, rejected.reason, rejected.detail)]
        if answer is None:
            return [ItemOutcome(KIND, None, "not_in_documents", "the teacher finds no answer")]
        problem = pair_problem(DocumentText(text, detected), question, answer, self.limits)
        if problem is not None:
            return [ItemOutcome(KIND, None, problem.kind, problem.text, dropped=[Dropped(*problem, question, answer)])]
        return [ItemOutcome(KIND, {"question": [question], "answers": [answer], "docs": list(documents)})]


def distilled(item: Item, outcome: ItemOutcome) -> dict[str, Any]:
    """Return the item's record with the teacher's answer as its target; its former answer becomes a reference."""
    fields: Mapping[str, Any] = item.content
    gold = _record(item).gold_answers
    kept = {name: value for name, value in fields.items() if name not in ANSWER_FIELDS or name in REFERENCE_FIELDS}
    if gold and not any(fields.get(name) for name in REFERENCE_FIELDS):
        kept["gold_answer"] = list(gold)
    assert outcome.record is not None, "output.write calls this for outcomes that have a record"
    return kept | {"answer": outcome.record["answers"][0]}


def _record(item: Item) -> Record:
    return parse_record(item.content, "instruct", item.id, answered=False)
