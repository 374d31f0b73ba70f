"""Cases from files: questions over documents, questions on one document each, documents to paraphrase or reconstruct.

A case is named by its record's ``qid`` (or a passage's id), else by its line; a name that comes twice is numbered.
Names do not depend on where the file lies.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from clara_jax.data.passages import parse_passage
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import parse_lines
from clara_jax.input_pipeline.drawn import drawn
from clara_jax.input_pipeline.records import DOCUMENT_FIELDS, Record, parse_documents, parse_record
from clara_jax.metrics.cases import Case, CorpusQuestion
from clara_jax.metrics.controls import draws
from clara_jax.text.titles import titled

_WORD = re.compile(r"\S+")
GOLD_FIELDS = ("gold_passages", "gold_passage")  # of a line: ids of the documents that answer it
Q = TypeVar("Q", Case, CorpusQuestion)


def question_cases(path: str, limit: int | None = None) -> tuple[Case, ...]:
    """Read the questions of a file of the stages ``instruct``, ``end_to_end`` or ``retrieval``, with their documents.

    Args:
      path: JSONL, see `clara_jax.input_pipeline.records`; an answer may be missing.
      limit: cases at most, see `drawn`.

    Raises:
      ClaraError: a file that cannot be read or has no question, a line that is not such a record.
    """
    records = parse_lines(path, lambda fields, where: parse_record(fields, "instruct", where, answered=False))
    cases = (question_case(record, _name(record.qid, record.where)) for record in records)
    return _numbered(cases, limit, path, "questions over documents")


def question_case(record: Record, name: str) -> Case:
    """Return the case of a record of the kind "question"."""
    return Case(name, "question", record.questions[0], record.documents, record.gold_answers, record.positives)


def scp_cases(path: str, limit: int | None = None) -> tuple[Case, ...]:
    """Read every question of a file of the stage ``scp``, with its one document; paraphrases are left out.

    Args:
      path: as for `question_cases`.
      limit: likewise.

    Raises:
      ClaraError: as `question_cases`.
    """
    records = parse_lines(path, lambda fields, where: parse_record(fields, "scp", where, answered=False))
    return _numbered((case for record in records for case in _scp(record)), limit, path, 'records of "data_type": "qa"')


def paraphrase_cases(path: str, limit: int | None = None) -> tuple[Case, ...]:
    """Read every document of a file as a case of paraphrasing.

    Documents of paraphrase records have their answers as references; all others come once and have none.

    Args:
      path: JSONL: records of any stage, or passages of a corpus.
      limit: cases at most, see `drawn`.

    Raises:
      ClaraError: a file that cannot be read or has no document, a line that has none.
    """
    return _numbered(_paraphrases(path), limit, path, "documents")


def window_cases(path: str, limit: int | None = None, words: int | None = None, seed: int = 0) -> tuple[Case, ...]:
    """Read every document of a file, or a window of it, as a case of reconstruction.

    Args:
      path: as for `paraphrase_cases`.
      limit: cases at most, see `drawn`.
      words: length of a window, whose place is drawn; shorter documents are left out. None: whole documents.
      seed: of the draws.

    Raises:
      ClaraError: a file that cannot be read or has no document that is long enough, a line that has none.
    """
    whole = (dataclasses.replace(case, kind="autoencode", references=()) for case in _paraphrases(path))
    cases = whole if words is None else (cut for case in whole if (cut := _window(case, words, seed)) is not None)
    return _numbered(cases, limit, path, "documents" if words is None else f"documents of {words} words")


def _window(case: Case, count: int, seed: int) -> Case | None:
    (document,) = case.documents
    places = [match.span() for match in _WORD.finditer(document)]
    if len(places) < count:
        return None
    start = int(draws(case, seed).integers(len(places) - count + 1))
    text = document[places[start][0] : places[start + count - 1][1]]
    return dataclasses.replace(case, documents=(text,))


def corpus_questions(paths: Sequence[str], limit: int | None = None) -> tuple[CorpusQuestion, ...]:
    """Read questions to a whole corpus, each with the passages that answer it.

    Args:
      paths: JSONL files. A line names the documents that answer its question by their ids, in ``gold_passage`` or
        ``gold_passages`` (one, or a list); or it is a record of ``instruct``, ``end_to_end`` or ``retrieval``, whose
        positive documents these are. Records without a positive document are left out. Answers may be missing.
      limit: questions of each file at most, see `drawn`.

    Raises:
      ClaraError: a file that cannot be read or has no such question, a line that is none.
    """
    found: list[CorpusQuestion] = []
    for path in paths:
        asked = (question for question in parse_lines(path, _parse_corpus_question) if question is not None)
        what = "questions with the passages that answer them (gold_passage, or pos_index)"
        found += _numbered(asked, limit, path, what)
    return _numbered(found, None, ", ".join(paths), "questions")


def _parse_corpus_question(fields: Any, where: str) -> CorpusQuestion | None:
    name = next((name for name in GOLD_FIELDS if isinstance(fields, Mapping) and fields.get(name)), None)
    if name is None:
        record = parse_record(fields, "instruct", where, answered=False)
        texts = tuple(record.documents[place] for place in record.positives)
        named = _name(record.qid, where)
        return CorpusQuestion(named, record.questions[0], record.gold_answers, texts=texts) if texts else None
    ids = [fields[name]] if isinstance(fields[name], str) else fields[name]
    if not isinstance(ids, list) or not all(isinstance(one, str) and one for one in ids):
        raise ClaraError(f'{where}: "{name}" must be the id of a document, or a list of ids')
    # What a question and its answers may be is a record's business: the ids stand in the place of its documents.
    answers = {"golden_answers": fields["gold_answers"]} if fields.get("gold_answers") else {}
    record = parse_record({**fields, "docs": list(ids), **answers}, "instruct", where, answered=False)
    documents = tuple(dict.fromkeys(ids))
    return CorpusQuestion(_name(record.qid, where), record.questions[0], record.gold_answers, documents)


def read_documents(path: str) -> Iterator[str]:
    """Yield every document of a file, in order.

    Args:
      path: as for `paraphrase_cases`.

    Raises:
      ClaraError: as `paraphrase_cases`.
    """
    return (document for _, documents, _ in parse_lines(path, _parse_documents) for document in documents)


def _scp(record: Record) -> Iterator[Case]:
    name = _name(record.qid, record.where)
    for number, question in enumerate(record.questions):
        case_id = f"{name} question {number + 1}" if len(record.questions) > 1 else name
        yield Case(case_id, "question", question, record.documents, record.answers[number : number + 1])


def _paraphrases(path: str) -> Iterator[Case]:
    seen: set[str] = set()
    for name, documents, references in parse_lines(path, _parse_documents):
        for number, document in enumerate(documents):
            if references or document not in seen:
                case_id = f"{name} document {number + 1}" if len(documents) > 1 else name
                yield Case(case_id, "paraphrase", "", (document,), references)
            seen.add(document)


def _parse_documents(fields: Any, where: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return a line's name, its documents, and reference paraphrases of them."""
    if isinstance(fields, Mapping) and fields.get("data_type") == "paraphrase":
        record = parse_record(fields, "scp", where, answered=False)
        return _name(record.qid, where), record.documents, record.gold_answers
    if isinstance(fields, Mapping) and any(isinstance(fields.get(name), list) for name in DOCUMENT_FIELDS):
        name = where if fields.get("qid") is None else str(fields["qid"])
        return _name(name, where), parse_documents(fields, where), ()
    passage = parse_passage(fields, where)
    return _name(passage.id, where), (titled(passage.title, passage.text),), ()


def _name(given: str, where: str) -> str:
    return f"line {where.rpartition(':')[2]}" if given == where else given


def _numbered(cases: Iterable[Q], limit: int | None, path: str, what: str) -> tuple[Q, ...]:
    """Return the cases that the limit leaves, each with a unique name that depends on the cases before it alone."""
    found: dict[str, Q] = {}
    for case in cases:
        name, count = case.id, 1
        while name in found:
            count += 1
            name = f"{case.id} ({count})"
        found[name] = dataclasses.replace(case, id=name)
    if not found:
        raise ClaraError(f"{path}: the file holds no {what}")
    return tuple(drawn(list(found.values()), limit))
