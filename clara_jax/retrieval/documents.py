"""Chunked documents for a store, read from files, folders and built data sets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from clara_jax.data.builders.passages import Passage, parse_passage
from clara_jax.data.builders.source import INFO, RecordSource, dataset_directory, read_metadata
from clara_jax.data.corpus.files import JSONL, find_files
from clara_jax.data.corpus.readers import json_document, read_file
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import decode, is_remote, raw_lines
from clara_jax.text.chunks import Chunker
from clara_jax.text.documents import Chunk, CorpusDocument

LONGEST_ID = 512  # characters


class ChunkedDocument(NamedTuple):
    """A document's id and its chunks, in order."""

    id: str
    chunks: tuple[Chunk, ...]


def chunk_document(document: CorpusDocument, chunker: Chunker) -> ChunkedDocument:
    """Split a document into chunks; a blank one has none.

    Raises:
      ClaraError: an id that is empty, too long or holds control characters.
    """
    chunks = tuple(chunk.stored for chunk in chunker(document))
    return ChunkedDocument(_checked(document.id, document.source), chunks)


def read(inputs: Sequence[str], chunker: Chunker, follow_links: bool = False) -> Iterator[ChunkedDocument]:
    """Read the documents of some inputs, in order.

    Args:
      inputs: folders, files (.txt, .md, .html, .pdf, .jsonl, each also .gz or .zst), patterns, and directories of data
        sets that ``python -m clara_jax.data build`` made of a corpus. The lines of a corpus file (those that name the
        document they were cut from) are chunks already; lines of one document stand together.
      chunker: for documents that are not chunked yet.
      follow_links: see `clara_jax.data.corpus.files.find_files`.

    Raises:
      ClaraError: what cannot be read, a document that comes twice, or a passage longer than the compressor reads.
    """
    seen: set[str] = set()
    for document in itertools.chain.from_iterable(_read(given, chunker, follow_links) for given in inputs):
        if document.id in seen:
            source = document.chunks[0].source if document.chunks else ""
            raise ClaraError(
                f"{source or document.id}: there is a document {document.id!r} before; each needs an id of its own, "
                "and the chunks of one stand together"
            )
        seen.add(document.id)
        yield document


def _read(given: str, chunker: Chunker, follow_links: bool) -> Iterator[ChunkedDocument]:
    if not is_remote(given) and _is_dataset(given):
        directory = dataset_directory(given)
        splits = read_metadata(directory)["splits"]
        sources = [RecordSource(directory, split) for split in splits]
        if sources[0].stage != "corpus":
            raise ClaraError(f"{given}: holds records of {sources[0].stage}, not a corpus")
        yield from _joined((item for source in sources for item in source), chunker)
        return
    for file in find_files([given], follow_links, "documents")[0]:
        if file.kind == JSONL:
            yield from _lines(file.path, file.name, chunker)
        else:
            yield chunk_document(read_file(file), chunker)


def _is_dataset(given: str) -> bool:
    return os.path.isdir(given) and (
        os.path.isfile(os.path.join(given, INFO)) or any(name.startswith("clara_") for name in os.listdir(given))
    )


def _lines(path: str, name: str, chunker: Chunker) -> Iterator[ChunkedDocument]:
    """Read lines that are documents, and runs of lines that are chunks of one document."""

    def kind(line: tuple[str, bytes, bool]) -> bool:
        return line[2]

    marked = ((where, line, _is_chunk(line, where)) for where, line in raw_lines(path))
    for is_chunk, lines in itertools.groupby(marked, kind):
        if is_chunk:
            yield from _joined((parse_passage(decode(line, where), where) for where, line, _ in lines), chunker)
        else:
            yield from (chunk_document(json_document(line, where, name), chunker) for where, line, _ in lines)


def _is_chunk(line: bytes, where: str) -> bool:
    if b'"document"' not in line:
        return False
    fields = decode(line, where)
    return isinstance(fields, dict) and bool(fields.get("document"))


def _joined(passages: Iterable[Passage], chunker: Chunker) -> Iterator[ChunkedDocument]:
    for _, group in itertools.groupby(passages, lambda passage: passage.document or passage.id):
        parts = list(group)
        first, counts = parts[0], chunker.count([part.text for part in parts])
        for part, tokens in zip(parts, counts, strict=True):
            if tokens > chunker.max_tokens:
                raise ClaraError(
                    f"{part.where}: has {tokens} tokens, and the compressor reads {chunker.max_tokens}; cut the corpus "
                    "with this model's tokenizer (python -m clara_jax.data corpus --tokenizer)"
                )
        document = _checked(first.document or first.id, first.where)
        chunks = (
            Chunk(x.id, document, x.title, x.text, x.source, x.start, x.end, n)
            for x, n in zip(parts, counts, strict=True)
        )
        yield ChunkedDocument(document, tuple(chunks))


def _checked(name: str, where: str) -> str:
    if not name.strip() or len(name) > LONGEST_ID or any(ord(letter) < 32 or letter == "\x7f" for letter in name):
        raise ClaraError(
            f"{where or 'a document'}: the id {name[:40]!r} must be from 1 to {LONGEST_ID} characters, none of them a "
            "control character"
        )
    return name
