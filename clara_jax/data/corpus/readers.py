"""Readers: a file of each kind becomes a `CorpusDocument`, or is refused with a message of one line."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import importlib.util
import json
import logging
import math
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clara_jax.confined import Confined, ExceededError
from clara_jax.data.corpus.cleaning import cleaned, one_line
from clara_jax.data.corpus.files import (
    CSV,
    DOCX,
    EPUB,
    HTML,
    JSONL,
    MARKDOWN,
    PDF,
    PPTX,
    TEXT,
    TSV,
    InputFile,
    find_files,
    readable_path,
)
from clara_jax.data.corpus.markdown import first_heading, without_front_matter
from clara_jax.data.corpus.tables import table_text
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import checked_utf8, decode, is_remote, json_kind, open_binary, raw_lines, zstd
from clara_jax.text.documents import CorpusDocument, DocumentMetadata

# Spellings of a JSONL line's fields, the first present one counts: BEIR has "_id", Pyserini "contents".
ID_FIELDS = ("id", "_id", "docid", "doc_id")
TEXT_FIELDS = ("text", "contents", "content", "body")
# The modules that read some kinds, and the packages that hold them where these are called otherwise.
PACKAGES = {HTML: "trafilatura", PDF: "pypdf", DOCX: "docx", PPTX: "pptx", EPUB: "trafilatura"}
_DISTRIBUTIONS = {"docx": "python-docx", "pptx": "python-pptx"}
MOST_FIELDS, LONGEST_FIELD = 64, 2000  # of a document's further fields; characters
LARGEST = 2**28  # bytes of a document's file when it is unpacked
# Of a core, to extract the text of an HTML, PDF, Office or EPUB file: no honest file needs a tenth of it.
SECONDS, SECONDS_PER_MB = 60.0, 30.0
_EXTRACTION = Confined()

_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)|^<\?xml[^>]{0,100}encoding=["']([\w.-]+)""", re.I
)
_SENTENCE_END = tuple(".!?…:。！？")
_CLOSING = "\"'”’»)]"  # what may follow it
# Codecs of Python that are no encodings of files: for names of hosts, for source code, or to refuse everything; and
# those in which the declaration would not be the ASCII that it was read as.
_NO_ENCODINGS = (
    "idna",
    "punycode",
    "undefined",
    "unicode_escape",
    "raw_unicode_escape",
    "utf-7",
    "utf-16",
    "utf-16-be",
    "utf-16-le",
    "utf-32",
    "utf-32-be",
    "utf-32-le",
    "utf_7",
    "mbcs",
    "oem",
)


def require(kinds: Iterable[str]) -> None:
    """Refuse, before any work, kinds of files that cannot be read because a package is missing.

    Raises:
      ClaraError: which package is missing, and for what.
    """
    for kind in sorted(set(kinds) & set(PACKAGES)):
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            package = _DISTRIBUTIONS.get(PACKAGES[kind], PACKAGES[kind])
            raise ClaraError(f"{kind} files are read with the package {package}: pip install {package}")


def read_documents(inputs: Iterable[str], follow_links: bool = False) -> Iterator[CorpusDocument]:
    """Yield the documents of some inputs (see `find_files`), in order; the first mistake is an error."""
    for file in find_files(inputs, follow_links)[0]:
        if file.kind == JSONL:
            for where, line in raw_lines(file.path):
                yield json_document(line, where, file.name)
        else:
            yield read_file(file)


def read_file(file: InputFile) -> CorpusDocument:
    """Read the document of a file of any kind but JSONL.

    Raises:
      ClaraError: it cannot be read, holds no text, is encrypted, or a package is missing.
    """
    document = _READERS[file.kind](file, _content(file.path))
    if not document.text.strip():
        raise ClaraError(f"{file.path}: holds no text")
    metadata = dataclasses.replace(file.metadata, fields=document.metadata.fields)
    return dataclasses.replace(document, source=readable_path(file.path), metadata=metadata)


def json_document(line: bytes, where: str, name: str) -> CorpusDocument:
    """Return the document of a JSONL line.

    Args:
      line: its bytes.
      where: "file.jsonl:17", for messages and as the source.
      name: the file's name; with the line's number the id of a line that gives none.

    Raises:
      ClaraError: not JSON, or a field is missing, empty or of another type.
    """
    fields = decode(line, where)
    if not isinstance(fields, dict):
        raise ClaraError(f"{where}: the line holds {json_kind(fields)}; each line must be a JSON object")
    text = _field(fields, TEXT_FIELDS, where)
    if text is None:
        raise ClaraError(f'{where}: "text" is missing; each document needs a text (or {_quoted(TEXT_FIELDS[1:])})')
    if not text.strip():
        raise ClaraError(f'{where}: "text" is empty; write some text or remove the line')
    title, number = _field(fields, ("title",), where) or "", where.rpartition(":")[2]
    name = _field(fields, ID_FIELDS, where) or f"{name}:{number}"
    text, changed = cleaned(text)
    if not text.strip():
        raise ClaraError(f'{where}: "text" holds nothing that is shown; write some text or remove the line')
    used = {"title", *(spelling for names in (ID_FIELDS, TEXT_FIELDS) for spelling in names)}
    metadata = DocumentMetadata(fields=own_fields({key: fields[key] for key in fields if key not in used}))
    return CorpusDocument(name, one_line(title), text, readable_path(where), cleaned=changed, metadata=metadata)


def own_fields(values: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the fields that a store keeps and filters by, of those that a document has.

    Texts, numbers and booleans stay what they are; a list or an object is kept as its JSON text. A field is left out if
    it is null, has a value of more than `LONGEST_FIELD` characters, or comes after `MOST_FIELDS` others.
    """
    kept: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, (list, dict)):
            try:
                value = json.dumps(value, ensure_ascii=False)
            except RecursionError:
                continue
        elif abs(value) >= 2**63 if isinstance(value, int) else isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # a store's numbers have 64 bits, and are finite
        if isinstance(value, str):
            value = cleaned(value).text
        name = one_line(name)
        if value is not None and name and len(f"{name}{value}") <= LONGEST_FIELD and len(kept) < MOST_FIELDS:
            kept[name] = value
    return kept


def _field(fields: dict[str, Any], names: tuple[str, ...], where: str) -> str | None:
    """Return the first of some fields that is present, or None; an id may be a whole number."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return None
    value = fields[name]
    if names is ID_FIELDS and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ClaraError(f'{where}: "{name}" is {json_kind(value)}; it must be a string')
    return checked_utf8(value, f'"{name}"', where)


def _content(path: str) -> bytes:
    try:
        with open_binary(path) as file:
            content = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise ClaraError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:
        if isinstance(error, ClaraError) or not is_remote(path):
            raise
        raise ClaraError(f"{path}: cannot be read: {error}") from error  # each driver raises other errors
    if len(content) > LARGEST:
        raise ClaraError(f"{path}: holds more than {LARGEST // 2**20:,} MiB; divide it, or write it as JSONL")
    return content


def _text(file: InputFile, content: bytes) -> CorpusDocument:
    text, guessed, changed = _decoded(file.path, content, typeset=True)
    return CorpusDocument(file.name, _stem(file), text, file.path, guessed_encoding=guessed, cleaned=changed)


def _markdown(file: InputFile, content: bytes) -> CorpusDocument:
    text, guessed, changed = _decoded(file.path, content)
    found = without_front_matter(text)
    title = one_line(found.title or first_heading(found.text)) or _stem(file)
    return CorpusDocument(file.name, title, found.text, file.path, guessed_encoding=guessed, cleaned=changed)


def _html(file: InputFile, content: bytes) -> CorpusDocument:
    require([HTML])
    page, guessed = _raw_text(file.path, content, _DECLARED.search(content[:4096]))
    found = _extracted(file, "extraction:html_text", page, len(content))
    text, changed = cleaned(found["text"])
    if not text.strip():
        raise ClaraError(f"{file.path}: holds no main text")
    title = one_line(found["title"]) or _stem(file)
    return CorpusDocument(file.name, title, text, file.path, guessed_encoding=guessed, cleaned=changed)


def _pdf(file: InputFile, content: bytes) -> CorpusDocument:
    require([PDF])
    found = _extracted(file, "extraction:pdf_text", content, len(content))
    texts, changed = _cleaned_parts(found["pages"], typeset=True)
    blank = texts.count("")
    if not any(texts):
        raise ClaraError(f"{file.path}: holds no text on its {blank} pages (a scan?); recognise it (OCR) first")
    text, starts = _paged(texts)
    title = one_line(found["title"]) or _stem(file)
    note = f"{blank} of its {len(texts)} pages hold no text (scanned?)" if blank else ""
    return CorpusDocument(file.name, title, text, file.path, starts, cleaned=changed, note=note)


def _office(file: InputFile, content: bytes) -> CorpusDocument:
    require([file.kind])
    found = _extracted(file, f"office:{file.kind}_text", content, len(content))
    texts, changed = _cleaned_parts(found["parts"])
    text, starts = _paged(texts) if file.kind == PPTX else ("\n\n".join(filter(None, texts)), ())
    title, metadata = one_line(found["title"]) or _stem(file), DocumentMetadata(fields=own_fields(found["fields"]))
    return CorpusDocument(file.name, title, text, file.path, starts, cleaned=changed, metadata=metadata)


def _table(file: InputFile, content: bytes) -> CorpusDocument:
    text, guessed, changed = _decoded(file.path, content)
    try:
        text = table_text(text, "\t" if file.kind == TSV else None)
    except ClaraError as error:
        raise ClaraError(f"{file.path}: {error}") from None
    return CorpusDocument(file.name, _stem(file), text, file.path, guessed_encoding=guessed, cleaned=changed)


def _cleaned_parts(texts: Sequence[str], typeset: bool = False) -> tuple[list[str], int]:
    """Return texts as a reader sees them, and how many characters were cleaned."""
    parts = [cleaned(text, typeset) for text in texts]
    return [part.text.strip() for part in parts], sum(part.changed for part in parts)


def _paged(texts: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Return pages as one text, and where each begins in it."""
    starts, parts, length = [], [], 0
    for page in texts:
        if length and page:  # a sentence may run on over the page's end
            last = next(part for part in reversed(parts) if part)
            parts.append("\n\n" if last.rstrip(_CLOSING).endswith(_SENTENCE_END) else "\n")
            length += len(parts[-1])
        starts.append(length)
        parts.append(page)
        length += len(page)
    return "".join(parts), tuple(starts)


def _extracted(file: InputFile, function: str, content: str | bytes, size: int) -> dict[str, Any]:
    """Run a function of a module of this folder on a file's content, within bounds on time and memory."""
    seconds = SECONDS + SECONDS_PER_MB * size / 1e6
    try:
        return _EXTRACTION.call(f"clara_jax.data.corpus.{function}", [content], seconds)
    except ClaraError as error:
        raise ClaraError(f"{file.path}: {error}") from None
    except ExceededError as error:
        raise ClaraError(f"{file.path}: cannot be read with {error}; save it as text") from None


_READERS = {TEXT: _text, MARKDOWN: _markdown, HTML: _html, PDF: _pdf}
_READERS |= {DOCX: _office, PPTX: _office, EPUB: _office, CSV: _table, TSV: _table}


def _decoded(
    path: str, content: bytes, declared: re.Match | None = None, typeset: bool = False
) -> tuple[str, str | None, int]:
    """Return a file's text, cleaned; its encoding where that was guessed; how many characters were cleaned.

    A byte order mark decides; then UTF-8, where it fits: by chance it fits nothing else but ASCII; then what the file
    declares; then a guess.
    """
    text, guessed = _raw_text(path, content, declared)
    text, changed = cleaned(text, typeset)
    return text, guessed, changed


def _raw_text(path: str, content: bytes, declared: re.Match | None) -> tuple[str, str | None]:
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            try:
                return content[len(mark) :].decode(encoding), None
            except UnicodeDecodeError as error:
                raise ClaraError(f"{path}: byte {error.start + 1} is not {encoding}; save the file as UTF-8") from None
    # A few bytes of zero stand for nothing; UTF-16 without its mark has one in nearly every character.
    few = content.count(b"\0") * 8 <= len(content)
    if few:
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(), None
    if declared:
        name = next(group for group in declared.groups() if group).decode("ascii", "replace").lower()
        # As browsers read it: pages that declare Latin-1 mean Windows' extension of it.
        name = "cp1252" if name in ("iso-8859-1", "latin-1", "latin1", "us-ascii") else name
        # Names of no encoding, and of codecs that raise any error.
        with contextlib.suppress(LookupError, ValueError):
            if codecs.lookup(name).name not in _NO_ENCODINGS:
                return content.decode(name), None
    if importlib.util.find_spec("charset_normalizer") is None:
        raise ClaraError(f"{path}: is not UTF-8; save it as UTF-8, or: pip install charset-normalizer")
    from charset_normalizer import from_bytes

    logging.getLogger("charset_normalizer").setLevel(logging.CRITICAL)
    # Of a text with bytes of zero it guesses nothing. Where they are few, the others tell.
    best = from_bytes(content.replace(b"\0", b"") if few else content).best()
    if best is None:
        raise ClaraError(f"{path}: is not UTF-8, and no encoding fits (is it text?); save it as UTF-8")
    text = content.decode(best.encoding, "replace") if few else str(best)
    return text.removeprefix("\ufeff"), best.encoding


def _stem(file: InputFile) -> str:
    """Return the file's name without folder and suffixes."""
    name = posixpath.basename(file.name)
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    return posixpath.splitext(name)[0]


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)
