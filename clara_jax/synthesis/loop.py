"""The synthesis of one document (paper, section 2.1 and appendix B): ask, answer, verify, look at what is not covered
yet, ask again.

What the model says decides nothing but what `replies.parse` reads in it: questions, an answer, a verdict. A document
that gives orders can spoil its own pairs, which are then dropped or set aside, and nothing else.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from clara_jax.synthesis.asking import Asker, SetAside
from clara_jax.synthesis.checks import (
    DocumentText,
    Limits,
    Problem,
    duplicate,
    pair_problem,
    paraphrase_problem,
    question_problem,
)
from clara_jax.synthesis.journal import Dropped, Outcome
from clara_jax.synthesis.leaks import Leaks
from clara_jax.synthesis.settings import Kind


class Pair(NamedTuple):
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Loop:
    """Makes the records of documents.

    Attributes:
      ask: the model.
      leaks: questions that must not be trained on; None: there are none.
    """

    ask: Asker
    limits: Limits = Limits()
    leaks: Leaks | None = None

    async def __call__(self, item: str, text: str) -> list[Outcome]:
        """What comes of a document: an outcome for each of the settings' kinds.

        Args:
          item: the document's id.
          text: what is compressed, title line included.

        Raises:
          OverBudget, ClaraError: see `Asker`; the document is not finished then.
        """
        settings, prompts = self.ask.settings, self.ask.prompts
        spoken = prompts.spoken(text)
        document, language = DocumentText(text, spoken), prompts.language_for(spoken)
        length, (least, most) = len(document.words), settings.document_words
        if not least <= length <= most:
            detail = f"{length} words; {least} to {most} are worked on"
            return [Outcome(kind, None, "document_length", detail) for kind in settings.kinds]
        makes = {"simple": self._pairs, "complex": self._pairs, "paraphrase": self._paraphrase}
        return await _together([makes[kind](item, kind, document, language) for kind in settings.kinds])

    async def _pairs(self, item: str, kind: Kind, document: DocumentText, language: str) -> Outcome:
        """Question-answer pairs, round by round, until the model finds nothing that they do not cover."""
        kept: list[Pair] = []
        dropped: list[Dropped] = []
        times: dict[str, int] = {}  # each question was asked
        covered, turn = False, 0
        try:
            for turn in range(self.ask.settings.rounds):
                # Where nothing was taken yet, there is nothing to show: the same is asked once more.
                step, shown = (f"more_{kind}_questions", {"pairs": kept}) if kept else (f"{kind}_questions", {})
                asked = await self.ask(item, step, language, turn, document=document.text, **shown)
                known = {pair.question for pair in kept}
                new = [question for question in asked if question not in known][: self.ask.settings.most_questions]
                if turn and not new:
                    covered = True
                    break
                answered = await _together(
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
                if turn and repeated == len(new):  # all that was still to be asked is covered, in other words
                    covered = True
                    break
        except SetAside as reason:
            return Outcome(kind, None, reason.reason, reason.detail, turn + 1, dropped)
        if not kept:
            return Outcome(kind, None, "no_pairs", "none of the pairs passed", turn + 1, dropped)
        if not covered and not self.ask.settings.keep_uncovered:
            detail = f"after {turn + 1} rounds and {len(kept)} pairs there were more questions to ask"
            return Outcome(kind, None, "not_covered", detail, turn + 1, dropped)
        record = {
            "data_type": "qa",
            "question": [pair.question for pair in kept],
            "answers": [pair.answer for pair in kept],
            "docs": [document.text],
            "qid": f"{item}#{kind}",
        }
        return Outcome(kind, record, rounds=turn + 1, dropped=dropped)

    async def _pair(
        self, item: str, kind: Kind, document: DocumentText, language: str, question: str, times: dict[str, int]
    ) -> tuple[Pair, Problem | None]:
        """A question with its answer, and what is wrong with them."""
        problem = question_problem(document, question, self.limits)
        if problem is None and self.leaks is not None and (leak := self.leaks.find(question)) is not None:
            problem = Problem("leak", f"{leak.where} asks {leak.question!r}")
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
        except SetAside as reason:  # this pair alone
            return Pair(question, ""), Problem(reason.reason, reason.detail)
        return Pair(question, answer), problem

    async def _judged(self, item: str, step: str, language: str, turn: int = 0, **asked: str) -> Problem | None:
        """What the model itself says against it."""
        if not self.ask.settings.verdicts:
            return None
        verdict = await self.ask(item, step, language, turn, **asked)
        return None if verdict.correct else Problem("judged_incorrect", verdict.reason)

    async def _paraphrase(self, item: str, kind: Kind, document: DocumentText, language: str) -> Outcome:
        """The document told again, as often as it takes until one telling passes."""
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
                    return Outcome(kind, record, rounds=turn + 1, dropped=dropped)
                dropped.append(Dropped(problem.kind, problem.text, "", text))
        except SetAside as reason:
            return Outcome(kind, None, reason.reason, reason.detail, turn + 1, dropped)
        last = dropped[-1]
        return Outcome(kind, None, last.reason, f"after {turn + 1} rounds: {last.detail}", turn + 1, dropped)


async def _together(works: Sequence) -> list:
    """The results of all, in their order; where one fails the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
