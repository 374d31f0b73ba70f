"""Answer distillation: the target of a question is what a teacher answers from the texts of its documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.data.jsonl import read_json_lines
from clara_jax.data.records import ANSWER_FIELDS, REFERENCE_FIELDS, Record, parse_record
from clara_jax.synthesis.asking import Asker, SetAside
from clara_jax.synthesis.checks import DocumentText, Limits, pair_problem
from clara_jax.synthesis.items import digest
from clara_jax.synthesis.journal import Dropped, Item, Outcome

KIND = "answer"


def record_items(paths: Sequence[str]) -> Iterator[Item]:
    """The records of the stage instruct (or end_to_end), each a question over documents; answers may be missing.

    Raises:
      ClaraError: a file that cannot be read, a line that is no such record.
    """
    for path in paths:
        for where, fields in read_json_lines(path):
            parse_record(fields, "instruct", where, answered=False)
            yield Item(f"{Path(path).name}:{where.rpartition(':')[2]}", digest(fields), fields)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Answers questions from raw documents.

    Attributes:
      ask: the model.
      k: documents that it reads, the first ones of the record; None: all.
    """

    ask: Asker
    limits: Limits = Limits()
    k: int | None = None

    async def __call__(self, item: Item) -> list[Outcome]:
        """The teacher's answer, or why there is none that can be learned."""
        record = _record(item)
        documents, (question,) = record.documents[: self.k], record.questions
        spoken = self.ask.prompts.spoken(text := "\n\n".join(documents))
        language = self.ask.prompts.language_for(spoken)
        try:
            answer = await self.ask(item.id, "teacher", language, documents=documents, question=question)
        except SetAside as reason:
            return [Outcome(KIND, None, reason.reason, reason.detail)]
        if answer is None:
            return [Outcome(KIND, None, "not_in_documents", "the teacher finds no answer")]
        problem = pair_problem(DocumentText(text, spoken), question, answer, self.limits)
        if problem is not None:
            return [Outcome(KIND, None, problem.kind, problem.text, dropped=[Dropped(*problem, question, answer)])]
        return [Outcome(KIND, {"question": [question], "answers": [answer], "docs": list(documents)})]


def distilled(item: Item, outcome: Outcome) -> dict[str, Any]:
    """The record with the teacher's answer as its target; what was its answer is a reference from now on."""
    fields: Mapping[str, Any] = item.content
    gold = _record(item).gold_answers
    kept = {name: value for name, value in fields.items() if name not in ANSWER_FIELDS or name in REFERENCE_FIELDS}
    if gold and not any(fields.get(name) for name in REFERENCE_FIELDS):
        kept["gold_answer"] = list(gold)
    return kept | {"answer": outcome.record["answers"][0]}


def _record(item: Item) -> Record:
    return parse_record(item.content, "instruct", item.id, answered=False)
