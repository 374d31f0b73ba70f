"""Recipes, which make records of items: of a document (the paper's loop), of a question (a teacher's answer).

The loop is that of the paper's section 2.1 and appendix B: ask, answer, verify, repeat until the document is covered.
In answer distillation the target of a question becomes the answer of a teacher that reads the texts of its documents.

Nothing of a model's reply has an effect but what `replies.parse` reads in it: questions, an answer, a verdict. A
document that contains instructions can spoil only its own pairs, which are then dropped or rejected.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from clara_jax.data.corpus.readers import read_documents
from clara_jax.formats.jsonl import read_json_lines
from clara_jax.input_pipeline.records import ANSWER_FIELDS, REFERENCE_FIELDS, Record, parse_record
from clara_jax.synthesis.checks import (
    CheckLimits,
    DocumentText,
    Problem,
    pair_problem,
    paraphrase_problem,
    question_problem,
)
from clara_jax.synthesis.duplicates import HeldOutQuestions, duplicate
from clara_jax.synthesis.journal import Dropped, Item, ItemOutcome
from clara_jax.synthesis.runner import Kind, RejectedError, StepRunner
from clara_jax.text.titles import titled

KIND = "answer"

_Result = TypeVar("_Result")


def document_items(inputs: Sequence[str], follow_links: bool = False) -> Iterator[Item]:
    """Yield the documents of files and folders, see `clara_jax.data.corpus.readers`; the text is below its title.

    Raises:
      ClaraError: a file that cannot be read, a line that is no document.
    """
    for document in read_documents(inputs, follow_links):
        yield Item.of(document.id, {"text": titled(document.title, document.text)})


class Pair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Loop:
    """The synthesis of records from documents.

    Attributes:
      ask: runs the steps.
      limits: the thresholds of the checks.
      held_out: questions of evaluations, which must not be trained on; None for none.
    """

    ask: StepRunner
    limits: CheckLimits = CheckLimits()
    held_out: HeldOutQuestions | None = None

    async def __call__(self, item: str, text: str) -> list[ItemOutcome]:
        """Return a document's outcome for each of the settings' kinds.

        Args:
          item: the document's id.
          text: the text to compress later, title line included.

        Raises:
          OverBudgetError: see `StepRunner`; the document is not finished then.
          ClaraError: likewise.
        """
        settings, prompts = self.ask.settings, self.ask.prompts
        detected = prompts.detect_language(text)
        document, language = DocumentText(text, detected), prompts.language_for(detected)
        length, (least, most) = len(document.words), settings.document_words
        if not least <= length <= most:
            detail = f"{length} words; {least} to {most} are worked on"
            return [ItemOutcome(kind, None, "document_length", detail) for kind in settings.kinds]
        makes = {"simple": self._pairs, "complex": self._pairs, "paraphrase": self._paraphrase}
        return await _gather_or_cancel([makes[kind](item, kind, document, language) for kind in settings.kinds])

    async def _pairs(self, item: str, kind: Kind, document: DocumentText, language: str) -> ItemOutcome:
        """Make question-answer pairs, round by round, until the model finds nothing that they do not cover."""
        kept: list[Pair] = []
        dropped: list[Dropped] = []
        times: dict[str, int] = {}  # each question was asked
        covered, turn = False, 0
        try:
            for turn in range(self.ask.settings.rounds):
                # Where no pair was kept yet, there is none to show: the first request is repeated.
                step, shown = f"{kind}_questions", dict[str, Any]()
                if kept:
                    step, shown = f"more_{kind}_questions", {"pairs": kept}
                asked = await self.ask(item, step, language, turn, document=document.text, **shown)
                known = {pair.question for pair in kept}
                new = [question for question in asked if question not in known][: self.ask.settings.most_questions]
                if turn and not new:
                    covered = True
                    break
                answered = await _gather_or_cancel(
                    [self._pair(item, kind, document, language, question, times) for question in new]
                )
                repeated = 0
                for pair, problem in answered:
                    if problem is None and (earlier := duplicate(*pair, kept)) is not None:
                        problem = Problem("duplicate", f"asks what {kept[earlier].question!r} asks")
                        repeated += 1
                    if problem is None:
                        kept.append(pair)
                    else:
                        dropped.append(Dropped(problem.kind, problem.text, *pair))
                if turn and repeated == len(new):  # the new questions only rephrase those that are covered
                    covered = True
                    break
        except RejectedError as rejected:
            return ItemOutcome(kind, None, rejected.reason, rejected.detail, turn + 1, dropped)
        if not kept:
            return ItemOutcome(kind, None, "no_pairs", "none of the pairs passed", turn + 1, dropped)
        if not covered and not self.ask.settings.keep_uncovered:
            detail = f"after {turn + 1} rounds and {len(kept)} pairs there were more questions to ask"
            return ItemOutcome(kind, None, "not_covered", detail, turn + 1, dropped)
        record = {
            "data_type": "qa",
            "question": [pair.question for pair in kept],
            "answers": [pair.answer for pair in kept],
            "docs": [document.text],
            "qid": f"{item}#{kind}",
        }
        return ItemOutcome(kind, record, rounds=turn + 1, dropped=dropped)

    async def _pair(
        self, item: str, kind: Kind, document: DocumentText, language: str, question: str, times: dict[str, int]
    ) -> tuple[Pair, Problem | None]:
        """Answer a question, and return the pair with its problem, if any."""
        problem = question_problem(document, question, self.limits)
        if problem is None and self.held_out is not None and (match := self.held_out.find(question)) is not None:
            problem = Problem("leak", f"{match.where} asks {match.question!r}")
        if problem is not None:
            return Pair(question, ""), problem
        turn = times[question] = times.get(question, -1) + 1
        asked = {"document": document.text, "question": question}
        try:
            answer = await self.ask(item, "answer", language, turn, **asked)
            if answer is None:
                return Pair(question, ""), Problem("not_in_document", "the model finds no answer in the document")
            problem = pair_problem(document, question, answer, self.limits, complex=kind == "complex")
            if problem is None:
                problem = await self._judged(item, "validate_answer", language, turn, **asked, answer=answer)
        except RejectedError as rejected:  # only this pair
            return Pair(question, ""), Problem(rejected.reason, rejected.detail)
        return Pair(question, answer), problem

    async def _judged(self, item: str, step: str, language: str, turn: int = 0, **asked: str) -> Problem | None:
        """Return the problem that the model finds as a judge, None where it finds none."""
        if not self.ask.settings.verdicts:
            return None
        verdict = await self.ask(item, step, language, turn, **asked)
        return None if verdict.correct else Problem("judged_incorrect", verdict.reason)

    async def _paraphrase(self, item: str, kind: Kind, document: DocumentText, language: str) -> ItemOutcome:
        """Paraphrase the document until a paraphrase passes, or the rounds are used up."""
        dropped: list[Dropped] = []
        turn = 0
        try:
            for turn in range(self.ask.settings.rounds):
                text = await self.ask(item, "paraphrase", language, turn, document=document.text)
                problem = paraphrase_problem(document, text, self.limits)
                if problem is None:
                    both = {"document": document.text, "paraphrase": text}
                    problem = await self._judged(item, "validate_paraphrase", language, **both)
                if problem is None:
                    record = {"data_type": "paraphrase", "question": "", "answers": [text]}
                    record |= {"docs": [document.text], "qid": f"{item}#{kind}"}
                    return ItemOutcome(kind, record, rounds=turn + 1, dropped=dropped)
                dropped.append(Dropped(problem.kind, problem.text, "", text))
        except RejectedError as rejected:
            return ItemOutcome(kind, None, rejected.reason, rejected.detail, turn + 1, dropped)
        last = dropped[-1]
        return ItemOutcome(kind, None, last.reason, f"after {turn + 1} rounds: {last.detail}", turn + 1, dropped)


def record_items(paths: Sequence[str]) -> Iterator[Item]:
    """Yield the records of the stage instruct (or end_to_end), each a question over documents; answers may be missing.

    Raises:
      ClaraError: a file that cannot be read, a line that is no such record.
    """
    for path in paths:
        for where, fields in read_json_lines(path):
            parse_record(fields, "instruct", where, answered=False)
            yield Item.of(f"{Path(path).name}:{where.rpartition(':')[2]}", fields)


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
    assert outcome.record is not None, "write_output calls this for outcomes that have a record"
    return kept | {"answer": outcome.record["answers"][0]}


async def _gather_or_cancel(coroutines: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Return the results in order; where one coroutine fails, cancel the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _record(item: Item) -> Record:
    return parse_record(item.content, "instruct", item.id, answered=False)
