"""Documents as they are read from files, and the chunks that they become."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Mapping

from clara_jax.deprecation import renamed_attributes


@dataclasses.dataclass(frozen=True)
class DocumentMetadata:
    """What is known of a document besides its text; a store keeps it and filters by it.

    Attributes:
      path: the real path of its file, or its URL; "" for a document of no file.
      type: the kind of its file, one of `clara_jax.data.corpus.files.KINDS`, or "dataset".
      modified: when its file was last changed, as "2026-11-30T18:08:42Z"; "" where unknown.
      fields: its further fields (of a JSONL line, or the author that a file names): texts, finite numbers, booleans.
    """

    path: str = ""
    type: str = ""
    modified: str = ""
    fields: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CorpusDocument:
    r"""A document of a corpus: one file, or one line of a JSONL file.

    Attributes:
      id: unique within a corpus: the path below the folder that was named, or the id that a JSONL line gives.
      title: one line; "" where there is none.
      text: the cleaned text: lines end with "\n", there is nothing that is not shown. Offsets count its characters.
      source: the file, or "file.jsonl:17".
      pages: where each page begins in ``text``; empty for files without pages.
      guessed_encoding: the encoding, where the file did not say it and was not UTF-8.
      cleaned: number of characters that were dropped or replaced (`clara_jax.data.corpus.cleaning`).
      note: what a reader of the file should know, e.g. that some of its pages hold no text; "" for nothing.
      metadata: what else is known of it.
    """

    id: str
    title: str
    text: str
    source: str
    pages: tuple[int, ...] = ()
    guessed_encoding: str | None = None
    cleaned: int = 0
    note: str = ""
    metadata: DocumentMetadata = DocumentMetadata()

    def page(self, offset: int) -> int | None:
        """Return the page, counted from 1, of the character at an offset; None where there are no pages."""
        return bisect.bisect_right(self.pages, offset) if self.pages else None


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk of a document: a row of a store and, with a score and a rank, what is found (`clara_jax.results.Hit`).

    Attributes:
      id: unique in a store or a corpus.
      document: the id of the document it was cut from.
      title: of the document.
      text: what is compressed.
      source: of the document, e.g. a file.
      start: the first character in the document; -1 where unknown.
      end: the end in the document; -1 where unknown.
      tokens: the length of ``text``.
    """

    id: str
    document: str
    title: str
    text: str
    source: str
    start: int
    end: int
    tokens: int


CHUNK_FIELDS = tuple(field.name for field in dataclasses.fields(Chunk))

__getattr__ = renamed_attributes(__name__, {"Document": "CorpusDocument"})


def text_id(text: str) -> str:
    """Return the id of a document that is known by its text alone, a hash of it."""
    return f"text-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
