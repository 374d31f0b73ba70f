"""Training and evaluation records: JSONL files, each line checked, every spelling brought to one form.

The fields are those of the released training data (released checkpoint format, "Training records"):

- scp: ``data_type`` ("qa", which it is where it is absent, or "paraphrase"), ``question``, ``answers``, one document
  in ``docs``;
- autoencode, continue: a passage, in ``text`` or as the one document in ``docs``; of continue a document in ``docs``
  with what follows it in ``answer``, too;
- instruct, end_to_end, retrieval: ``question``, ``docs``, ``answer`` (retrieval needs none), and optionally
  ``gold_answer``, ``pos_index``, ``qid``.

Documents may also stand under ``context`` or ``content``, answers under ``answer``, ``answers``, ``golden_answers`` or
``gold_answer``. A field that is null counts as missing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import Rejects, checked_utf8, json_kind, parse_lines

STAGES = ("scp", "instruct", "end_to_end", "retrieval")
TEXT_STAGES = ("autoencode", "continue")  # they learn from text alone
ALL_STAGES = (*STAGES, *TEXT_STAGES)
ONE_DOCUMENT = ("scp", *TEXT_STAGES)  # a record has one; those of the others have several
RANKING_STAGES = ("end_to_end", "retrieval")  # a question ranks candidates
DOCUMENT_FIELDS = ("docs", "context", "content")
ANSWER_FIELDS = ("answer", "answers", "golden_answers", "gold_answer")
REFERENCE_FIELDS = ("golden_answers", "gold_answer")  # what an answer is compared with, where a file has it


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of a file.

    Attributes:
      kind: "qa" (scp: questions answered in turn), "paraphrase" (scp), "autoencode" and "continue" (of the stages of
        these names), or "question" (all other stages).
      documents: at least one; exactly one for scp, autoencode and continue.
      questions: qa: one or more; question: one; none for the others.
      answers: the targets: qa: one per question; paraphrase: the text; question: the target; autoencode: the
        document; continue: what follows it. Empty only where none is needed, see `parse_record`, and of a passage
        that is not divided yet (see `clara_jax.input_pipeline.windows`).
      gold_answers: every reference an answer may be compared with; empty where ``answers`` is.
      positives: sorted indices into ``documents``; empty where none is known.
      where: "file.jsonl:17", for messages.
      qid: the file's name for the record, else ``where``.
    """

    kind: str
    documents: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    gold_answers: tuple[str, ...]
    positives: tuple[int, ...]
    where: str
    qid: str


def read_records(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    stage: str,
    limit: int | None = None,
    rejects: Rejects | None = None,
) -> list[Record]:
    """Read the records of one file or several, in order.

    Args:
      paths: JSONL files, UTF-8, also compressed (``.gz``, ``.zst``), local or remote. Blank lines are allowed.
      stage: one of `ALL_STAGES`.
      limit: stop after this many records; lines after them are not looked at.
      rejects: takes the lines that are not records of this stage; None: the first one is an error.

    Raises:
      ClaraError: a file that cannot be read or holds no record, a line that is not a record of this stage, a retrieval
        file none of whose records names a positive document.
    """
    if stage not in ALL_STAGES:
        raise ClaraError(f"stage {stage!r} is unknown; it must be one of {', '.join(ALL_STAGES)}")
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not files:
        raise ClaraError("no data file is named; name at least one JSONL file")
    records: list[Record] = []
    for path in (os.fspath(file) for file in files):
        if limit is not None and len(records) >= limit:
            break
        left = None if limit is None else limit - len(records)
        part = list(islice(parse_lines(path, lambda fields, where: parse_record(fields, stage, where), rejects), left))
        check_file(path, stage, len(part), sum(bool(record.positives) for record in part), rejects)
        records += part
    return records


def check_file(path: str, stage: str, records: int, with_positives: int, rejects: Rejects | None = None) -> None:
    """Refuse a file from which a stage cannot learn, though each line may be a record.

    Args:
      path: of the file.
      stage: one of `ALL_STAGES`, or another kind of item.
      records: how many the file holds.
      with_positives: how many of them name a positive document.
      rejects: the lines that were rejected.

    Raises:
      ClaraError: no records; for retrieval, none that names a positive document.
    """
    if not records:
        first = rejects.first.get(path) if rejects else None
        remark = f"; the first line that is none: {first}" if first else ""
        raise ClaraError(f"{path}: the file holds no records; write one JSON object on each line{remark}")
    if stage == "retrieval" and not with_positives:
        raise ClaraError(
            f'{path}: no record has a "pos_index"; retrieval learns from documents that are marked as positive'
        )


def parse_record(fields: Any, stage: str, where: str, answered: bool = True) -> Record:
    """Return the `Record` of one decoded JSON value.

    Args:
      fields: the decoded JSON value.
      stage: one of `ALL_STAGES`.
      where: what messages begin with, e.g. "file.jsonl:17".
      answered: training needs an answer, but for retrieval, which learns from positive documents alone. Evaluation
        does not: where none is needed, a field of answers that is "" or [] is taken for missing, and a record without
        any is one without references.

    Raises:
      ClaraError: not a record of this stage.
    """
    if not isinstance(fields, Mapping):
        raise ClaraError(f"{where}: the line holds {json_kind(fields)}; each line must be a JSON object")
    answered = answered and stage != "retrieval"
    if not answered:
        fields = {name: value for name, value in fields.items() if name not in ANSWER_FIELDS or not _is_blank(value)}
    if stage in TEXT_STAGES:
        return _passage(fields, stage, where)
    documents = parse_documents(fields, where)
    positives = _positives(fields, len(documents), where)
    name = fields.get("qid")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise ClaraError(f'{where}: "qid" is {json_kind(name)}; it must be a string or a number')
    kind, questions, answers, gold = (_scp if stage == "scp" else _question)(fields, stage, where, answered)
    if stage == "scp" and len(documents) != 1:
        raise ClaraError(
            f'{where}: "docs" holds {len(documents)} documents; an scp record has exactly one, split the record'
        )
    return Record(kind, documents, questions, answers, gold, positives, where, where if name is None else str(name))


def _scp(fields: Mapping, stage: str, where: str, answered: bool):
    kind = "qa" if fields.get("data_type") is None else fields["data_type"]  # as in the released code
    if kind not in ("qa", "paraphrase"):
        raise ClaraError(f'{where}: "data_type" is {kind!r}; an scp record is "qa" (also without it) or "paraphrase"')
    name, answers = _answers(fields, where, answered)
    if kind == "paraphrase":
        return kind, (), answers[:1], answers
    questions = _strings(fields, "question", where)
    if name and len(questions) != len(answers):
        raise ClaraError(
            f'{where}: "question" has {len(questions)} entries and "{name}" has {len(answers)}; '
            "write one answer for each question"
        )
    return kind, questions, answers, answers


def _passage(fields: Mapping, stage: str, where: str) -> Record:
    """Return the record of a passage, whole, or divided into a document and what follows it."""
    if fields.get("text") is not None:
        documents = (_text(fields["text"], '"text"', where),)
    elif any(fields.get(name) is not None for name in DOCUMENT_FIELDS):
        documents = parse_documents(fields, where)
    else:
        raise ClaraError(f'{where}: "text" is missing; a record of the stage {stage} is a passage')
    if len(documents) != 1:
        raise ClaraError(f'{where}: "docs" holds {len(documents)} documents; a record of the stage {stage} has one')
    answers = documents
    if stage == "continue":
        answers = _answers(fields, where, False)[1] if fields.get("text") is None else ()
        if len(answers) > 1:
            raise ClaraError(f"{where}: there are {len(answers)} answers; a document is continued in one way")
    return Record(stage, documents, (), answers, answers, (), where, where)


def _question(fields: Mapping, stage: str, where: str, answered: bool):
    kind = fields.get("data_type")
    if kind not in (None, "qa", "question"):
        raise ClaraError(
            f'{where}: "data_type" is {kind!r}; records of the stage {stage} are questions: write "qa" or leave it out'
        )
    question = _present(fields, "question", where)
    if not isinstance(question, str):
        raise ClaraError(
            f'{where}: "question" is {json_kind(question)}; a record of the stage {stage} has one question, a string'
        )
    _, answers = _answers(fields, where, answered)
    references = [
        text for name in REFERENCE_FIELDS if fields.get(name) is not None for text in _strings(fields, name, where)
    ]
    gold = tuple(dict.fromkeys(references)) or answers
    return "question", (_text(question, '"question"', where),), answers[:1], gold


def parse_documents(fields: Mapping, where: str) -> tuple[str, ...]:
    """Return the documents of a record's fields, at least one.

    Raises:
      ClaraError: none, or not a list of texts.
    """
    name = next((name for name in DOCUMENT_FIELDS if fields.get(name) is not None), None)
    if name is None:
        raise ClaraError(f'{where}: "docs" is missing; each record needs a list of documents (or "context", "content")')
    value = fields[name]
    if not isinstance(value, list):
        raise ClaraError(f'{where}: "{name}" is {json_kind(value)}; it must be a list of strings')
    if not value:
        raise ClaraError(f'{where}: "{name}" is empty; each record needs at least one document')
    return tuple(_text(text, f'"{name}"[{i}]', where) for i, text in enumerate(value))


def _answers(fields: Mapping, where: str, needed: bool) -> tuple[str | None, tuple[str, ...]]:
    """Return the name of the field that holds the answers, and the answers."""
    name = next((name for name in ANSWER_FIELDS if fields.get(name) is not None), None)
    if name is None:
        if not needed:
            return None, ()
        raise ClaraError(f'{where}: "answer" is missing; each record needs an answer ({", ".join(ANSWER_FIELDS)})')
    return name, _strings(fields, name, where)


def _positives(fields: Mapping, documents: int, where: str) -> tuple[int, ...]:
    value = fields.get("pos_index")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ClaraError(
            f'{where}: "pos_index" is {json_kind(value)}; it must be a list of whole numbers, [] where none is known'
        )
    for i, index in enumerate(value):
        if isinstance(index, bool) or not isinstance(index, int):
            raise ClaraError(
                f'{where}: "pos_index"[{i}] is {json_kind(index)}; it must be a whole number, counted from 0'
            )
        if not 0 <= index < documents:
            raise ClaraError(
                f'{where}: "pos_index"[{i}] is {index}, but the record has {documents} documents; '
                f"it must be from 0 to {documents - 1}"
            )
    return tuple(sorted(set(value)))


def _is_blank(value: Any) -> bool:
    return value == [] or (isinstance(value, str) and not value.strip())


def _present(fields: Mapping, name: str, where: str) -> Any:
    if fields.get(name) is None:
        raise ClaraError(f'{where}: "{name}" is missing')
    return fields[name]


def _strings(fields: Mapping, name: str, where: str) -> tuple[str, ...]:
    """Return the strings of a field that holds a string, or a list of at least one."""
    value = _present(fields, name, where)
    if isinstance(value, str):
        return (_text(value, f'"{name}"', where),)
    if not isinstance(value, list):
        raise ClaraError(f'{where}: "{name}" is {json_kind(value)}; it must be a string or a list of strings')
    if not value:
        raise ClaraError(f'{where}: "{name}" is empty; it needs at least one entry')
    return tuple(_text(text, f'"{name}"[{i}]', where) for i, text in enumerate(value))


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise ClaraError(f"{where}: {field} is {json_kind(value)}; it must be a string")
    if not value.strip():
        raise ClaraError(f"{where}: {field} is empty; write some text or remove it")
    return checked_utf8(value, field, where)
