"""The files of questions: training records, held-out ones, and evaluation sets in the released layout."""

from __future__ import annotations

import collections
import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clara_jax.data.importers import candidates as choosing
from clara_jax.data.importers.examples import ImportedExample, Log
from clara_jax.data.importers.registry import IMPORTERS
from clara_jax.data.importers.retrievers import open_retriever
from clara_jax.data.public.downloads import members
from clara_jax.data.public.writing import write
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import read_json_lines

Fits = Callable[[Sequence[str]], list[bool]]  # documents -> whether each is short enough to be read whole

FEW, MANY = 5, 20  # documents of a question, for the stages instruct and end_to_end
TRAIN = {"instruct": 4000, "end_to_end": 1200}  # records of SQuAD; scp has one of each paragraph
HELD_OUT = {"instruct": 300, "end_to_end": 150}
FILES = {"instruct": "stage1_2_instruction", "end_to_end": "stage2_end_to_end"}
CASES = 500  # of SQuAD's evaluation set
FEWER_CASES = 200  # of the others
_MODES = {choosing.ORACLE: "eval_processed_with_pos.jsonl", choosing.NORMAL: "eval_processed_no_pos.jsonl"}


def squad(train: Path, dev: Path, output: Path, fits: Fits, seed: int) -> dict[str, int]:
    """Write SQuAD's records; return the number of each file.

    The articles of the development set are held out: those of one half, drawn by their titles, are measured while
    training, the others make the evaluation set. A paragraph is a candidate within its part alone.
    """
    learned = _fitting(_examples("squad", train), fits)
    kept_back = _fitting(_examples("squad", dev), fits)
    halves: dict[bool, list[ImportedExample]] = collections.defaultdict(list)
    for example in kept_back:
        halves[_draw(seed, "article", example.documents[0].title) % 2 == 0].append(example)
    written: dict[str, int] = {}
    for split, examples, counts in (("train", learned, TRAIN), ("dev", halves[True], HELD_OUT)):
        records = map(_question_and_document, _one_of_each_document(examples, seed))
        written |= write(output, f"squad/stage1_pretrain_qa.{split}.jsonl", records)
        for stage, count in counts.items():
            options = choosing.CandidateOptions(FEW if stage == "instruct" else MANY, seed=seed, titled=False)
            drawn = _drawn(examples, count, seed, stage)
            written |= write(output, f"squad/{FILES[stage]}.{split}.jsonl", _records(drawn, examples, options))
    return written | _evaluation("squad", halves[False], output, CASES, seed, titled=False)


def natural_questions(path: Path, output: Path, fits: Fits, seed: int) -> dict[str, int]:
    """Write the questions with their passages: an evaluation set, and the others to train on."""
    examples = _fitting(_examples("nq-lost-in-the-middle", path), fits)
    cases = {example.id for example in _drawn(examples, FEWER_CASES, seed, "nq")}
    kept_back = [example for example in examples if example.id in cases]
    learned = (_question_and_document(example) for example in examples if example.id not in cases)
    written = write(output, "extra/nq/stage1_pretrain_qa.train.jsonl", learned)
    return written | _evaluation("nq", kept_back, output, FEWER_CASES, seed, pool=examples)


def multi_hop(name: str, path: Path, output: Path, fits: Fits, seed: int) -> dict[str, int]:
    """Write the evaluation set of a data set whose questions need several documents."""
    return _evaluation(name, _fitting(_examples(name, path), fits), output, FEWER_CASES, seed)


def boolq(path: Path, output: Path, fits: Fits) -> dict[str, int]:
    """Write the questions that are answered by yes and no."""
    rows = []
    for where, fields in read_json_lines(str(path)):
        question, passage = (_text(fields, name, where) for name in ("question", "passage"))
        if not isinstance(fields.get("answer"), bool):
            raise ClaraError(f'{where}: "answer" must be true or false')
        asked = f"{question[0].upper()}{question[1:]}?"
        rows.append((asked, "yes" if fields["answer"] else "no", passage))
    return write(output, "extra/boolq/stage1_pretrain_qa.jsonl", _scp_records(rows, fits))


def fairytaleqa(archive: Path, pattern: str, output: Path, fits: Fits) -> dict[str, int]:
    """Write the questions on one section of a story each, the authors' splits kept apart."""
    tables: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = collections.defaultdict(dict)
    for name, content in members(archive, pattern):
        _, kind, split, file = name.split("/")
        story = file.removesuffix(".csv").removesuffix("-questions").removesuffix("-story")
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig", "replace"), newline="")))
        tables[split, story][kind] = rows
    written: dict[str, int] = {}
    for ours, theirs in (("train", "train"), ("dev", "val")):
        rows = [row for (split, _), table in sorted(tables.items()) if split == theirs for row in _story(table)]
        written |= write(output, f"extra/fairytaleqa/stage1_pretrain_qa.{ours}.jsonl", _scp_records(rows, fits))
    return written


def _story(table: dict[str, list[dict[str, str]]]) -> Iterator[tuple[str, str, str]]:
    """Yield (question, answer, section) of a story's questions whose answer stands in one section."""
    sections = {
        row.get("section", ""): " ".join(row.get("text", "").split()) for row in table.get("section-stories", ())
    }
    for row in table.get("questions", ()):
        question, answer = (row.get(name, "").strip() for name in ("question", "answer1"))
        section = sections.get(row.get("cor_section", "").strip(), "")
        if question and answer and section:
            yield question, answer, section


def held_out_documents(output: Path) -> Iterator[str]:
    """Yield the documents of all held-out questions that are in a folder."""
    for path in (*sorted(output.glob("squad/*.dev.jsonl")), *sorted(output.glob("eval/*/*/*.jsonl"))):
        for _, fields in read_json_lines(str(path)):
            yield from fields["docs"]


def _examples(name: str, path: Path) -> list[ImportedExample]:
    log = Log()
    return [example for example in IMPORTERS[name].read([str(path)], log) if choosing.has_gold(example)]


def _fitting(examples: Sequence[ImportedExample], fits: Fits) -> list[ImportedExample]:
    """Return the examples whose gold documents are read whole."""
    texts = list(dict.fromkeys(text for example in examples for text in _gold(example)))
    whole = {text for text, fitting in zip(texts, fits(texts), strict=True) if fitting}
    return [example for example in examples if all(text in whole for text in _gold(example))]


def _gold(example: ImportedExample) -> list[str]:
    return [document.text for document, gold in zip(example.documents, example.gold, strict=True) if gold]


def _one_of_each_document(examples: Sequence[ImportedExample], seed: int) -> list[ImportedExample]:
    """Return one question of each document, in an order drawn by the seed."""
    chosen: dict[str, ImportedExample] = {}
    for example in _drawn(examples, len(examples), seed, "scp"):
        chosen.setdefault(_gold(example)[0], example)
    return list(chosen.values())


def _drawn(examples: Sequence[ImportedExample], count: int, seed: int, what: str) -> list[ImportedExample]:
    return sorted(examples, key=lambda example: _draw(seed, what, example.id))[:count]


def _draw(seed: int, what: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {what} {name}".encode()).digest()[:8], "big")


def _evaluation(
    name: str,
    examples: Sequence[ImportedExample],
    output: Path,
    count: int,
    seed: int,
    titled: bool = True,
    pool: Sequence[ImportedExample] | None = None,
) -> dict[str, int]:
    """Write an evaluation set: few documents and many, with the gold ones among them and as they are found."""
    cases = _drawn(examples, count, seed, "cases")
    written: dict[str, int] = {}
    for folder, documents in (("stage1_eval", FEW), ("stage2_eval", MANY)):
        for mode, file in _MODES.items():
            options = choosing.CandidateOptions(documents, mode, seed=seed, titled=titled)
            written |= write(output, f"eval/{folder}/{name}/{file}", _records(cases, pool or examples, options))
    return written


def _records(
    asked: Sequence[ImportedExample], around: Sequence[ImportedExample], options: choosing.CandidateOptions
) -> Iterator[dict[str, Any]]:
    """Yield records of questions, with the other candidates from the documents of the examples around them."""
    pool = choosing.Pool(document.full(options.titled) for example in around for document in example.documents)
    retriever, statistics = open_retriever("bm25", pool.texts), choosing.CandidateStatistics.of(options)
    for one in choosing.choose_candidates(asked, pool, retriever, options, statistics):
        answers = list(one.example.answers)
        yield {
            "qid": one.example.id,
            "question": one.example.question,
            "docs": list(one.documents),
            "gold_answer": answers[0],
            "answer": answers[0],
            "golden_answers": answers,
            "pos_index": list(one.positives),
        }


def _question_and_document(example: ImportedExample) -> dict[str, Any]:
    return _scp(example.question, example.answers[0], _gold(example)[0])


def _scp_records(rows: Sequence[tuple[str, str, str]], fits: Fits) -> Iterator[dict[str, Any]]:
    """Yield the records of (question, answer, document) whose documents are read whole."""
    kept = fits([document for *_, document in rows])
    return (_scp(*row) for row, fitting in zip(rows, kept, strict=True) if fitting)


def _scp(question: str, answer: str, document: str) -> dict[str, Any]:
    return {"data_type": "qa", "question": [question], "answers": [answer], "docs": [document]}


def _text(fields: Any, name: str, where: str) -> str:
    value = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ClaraError(f'{where}: "{name}" must be a text')
    return value.strip()
