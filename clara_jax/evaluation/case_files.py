"""Cases from files: questions over documents, questions of one document each, documents that are told again or written
out.

A case is called by its record's ``qid`` (or a passage's id), else by its line; a name that comes twice is numbered.
Names do not depend on where the file lies.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from clara_jax.data.builders.passages import parse_passage
from clara_jax.data.jsonl import parse_lines
from clara_jax.data.records import DOCUMENT_FIELDS, Record, parse_documents, parse_record
from clara_jax.data.titles import titled
from clara_jax.errors import ClaraError
from clara_jax.evaluation.cases import Case
from clara_jax.evaluation.ways import draws

_WORD = re.compile(r"\S+")


def question_cases(path: str, limit: int | None = None) -> tuple[Case, ...]:
    """The questions of a file of the stages ``instruct``, ``end_to_end`` or ``retrieval``, with all their documents.

    Args:
      path: JSONL, see `clara_jax.data.records`; an answer may be missing.
      limit: cases at most; lines after the last one are not looked at.

    Raises:
      ClaraError: a file that cannot be read or has no question, a line that is not such a record.
    """
    records = parse_lines(path, lambda fields, where: parse_record(fields, "instruct", where, answered=False))
    cases = (question_case(record, _name(record.qid, record.where)) for record in records)
    return _numbered(cases, limit, path, "questions over documents")


def question_case(record: Record, name: str) -> Case:
    """The case of a record of the kind "question"."""
    return Case(name, "question", record.questions[0], record.documents, record.gold_answers, record.positives)


def scp_cases(path: str, limit: int | None = None) -> tuple[Case, ...]:
    """Every question of a file of the stage ``scp``, over its one document; paraphrases are left out.

    Args, raises: as `question_cases`.
    """
    records = parse_lines(path, lambda fields, where: parse_record(fields, "scp", where, answered=False))
    return _numbered((case for record in records for case in _scp(record)), limit, path, 'records of "data_type": "qa"')


def paraphrase_cases(path: str, limit: int | None = None) -> tuple[Case, ...]:
    """Every document of a file, to be told again: those of paraphrase records with their answers as references, all
    others once and without.

    Args:
      path: JSONL: records of any stage, or passages of a corpus.
      limit: cases at most; lines after the last one are not looked at.

    Raises:
      ClaraError: a file that cannot be read or has no document, a line that has none.
    """
    return _numbered(_paraphrases(path), limit, path, "documents")


def window_cases(path: str, limit: int | None = None, words: int | None = None, seed: int = 0) -> tuple[Case, ...]:
    """Every document of a file, to be written out: a window of it, or all of it.

    Args:
      path: as for `paraphrase_cases`.
      limit: cases at most; lines after the last one are not looked at.
      words: of a window, whose place is drawn; shorter documents are left out. None: whole documents.
      seed: of the draws.

    Raises:
      ClaraError: a file that cannot be read or has no document that is long enough, a line that has none.
    """
    told = (dataclasses.replace(case, kind="autoencode", references=()) for case in _paraphrases(path))
    cases = told if words is None else (own for case in told if (own := _window(case, words, seed)) is not None)
    return _numbered(cases, limit, path, "documents" if words is None else f"documents of {words} words")


def _window(case: Case, count: int, seed: int) -> Case | None:
    (document,) = case.documents
    places = [match.span() for match in _WORD.finditer(document)]
    if len(places) < count:
        return None
    start = int(draws(case, seed).integers(len(places) - count + 1))
    text = document[places[start][0] : places[start + count - 1][1]]
    return dataclasses.replace(case, documents=(text,))


def read_documents(path: str) -> Iterator[str]:
    """Every document of such a file, in order.

    Raises:
      ClaraError: as `paraphrase_cases`.
    """
    return (document for _, documents, _ in parse_lines(path, _parse_documents) for document in documents)


def _scp(record: Record) -> Iterator[Case]:
    name = _name(record.qid, record.where)
    for number, question in enumerate(record.questions):
        own = f"{name} question {number + 1}" if len(record.questions) > 1 else name
        yield Case(own, "question", question, record.documents, record.answers[number : number + 1])


def _paraphrases(path: str) -> Iterator[Case]:
    seen: set[str] = set()
    for name, documents, references in parse_lines(path, _parse_documents):
        for number, document in enumerate(documents):
            if references or document not in seen:
                own = f"{name} document {number + 1}" if len(documents) > 1 else name
                yield Case(own, "paraphrase", "", (document,), references)
            seen.add(document)


def _parse_documents(fields: Any, where: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """A line's name, its documents, and texts that tell them."""
    if isinstance(fields, Mapping) and fields.get("data_type") == "paraphrase":
        record = parse_record(fields, "scp", where, answered=False)
        return _name(record.qid, where), record.documents, record.gold_answers
    if isinstance(fields, Mapping) and any(isinstance(fields.get(name), list) for name in DOCUMENT_FIELDS):
        name = where if fields.get("qid") is None else str(fields["qid"])
        return _name(name, where), parse_documents(fields, where), ()
    passage = parse_passage(fields, where)
    return _name(passage.id, where), (titled(passage.title, passage.text),), ()


def _name(own: str, where: str) -> str:
    return f"line {where.rpartition(':')[2]}" if own == where else own


def _numbered(cases: Iterable[Case], limit: int | None, path: str, what: str) -> tuple[Case, ...]:
    """The first cases, each with a name of its own that those behind it have no part in."""
    found: dict[str, Case] = {}
    for case in islice(cases, limit):
        name, count = case.id, 1
        while name in found:
            count += 1
            name = f"{case.id} ({count})"
        found[name] = dataclasses.replace(case, id=name)
    if not found:
        raise ClaraError(f"{path}: the file holds no {what}")
    return tuple(found.values())
