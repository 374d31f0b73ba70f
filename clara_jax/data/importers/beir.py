"""BEIR folders: queries, a corpus, and which of its documents answer which query (Thakur et al. 2021).

An unpacked data set, e.g. ``scifact/``, holds

- ``corpus.jsonl``: ``_id`` string, unique; ``title`` string, may be "" or missing; ``text`` string; ``metadata`` not
  read.
- ``queries.jsonl``: ``_id`` string, unique; ``text`` string; ``metadata`` not read.
- ``qrels/train.tsv``, ``dev.tsv``, ``test.tsv``, not all in every set: a header ``query-id``, ``corpus-id``, ``score``,
  then one judgement a line, separated by tabs. The score is a whole number; from 1 on the document is relevant.

The JSONL files may be compressed. There are no answers, so examples have none: they serve ranking (stage
``retrieval``), or as queries and a corpus for evaluation. An example's documents are those judged for it, gold where
relevant. Queries of the folder that the qrels file does not mention belong to another split and are not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clara_jax.data.importers.examples import ImportedDocument, ImportedExample, Log
from clara_jax.data.importers.fields import Fields
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import GZIP, ZSTANDARD, data_files, decode, raw_lines

HEADER = ["query-id", "corpus-id", "score"]
NO_RELEVANT = "no relevant document"
NO_TEXT = "documents without title and text, left out"


def read(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedExample]:
    """Yield the judged queries.

    Args:
      paths: qrels files, or folders that hold one qrels file.
      log: collects what is left out.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them; a folder with several qrels files.
    """
    log = log or Log()
    for folder, qrels in map(_located, paths):
        rows = list(_rows(qrels, log))
        queries = dict(_queries(_file(folder, "queries"), log))
        known, judged = set(), {}
        wanted = {row.document for row in rows}
        for id, document in _documents(_file(folder, "corpus"), log):
            known.add(id)
            if document is not None and id in wanted:
                judged[id] = document
        judgements: dict[str, dict[str, _Row]] = {}
        for row in rows:
            with log.record(row.where, row.line):
                if row.query not in queries:
                    raise ClaraError(f"{row.where}: the query-id {row.query!r} is in no line of {folder}/queries.jsonl")
                if row.document not in known:
                    raise ClaraError(
                        f"{row.where}: the corpus-id {row.document!r} is in no line of {folder}/corpus.jsonl"
                    )
                earlier = judgements.setdefault(row.query, {}).setdefault(row.document, row)
                if earlier is not row:
                    raise ClaraError(
                        f"{row.where}: {row.query!r} and {row.document!r} are judged on {earlier.where} already"
                    )
        for query, row_of in judgements.items():
            row_of = {id: row for id, row in row_of.items() if id in judged}
            gold = tuple(row.score > 0 for row in row_of.values())
            if not any(gold):
                log.skip(NO_RELEVANT)
                continue
            first = next(iter(row_of.values()))
            with log.record(first.where, first.line):
                log.claim(query, first.where)
                yield ImportedExample(query, queries[query], (), tuple(judged[id] for id in row_of), gold, first.where)


def read_corpus(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedDocument]:
    """Yield all documents of the folders, each folder's once.

    Args:
      paths: as in `read`.
      log: as in `read`.
    """
    for folder in dict.fromkeys(folder for folder, _ in map(_located, paths)):
        for _, document in _documents(_file(folder, "corpus"), log or Log()):
            if document is not None:
                yield document


def _located(path: str) -> tuple[str, str]:
    """Return (folder of the data set, qrels file)."""
    if path.endswith(".tsv"):
        return os.path.dirname(os.path.dirname(path)) or ".", path
    folder = path.rstrip("/")
    first, *others = data_files([f"{folder}/qrels/*.tsv"], "--input")
    if others:
        names = ", ".join(os.path.basename(name) for name in (first, *others))
        raise ClaraError(f"{folder}/qrels: holds {names}; name one of them instead of the folder")
    return folder, first


def _file(folder: str, name: str) -> str:
    for ending in (".jsonl", f".jsonl{GZIP}", f".jsonl{ZSTANDARD}"):
        try:
            return data_files([f"{folder}/{name}{ending}"], "--input")[0]
        except ClaraError:
            continue
    raise ClaraError(f"{folder}: has no {name}.jsonl; name the folder of a BEIR data set, or a file in its qrels")


def _queries(path: str, log: Log) -> Iterator[tuple[str, str]]:
    ids = set()
    for where, line in raw_lines(path):
        with log.record(where, line):
            record = Fields(decode(line, where), where)
            id = record.text("_id")
            if id in ids:
                record.refuse("_id", f"is {id!r}, as on an earlier line; each must be unique")
            ids.add(id)
            yield id, record.text("text")


def _documents(path: str, log: Log) -> Iterator[tuple[str, ImportedDocument | None]]:
    """Yield (id, document) of a corpus; None for a document without title and text."""
    ids = set()
    for where, line in raw_lines(path):
        with log.record(where, line):
            record = Fields(decode(line, where), where)
            id, title = record.text("_id"), record.text_or_blank("title").strip()
            if "text" not in record:
                record.refuse("text", "is missing")
            text = record.text_or_blank("text").strip()
            if id in ids:
                record.refuse("_id", f"is {id!r}, as on an earlier line; each must be unique")
            ids.add(id)
            if not title and not text:
                log.note(NO_TEXT)
            yield id, ImportedDocument(title if text else "", text or title, id) if title or text else None


class _Row(NamedTuple):
    """A judgement."""

    query: str
    document: str
    score: int
    where: str
    line: bytes


def _rows(path: str, log: Log) -> Iterator[_Row]:
    for number, (where, line) in enumerate(raw_lines(path)):
        if number == 0:
            if _cells(line, where) != HEADER:
                raise ClaraError(f"{where}: the first line must be the header {' '.join(HEADER)}, parted by tabs")
            continue
        with log.record(where, line):
            cells = _cells(line, where)
            if len(cells) != len(HEADER):
                raise ClaraError(f"{where}: has {len(cells)} columns; it must be {' '.join(HEADER)}, parted by tabs")
            try:
                score = int(cells[2])
            except ValueError:
                raise ClaraError(f"{where}: the score is {cells[2]!r}; it must be a whole number") from None
            yield _Row(cells[0], cells[1], score, where, line)


def _cells(line: bytes, where: str) -> list[str]:
    try:
        return line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise ClaraError(f"{where}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8") from None
