"""Chunked documents for a store, read from files, folders and built data sets."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from clara_jax.data.corpus.files import JSONL, KINDS, InputFile, find_files, real_path, same_content
from clara_jax.data.corpus.readers import json_document, read_file
from clara_jax.data.layout import INFO
from clara_jax.data.passages import Passage, parse_passage
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import decode, is_remote, raw_lines
from clara_jax.retrieval.read_report import DATASET, ReadReport
from clara_jax.text.chunks import Chunker
from clara_jax.text.documents import Chunk, CorpusDocument, DocumentMetadata, text_id

T = TypeVar("T")
LONGEST_ID = 512  # characters
ONE_FILE = frozenset(KINDS.values()) - {JSONL}  # types of documents that are a whole file
MOST_BAD_LINES = 1000  # of a file, after which the rest of it is left out
Wanted = Callable[[str], bool]  # of a document's id: whether it is to be read


class ChunkedDocument(NamedTuple):
    """A document's id, its chunks, in order, and what else is known of it."""

    id: str
    chunks: tuple[Chunk, ...]
    metadata: DocumentMetadata = DocumentMetadata()


def chunk_all(
    documents: Iterable[str | CorpusDocument | ChunkedDocument], chunker: Chunker
) -> Iterator[ChunkedDocument]:
    """Split documents into chunks; of equal texts the first one counts.

    Args:
      documents: texts, whole documents, or chunked ones, which pass as they are.
      chunker: that cuts them.

    Raises:
      ClaraError: a document without text or with a bad id, or two with one id.
    """
    seen: set[str] = set()
    for document in documents:
        if isinstance(document, ChunkedDocument):  # `read` has checked these
            yield document
            continue
        if isinstance(document, str):
            document = text_document(document)
            if document.id in seen:
                continue
        chunked = chunk_document(document, chunker)
        if not chunked.chunks:
            raise ClaraError(f"document {chunked.id!r}: holds no text")
        if chunked.id in seen:
            raise ClaraError(f"document {chunked.id!r} twice; each needs an id of its own")
        seen.add(chunked.id)
        yield chunked


def chunk_document(document: CorpusDocument, chunker: Chunker) -> ChunkedDocument:
    """Split a document into chunks; a blank one has none.

    Raises:
      ClaraError: an id that is empty, too long or holds control characters.
    """
    chunks = tuple(chunk.stored for chunk in chunker(document))
    return ChunkedDocument(checked_id(document.id, document.source), chunks, document.metadata)


def text_document(text: str) -> CorpusDocument:
    """Return a text alone as a document; its id is a hash of it, so that the same text is the same document."""
    return CorpusDocument(text_id(text), "", text, "")


def every(document: str) -> bool:
    """Return True: every document is wanted."""
    return True


def read(
    inputs: Sequence[str],
    chunker: Chunker,
    follow_links: bool = False,
    report: ReadReport | None = None,
    wanted: Wanted = every,
) -> Iterator[ChunkedDocument]:
    """Read the documents of some inputs: those of files and folders in order, then those of data sets.

    Of files with the same content the first one is read.

    Args:
      inputs: folders, files (see `clara_jax.data.corpus.files.KINDS`, each also .gz or .zst), patterns, and directories
        of data sets that ``python -m clara_jax.data build`` made of a corpus. The lines of a corpus file (those that
        name the document they were cut from) are chunks already; lines of one document stand together.
      chunker: for documents that are not chunked yet.
      follow_links: see `clara_jax.data.corpus.files.find_files`.
      report: is filled while documents are read, and decides whether one that cannot be read is an error; by default
        the first one is.
      wanted: whether a document is to be read, by its id. A file that is one document which is not is not opened; of a
        file of lines all are looked at, and those that are not wanted are not cut into chunks.

    Raises:
      ClaraError: an input that does not exist, or nothing to read; in a strict reading also what cannot be read, a
        document that comes twice, or a passage longer than the compressor reads.
    """
    report = ReadReport(strict=True) if report is None else report
    yield from _distinct(_read(inputs, chunker, follow_links, report, wanted), report)


def read_files(
    files: Sequence[InputFile], chunker: Chunker, report: ReadReport, longest: int | None = None
) -> Iterator[ChunkedDocument]:
    """Read the documents of files that have been found already; see `read`.

    Args:
      files: in order.
      chunker: for documents that are not chunked yet.
      report: see `read`.
      longest: characters of a file that is one document; a longer one cannot be read. None for any number.

    Raises:
      ClaraError: see `read`.
    """
    yield from _distinct(_files(files, chunker, report, longest), report)


def _distinct(found: Iterable[tuple[str, str, ChunkedDocument]], report: ReadReport) -> Iterator[ChunkedDocument]:
    """Yield the documents of (kind, real path, document), the first of those with one id."""
    for kind, file, document in found:
        if document.id in report.ids:
            source = document.chunks[0].source if document.chunks else ""
            place = source or document.id
            report.skip(
                place,
                ClaraError(
                    f"{place}: there is a document {document.id!r} before; each needs another id, which of "
                    "a file is its path below the folder that is named, and the chunks of one stand together"
                ),
                file,
            )
            continue
        report.ids.add(document.id)
        report.documents[kind] += 1
        yield document


def _read(
    inputs: Sequence[str], chunker: Chunker, follow_links: bool, report: ReadReport, wanted: Wanted
) -> Iterator[tuple[str, str, ChunkedDocument]]:
    """Yield (kind, real path of the file or data set, document)."""
    datasets = [given for given in inputs if not is_remote(given) and _is_dataset(given)]
    named = [given for given in inputs if given not in datasets]
    if named:
        refuse = lambda path, error: report.skip(path, error, real_path(path))  # noqa: E731
        files, ignored = find_files(named, follow_links, refuse, "documents")
        report.ignored.update(ignored)
        yield from _files(files, chunker, report, wanted=wanted)
    for given in datasets:
        report.files[DATASET] += 1
        report.paths.add(real_path(given))
        for document in _dataset(given, chunker, report, wanted):
            yield DATASET, real_path(given), document


def _files(
    files: Sequence[InputFile],
    chunker: Chunker,
    report: ReadReport,
    longest: int | None = None,
    wanted: Wanted = every,
) -> Iterator[tuple[str, str, ChunkedDocument]]:
    report.found, same = len(files), same_content(files)
    for file in files:
        report.at += 1
        if file.kind != JSONL and not wanted(file.name):
            continue
        other, path = same.get(file.path), real_path(file.path)
        report.paths.add(path)
        if other is not None and other.path in report.skipped:
            reason = report.skipped[other.path]
            report.skip(file.path, ClaraError(f"{file.path}: {reason}"), path)
            continue
        if other is not None:
            report.same[file.path] = other.path
            continue
        try:
            if file.kind == JSONL:
                for document in _lines(file, chunker, report, wanted):
                    yield file.kind, path, document
            elif file.path in report.known:
                raise ClaraError(report.known[file.path])
            else:
                document = read_file(file)
                if longest is not None and len(document.text) > longest:
                    raise ClaraError(f"{file.path}: holds more than {longest:,} characters of text; divide it")
                _note(report, file, document)
                yield file.kind, path, chunk_document(document, chunker)
        except ClaraError as error:
            report.skip(file.path, error, path)
        else:
            report.files[file.kind] += 1


def _note(report: ReadReport, file: InputFile, document: CorpusDocument) -> None:
    encoding = document.guessed_encoding
    notes = [document.note, f"its encoding was guessed: {encoding}" if encoding else ""]
    if any(notes):
        report.notes[file.path] = "; ".join(filter(None, notes))


def _dataset(given: str, chunker: Chunker, report: ReadReport, wanted: Wanted) -> Iterator[ChunkedDocument]:
    from clara_jax.data.builders.source import RecordSource, dataset_directory, read_metadata  # TFDS is slow to import

    directory = dataset_directory(given)
    sources = [RecordSource(directory, split) for split in read_metadata(directory)["splits"]]
    if sources[0].stage != "corpus":
        raise ClaraError(f"{given}: holds records of {sources[0].stage}, not a corpus")
    passages = (item for source in sources for item in source)
    yield from _joined(passages, chunker, report, DocumentMetadata(real_path(given), DATASET), wanted)


def _is_dataset(given: str) -> bool:
    return os.path.isfile(os.path.join(given, INFO)) or any(Path(given).glob(f"clara_*/*/{INFO}"))


def _lines(file: InputFile, chunker: Chunker, report: ReadReport, wanted: Wanted) -> Iterator[ChunkedDocument]:
    """Read lines that are documents, and runs of lines that are chunks of one document."""
    metadata, bad = file.metadata, 0

    def skip(where: str, error: ClaraError) -> None:
        nonlocal bad
        bad += 1
        report.skip(where, error, metadata.path)
        if bad >= MOST_BAD_LINES:
            raise ClaraError(f"{file.path}: {bad:,} of its lines cannot be read; the rest is left out (is it JSONL?)")

    def lines() -> Iterator[tuple[bool, str, bytes]]:
        for where, line in raw_lines(file.path):
            try:
                is_chunk = _is_chunk(line, where)
            except ClaraError as error:
                skip(where, error)
            else:
                yield is_chunk, where, line

    def parsed(run: Iterable[tuple[bool, str, bytes]], parse: Callable[[bytes, str], T | None]) -> Iterator[T]:
        for _, where, line in run:
            try:
                item = parse(line, where)
            except ClaraError as error:
                skip(where, error)
            else:
                if item is not None:
                    yield item

    def whole(line: bytes, where: str) -> ChunkedDocument | None:
        document = json_document(line, where, file.name)
        if not wanted(document.id):
            return None
        stated = dataclasses.replace(metadata, fields=document.metadata.fields)
        return chunk_document(dataclasses.replace(document, metadata=stated), chunker)

    for is_chunk, run in itertools.groupby(lines(), operator.itemgetter(0)):
        if is_chunk:
            passages = parsed(run, lambda line, where: parse_passage(decode(line, where), where))
            yield from _joined(passages, chunker, report, metadata, wanted)
        else:
            yield from parsed(run, whole)


def _is_chunk(line: bytes, where: str) -> bool:
    if b'"document"' not in line:
        return False
    fields = decode(line, where)
    return isinstance(fields, dict) and bool(fields.get("document"))


def _joined(
    passages: Iterable[Passage], chunker: Chunker, report: ReadReport, metadata: DocumentMetadata, wanted: Wanted
) -> Iterator[ChunkedDocument]:
    for name, group in itertools.groupby(passages, lambda passage: passage.document or passage.id):
        if not wanted(name):
            continue
        parts = list(group)
        try:
            document = _document_of(parts, chunker, metadata)
        except ClaraError as error:
            report.skip(parts[0].where, error, metadata.path)
        else:
            yield document


def _document_of(parts: Sequence[Passage], chunker: Chunker, metadata: DocumentMetadata) -> ChunkedDocument:
    """Return the document of its passages."""
    first, counts = parts[0], chunker.count([part.text for part in parts])
    for part, tokens in zip(parts, counts, strict=True):
        if tokens > chunker.max_tokens:
            raise ClaraError(
                f"{part.where}: has {tokens} tokens, and the compressor reads {chunker.max_tokens}; cut the corpus "
                "with this model's tokenizer (python -m clara_jax.data corpus --tokenizer)"
            )
    document = checked_id(first.document or first.id, first.where)
    chunks = (
        Chunk(x.id, document, x.title, x.text, x.source, x.start, x.end, n) for x, n in zip(parts, counts, strict=True)
    )
    return ChunkedDocument(document, tuple(chunks), metadata)


def checked_id(name: str, where: str) -> str:
    """Return the id of a document.

    Args:
      name: the id.
      where: the document's place, for messages; "" where there is none.

    Raises:
      ClaraError: it is empty, too long or holds a control character.
    """
    if not name.strip() or len(name) > LONGEST_ID or any(ord(letter) < 32 or letter == "\x7f" for letter in name):
        raise ClaraError(
            f"{where or 'a document'}: the id {name[:40]!r} must be from 1 to {LONGEST_ID} characters, none of them a "
            "control character"
        )
    return name
