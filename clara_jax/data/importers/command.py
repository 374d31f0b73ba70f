"""``python -m clara_jax.data import NAME``: published data sets to records."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from clara_jax import command
from clara_jax.data.importers import clara_multi_stage
from clara_jax.data.importers.candidates import (
    MODES,
    NO_GOLD,
    ORACLE,
    CandidateOptions,
    CandidateStatistics,
    ExampleWithCandidates,
    Pool,
    choose_candidates,
    has_gold,
)
from clara_jax.data.importers.corpus_files import read_corpus
from clara_jax.data.importers.examples import ImportedDocument, ImportedExample, Log, content_id
from clara_jax.data.importers.registry import CLARA, IMPORTERS, Importer
from clara_jax.data.importers.retrievers import check_name, open_retriever
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import GZIP, ZSTANDARD, data_files, is_remote, write_json_lines

QUESTION_STAGES = ("instruct", "end_to_end", "retrieval")
CORPUS, QUERIES = "corpus", "queries"
CANDIDATES = {"instruct": 5}  # what one prompt holds; 20 in the stages that rank
MANY_CANDIDATES = 20
NO_POSITIVE = "no gold document among the candidates, which retrieval needs"
OUTPUTS = (".jsonl", f".jsonl{GZIP}", f".jsonl{ZSTANDARD}")
# Stands where a record must have an answer and the data set has none; the stage retrieval does not read it.
NO_ANSWER = "(no answer)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import``."""
    parser.description = "Turns a published data set into records (docs/importers.md lists the files to download)."
    names = ", ".join(f"{name} ({importer.title})" for name, importer in IMPORTERS.items())
    parser.add_argument(
        "name", choices=[*IMPORTERS, CLARA], metavar="NAME", help=f"{names}, {CLARA} (the published data of CLaRa)"
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help="files as published; patterns")
    command.add_option(parser, "--output", "OUT.jsonl, OUT.jsonl.gz or OUT.jsonl.zst", required=True)
    parser.add_argument(
        "--stage",
        help=f"{', '.join(QUESTION_STAGES)}: records; {CORPUS}: all documents; {QUERIES}: the questions with ids of "
        f"gold documents; with {CLARA} also scp (default: end_to_end, for beir retrieval)",
    )
    command.add_option(parser, "--candidates", "of a record; default: 20, for instruct 5")
    parser.add_argument(
        "--retriever", metavar="NAME", help="bm25 (default), minilm, or dense:MODEL of sentence-transformers"
    )
    parser.add_argument(
        "--mode", choices=MODES, help="oracle (default): gold documents are in, shuffled; normal: what a search finds"
    )
    parser.add_argument(
        "--drop-answer-bearing", action="store_true", help="no candidates that hold an answer and are not gold"
    )
    parser.add_argument(
        "--corpus", nargs="+", metavar="FILE", help="JSONL to take candidates from (default: all documents of --input)"
    )
    parser.add_argument("--no-titles", action="store_true", help="documents without the line with their title")
    parser.add_argument("--aliases", metavar="FILE", help="2wiki: id_aliases.json, for more accepted answers")
    command.add_option(parser, "--seed")
    command.add_option(parser, "--limit", "of the questions; default: all")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what is not as published ends the import (default), or goes to OUTPUT.rejected.jsonl",
    )


def run(arguments: argparse.Namespace) -> None:
    """Import a data set and print a report.

    Raises:
      ClaraError: options that do not fit, files that are not as published, nothing left to write.
    """
    importer = IMPORTERS.get(arguments.name)
    stage = arguments.stage or (importer.stage if importer else None)
    _check(arguments, importer, stage)
    assert stage is not None  # `_check` has refused that
    report: list[str] = []
    with _log(arguments) as log, write_json_lines(arguments.output) as write:
        if importer is None:
            lines = _published(arguments, stage, log)
        elif stage == CORPUS:
            lines = _corpus(arguments, importer, log)
        elif stage == QUERIES:
            lines = _queries(arguments, importer, log)
        else:
            lines = _records(arguments, importer, stage, log, report)
        count = 0
        for line in lines:
            write(line)
            count += 1
        if not count:
            raise ClaraError(_nothing_left(arguments.output, log))
    print("\n".join([f"{arguments.output}: {count:,} {_unit(stage)}", *report, *_left_out(arguments.output, log)]))


def _check(arguments: argparse.Namespace, importer: Importer | None, stage: str | None) -> None:
    """Refuse options that do not go together, before anything is read."""
    name, output = arguments.name, arguments.output
    if is_remote(output) or not output.endswith(OUTPUTS):
        raise ClaraError(f"--output: {output} must be a local file whose name ends in {', '.join(OUTPUTS)}")
    if importer is None:
        if stage is None:
            raise ClaraError(f"--stage: {CLARA} has records of all stages; name one")
    elif stage not in (*QUESTION_STAGES, CORPUS, QUERIES):
        raise ClaraError(
            f"--stage: {stage!r} cannot be made of {name}; name {', '.join(QUESTION_STAGES)}, {CORPUS} or {QUERIES}"
        )
    elif not importer.answered and stage in ("instruct", "end_to_end"):
        raise ClaraError(f"--stage: {name} has no answers to learn; name retrieval, {CORPUS} or {QUERIES}")
    if importer is None or stage in (CORPUS, QUERIES):
        for option in ("candidates", "retriever", "mode", "corpus", "drop_answer_bearing"):
            if getattr(arguments, option):
                what = CLARA if importer is None else f"--stage {stage}"
                raise ClaraError(f"--{option.replace('_', '-')}: has no effect with {what}; leave it out")
    if arguments.aliases and name != "2wiki":
        raise ClaraError(f"--aliases: {name} has no file of aliases; leave it out")
    for option in ("candidates", "limit"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ClaraError(f"--{option}: {value} must be at least 1")
    if arguments.retriever:
        check_name(arguments.retriever)


def _records(
    arguments: argparse.Namespace, importer: Importer, stage: str, log: Log, report: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield the records; after the last, add the lines on the candidates to the report."""
    options = CandidateOptions(
        count=arguments.candidates or CANDIDATES.get(stage, MANY_CANDIDATES),
        mode=arguments.mode or ORACLE,
        drop_answer_bearing=arguments.drop_answer_bearing,
        seed=arguments.seed,
        most_gold=importer.most_gold,
        titled=not arguments.no_titles,
    )
    examples = _shared(_examples(arguments, importer, log))
    published = (document for example in examples for document in example.documents)
    given = read_corpus(data_files(arguments.corpus, "--corpus"), log) if arguments.corpus else None
    more = importer.read_corpus(_files(arguments), _repeated(arguments)) if importer.read_corpus else ()
    sources: Sequence[Iterable[ImportedDocument]] = (given,) if given is not None else (published, more)
    pool = Pool(document.full(options.titled) for source in sources for document in source)
    if examples and not pool.texts:
        raise ClaraError(f"--corpus: {arguments.name} brings no documents; name JSONL files with some")
    if options.mode == ORACLE:
        known = [example for example in examples if has_gold(example)]
        log.skip(NO_GOLD, len(examples) - len(known))
        examples = known
    statistics = CandidateStatistics.of(options)
    name = arguments.retriever or "bm25"
    filled: Iterable[ExampleWithCandidates] = ()
    if examples:
        retriever = open_retriever(name, pool.texts, progress=True)
        filled = choose_candidates(examples, pool, retriever, options, statistics)
    for one in tqdm(filled, "candidates", total=len(examples), unit=" questions", leave=False):
        if stage == "retrieval" and not one.positives:
            log.skip(NO_POSITIVE)
            continue
        yield _record(one)
    report += _candidates_report(statistics, options, name, len(pool.texts))


def _record(filled: ExampleWithCandidates) -> dict[str, Any]:
    answers = list(filled.example.answers) or [NO_ANSWER]
    return {
        "qid": filled.example.id,
        "question": filled.example.question,
        "docs": filled.documents,
        "answer": answers[0],
        "golden_answers": answers,
        "pos_index": filled.positives,
    }


def _corpus(arguments: argparse.Namespace, importer: Importer, log: Log) -> Iterator[dict[str, Any]]:
    """Yield every document once."""
    if importer.read_corpus:
        documents = importer.read_corpus(_files(arguments), log)
    else:
        documents = (document for example in _examples(arguments, importer, log) for document in example.documents)
    titled, seen = not arguments.no_titles, set()
    for document in documents:
        id = _document_id(document)
        if id not in seen:
            seen.add(id)
            yield {"id": id, "title": document.title if titled else "", "text": document.text}


def _queries(arguments: argparse.Namespace, importer: Importer, log: Log) -> Iterator[dict[str, Any]]:
    """Yield the questions; ``gold`` holds ids of the corpus that `_corpus` writes."""
    for example in _examples(arguments, importer, log):
        gold = (document for document, is_gold in zip(example.documents, example.gold, strict=True) if is_gold)
        yield {
            "qid": example.id,
            "question": example.question,
            "golden_answers": example.answers,
            "gold": list(dict.fromkeys(map(_document_id, gold))),
        }


def _published(arguments: argparse.Namespace, stage: str, log: Log) -> Iterator[dict[str, Any]]:
    files = data_files(map(clara_multi_stage.patterns, arguments.input), "--input")
    records = clara_multi_stage.read(files, stage, log)
    yield from _limited(tqdm(records, "reading", unit=" records", leave=False), arguments.limit)


def _examples(arguments: argparse.Namespace, importer: Importer, log: Log) -> Iterator[ImportedExample]:
    files = _files(arguments)
    if arguments.aliases:
        (aliases,) = data_files([arguments.aliases], "--aliases")
        examples = importer.read(files, log, aliases)
    else:
        examples = importer.read(files, log)
    return _limited(tqdm(examples, "reading", unit=" questions", leave=False), arguments.limit)


def _files(arguments: argparse.Namespace) -> tuple[str, ...]:
    return data_files(arguments.input, "--input")


def _limited(items: Iterable[Any], limit: int | None) -> Iterator[Any]:
    for count, item in enumerate(items, start=1):
        yield item
        if count == limit:  # without a look at what follows
            break


def _shared(examples: Iterable[ImportedExample]) -> list[ImportedExample]:
    """Return all examples; equal documents are one object in memory."""
    known: dict[ImportedDocument, ImportedDocument] = {}
    return [
        dataclasses.replace(
            example, documents=tuple(known.setdefault(document, document) for document in example.documents)
        )
        for example in examples
    ]


def _document_id(document: ImportedDocument) -> str:
    return document.id or content_id("d", document.title, document.text)


@contextlib.contextmanager
def _log(arguments: argparse.Namespace) -> Iterator[Log]:
    """Open the log of a run; refused records are in their file when the block has ended without an exception."""
    path = _rejected_file(arguments.output)
    if arguments.on_error == "stop":
        yield Log()
    else:
        with write_json_lines(path) as write:
            log = Log(_rejecter(write))
            yield log
        if log.rejected:
            return
    with contextlib.suppress(FileNotFoundError):  # of an earlier run
        os.unlink(path)


def _rejecter(write: Callable[[Any], None]) -> Callable[[str, str, Any], None]:
    def reject(where: str, reason: str, content: Any) -> None:
        text = content.decode(errors="replace").rstrip("\r\n") if isinstance(content, bytes) else json.dumps(content)
        write({"where": where, "reason": reason, "line": text})

    return reject


def _repeated(arguments: argparse.Namespace) -> Log:
    """Return the log for a second reading of a file, whose refused records were reported in the first."""
    return Log() if arguments.on_error == "stop" else Log(lambda where, reason, content: None)


def _rejected_file(output: str) -> str:
    return f"{output}.rejected.jsonl"


def _unit(stage: str) -> str:
    return {CORPUS: "documents", QUERIES: "questions"}.get(stage, f"records for {stage}")


def _candidates_report(
    statistics: CandidateStatistics, options: CandidateOptions, retriever: str, documents: int
) -> list[str]:
    lines = []
    if statistics.with_gold:
        shares = ", ".join(f"@{k} {statistics.gold_share[k] / statistics.with_gold:.3f}" for k in statistics.cutoffs)
        lines.append(f"gold documents found by {retriever} among {documents:,} documents: {shares}")
    if statistics.answer_bearing:
        done = "left out" if options.drop_answer_bearing else "kept; --drop-answer-bearing leaves them out"
        lines.append(
            f"answer-bearing documents that are not gold: {statistics.answer_bearing:,} in "
            f"{statistics.questions_answer_bearing:,} of {statistics.questions:,} questions, {done}"
        )
    if statistics.short:
        lines.append(f"fewer than {options.count} candidates: {statistics.short:,} records, the corpus has no more")
    return lines


def _left_out(output: str, log: Log) -> list[str]:
    lines = [f"skipped: {_counts(log.skipped)}"] if log.skipped else []
    if log.noted:
        lines.append(f"noted: {_counts(log.noted)}")
    if log.rejected:
        lines.append(f"rejected: {log.rejected:,}, with reasons in {_rejected_file(output)}")
    return lines


def _counts(counter: Counter[str]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in counter.most_common())


def _nothing_left(output: str, log: Log) -> str:
    reasons = [f"skipped {_counts(log.skipped)}"] if log.skipped else []
    if log.rejected:
        reasons.append(f"rejected {log.rejected:,}, the first: {log.first_rejected}")
    hint = "; name --mode normal" if log.skipped[NO_GOLD] else ""
    return f"{output}: nothing is left to write ({'; '.join(reasons) or 'the files hold no records'}){hint}"
