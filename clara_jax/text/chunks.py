"""Chunking: documents become chunks that the compressor reads whole."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from clara_jax.errors import ClaraError
from clara_jax.text.counting import CountTokens, TokenCounter
from clara_jax.text.documents import CHUNK_FIELDS, Chunk, CorpusDocument
from clara_jax.text.sentences import check_language, paragraph_ends, sentence_ends
from clara_jax.text.titles import is_heading_of, title_line

if TYPE_CHECKING:
    from clara_jax.input_pipeline.tokenization import ClaraTokenizer

LONGEST_TITLE = 1 / 4  # of a chunk; a longer title loses its last words
SENTENCES, TOKENS = "sentences", "tokens"
PARAGRAPH, SENTENCE, WORD, PART = range(4)  # from coarse to fine; a part is a piece of a word

_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True)
class DocumentChunk(Chunk):
    """A chunk as the chunker makes it, one line of the corpus.

    Attributes:
      id: "<document's id>#<number>", numbers from 0.
      text: the title line, where there is one, and ``document.text[start:end]``; that alone where it begins with a
        heading that is the title.
      tokens: not written to the corpus.
      page: on which the chunk begins, from 1; None where the document has no pages.
    """

    page: int | None

    @property
    def body(self) -> str:
        """The text without the title line: ``document.text[start:end]``."""
        return self.text[len(self.text) - (self.end - self.start) :]

    @property
    def stored(self) -> Chunk:
        """The chunk as a store keeps it, without its page."""
        return Chunk(*(getattr(self, name) for name in CHUNK_FIELDS))

    def fields(self) -> dict[str, Any]:
        """Return the JSON object of the corpus file."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["tokens"]
        if self.page is None:
            del fields["page"]
        return fields


class _Piece(NamedTuple):
    """text[start:end], the white space before it included; pieces follow each other without gaps."""

    start: int
    end: int
    level: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Chunker:
    """A splitter of documents into chunks.

    A chunk takes whole paragraphs as long as they fit. It ends with a paragraph if it is then at least half full, else
    with a sentence on the same condition, else with a word, and only within a word that is too long alone. Every
    visible character of a document is in at least one chunk, and no chunk is longer than the limit, its title line
    included.

    Attributes:
      count: lengths of texts.
      max_tokens: longest chunk, as counted.
      overlap: a chunk repeats the end of the one before it: this many sentences, or as many whole sentences as have
        together at most this many tokens; never more than half a chunk, and nothing of a sentence that was divided.
      overlap_unit: "sentences" or "tokens".
      title: chunks begin with the document's title on a separate line, where it has one and their text does not
        begin with it.
      language: an ISO 639-1 code, for finding sentences.
    """

    count: CountTokens
    max_tokens: int = 256
    overlap: int = 0
    overlap_unit: str = SENTENCES
    title: bool = True
    language: str = "en"

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ClaraError(f"--max-tokens: {self.max_tokens} must be at least 1")
        if self.overlap_unit not in (SENTENCES, TOKENS):
            raise ClaraError(f'--overlap-unit: {self.overlap_unit!r} must be "{SENTENCES}" or "{TOKENS}"')
        if self.overlap < 0:
            raise ClaraError(f"--overlap: {self.overlap} must be zero or positive")
        if self.overlap_unit == TOKENS and self.overlap > self.max_tokens // 2:
            raise ClaraError(f"--overlap: {self.overlap} tokens are more than half of --max-tokens {self.max_tokens}")
        check_language(self.language)

    def __call__(self, document: CorpusDocument) -> list[DocumentChunk]:
        """Return the chunks of a document, in order; none of a blank one.

        Raises:
          ClaraError: the limit is less than one character needs.
        """
        prefix = self._prefix(document.title) if self.title else ""
        chunks = []
        for start, end, tokens in _Cut(self, document, prefix).spans():
            text = document.text[start:end]
            if prefix and is_heading_of(text.partition("\n")[0], document.title):
                (tokens,) = self.count([text])  # the title would stand there twice
            else:
                text = prefix + text
            chunks.append(
                DocumentChunk(
                    f"{document.id}#{len(chunks)}",
                    document.id,
                    document.title,
                    text,
                    document.source,
                    start,
                    end,
                    tokens,
                    document.page(start),
                )
            )
        return chunks

    def _prefix(self, title: str) -> str:
        """Return the title line, of as many of the title's words as may stand there; "" without any."""
        words = title.split()[: self.max_tokens]
        while words and self.count([title_line(" ".join(words))])[0] > self.max_tokens * LONGEST_TITLE:
            words.pop()
        return title_line(" ".join(words))


def chunker_of(tokenizer: ClaraTokenizer) -> Chunker:
    """Return the chunker of a model, whose chunks the compressor reads whole: of at most ``doc_max_length`` tokens.

    The Python API and stores cut documents with it, and the corpus command with an equal one where it is given the
    model's tokenizer and ``doc_max_length``: the same text has the same chunks everywhere.
    """
    return Chunker(TokenCounter(tokenizer), tokenizer.doc_max_length)


class _Cut:
    """The work on one document: its pieces, which become finer where that is needed."""

    def __init__(self, chunker: Chunker, document: CorpusDocument, prefix: str):
        self.chunker, self.text, self.source, self.prefix = chunker, document.text, document.source, prefix
        self.capacity = chunker.max_tokens - (chunker.count([prefix])[0] if prefix else 0)
        self.pieces = self._pieces(0, paragraph_ends(self.text), PARAGRAPH)

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, tokens with the title line) for every chunk."""
        start = fresh = 0  # the chunk's first piece, and the first that no chunk before it holds
        capacity = self.capacity
        while fresh < len(self.pieces):
            start, stop = self._fill(start, fresh, capacity)
            first, last = self._visible(start, stop)
            (tokens,) = self.chunker.count([self.prefix + self.text[first:last]])
            excess = tokens - self.chunker.max_tokens
            if excess <= 0:
                yield first, last, tokens
                start, fresh = self._overlap(start, stop)
                capacity = self.capacity
            # Pieces were counted one by one: joined they may be a little longer.
            elif stop - start > 1:
                capacity -= excess
            else:
                self._refine(start)
                capacity = self.capacity

    def _fill(self, start: int, fresh: int, capacity: int) -> tuple[int, int]:
        """Return the chunk's first piece and its end; it refines a piece that straddles it if half is empty."""
        stop, total = start, 0
        while stop < len(self.pieces):
            piece = self.pieces[stop]
            if total + piece.tokens <= capacity:
                total += piece.tokens
                stop += 1
            elif stop > fresh and (2 * total >= capacity or self._whole(piece)):
                break
            elif stop < fresh or (start < fresh == stop and piece.level >= SENTENCE):
                start, stop, total = fresh, fresh, 0  # what would be repeated leaves no room for anything new
            elif self._whole(piece):
                return start, stop + 1  # there is nothing smaller to begin with
            else:
                self._refine(stop)
        return start, stop

    def _whole(self, piece: _Piece) -> bool:
        """Return whether a piece is never divided only to fill a chunk better."""
        return piece.level == PART or (piece.level == WORD and piece.tokens <= self.capacity)

    def _overlap(self, start: int, stop: int) -> tuple[int, int]:
        """Return the next chunk's first piece, and its first new piece."""
        sentences, tokens = self.chunker.overlap, self.capacity // 2
        if self.chunker.overlap_unit == TOKENS:
            sentences, tokens = stop, min(self.chunker.overlap, tokens)
        first = stop
        while sentences and tokens and stop < len(self.pieces):
            piece = self.pieces[first - 1]
            if piece.level == PARAGRAPH:
                added = self._refine(first - 1)
                first, stop = first + added, stop + added
            elif piece.level > SENTENCE or piece.tokens > tokens or first - 1 == start:
                break
            else:
                first, sentences, tokens = first - 1, sentences - 1, tokens - piece.tokens
        return first, stop

    def _refine(self, index: int) -> int:
        """Replace a piece by those of the next level; return how many more there are then."""
        start, end, level, _ = self.pieces[index]
        text = self.text[start:end]
        if level == PART and len(text.strip()) == 1:
            raise ClaraError(
                f"{self.source}: the character {text.strip()!r} is longer than --max-tokens {self.chunker.max_tokens} "
                "allows; give a larger one"
            )
        if level == PARAGRAPH:
            ends = sentence_ends(text, self.chunker.language)
        elif level == SENTENCE:
            ends = [match.end() for match in _WORD.finditer(text)]
        else:
            ends = self._part_ends(text)
        parts = self._pieces(start, [start + end for end in ends], min(level + 1, PART))
        self.pieces[index : index + 1] = parts
        return len(parts) - 1

    def _part_ends(self, word: str) -> list[int]:
        """Return where to divide a word, with white space before it, into parts as long as fit in a chunk."""
        start, ends = len(word) - len(word.lstrip()), []
        while start < len(word):
            # Only short stretches are counted, however long the word.
            fits, size = 1, min(self.capacity, len(word) - start)
            while size > fits and self._fits(word[start : start + size]):
                fits, size = size, min(2 * size, len(word) - start)
            while size - fits > 1:
                middle = (fits + size) // 2
                fits, size = (middle, size) if self._fits(word[start : start + middle]) else (fits, middle)
            start += fits
            ends.append(start)
        return ends

    def _fits(self, text: str) -> bool:
        return self.chunker.count([self.prefix + text])[0] <= self.chunker.max_tokens

    def _pieces(self, start: int, ends: list[int], level: int) -> list[_Piece]:
        starts = [start, *ends][: len(ends)]
        counts = self.chunker.count([self.text[a:b] for a, b in zip(starts, ends, strict=True)])
        return [_Piece(a, b, level, tokens) for a, b, tokens in zip(starts, ends, counts, strict=True)]

    def _visible(self, start: int, stop: int) -> tuple[int, int]:
        """Return the offsets of the pieces from start to stop, without white space before them."""
        first, last = self.pieces[start].start, self.pieces[stop - 1].end
        text = self.text[first:last]
        return first + len(text) - len(text.lstrip()), last
