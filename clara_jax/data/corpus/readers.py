"""Readers: a file of each kind becomes a `Document`, or is refused in one line."""

from __future__ import annotations

import codecs
import importlib
import importlib.util
import io
import logging
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from clara_jax.data.corpus.documents import Document
from clara_jax.data.corpus.files import HTML, JSONL, MARKDOWN, PDF, TEXT, InputFile, find_files
from clara_jax.data.jsonl import checked_utf8, decode, json_kind, open_binary, raw_lines, zstd
from clara_jax.errors import ClaraError

# Spellings of a JSONL line's fields, the first present one counts: BEIR says "_id", Pyserini "contents".
ID_FIELDS = ("id", "_id", "docid", "doc_id")
TEXT_FIELDS = ("text", "contents", "content", "body")
PACKAGES = {HTML: "trafilatura", PDF: "pypdf"}

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
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<fields>(?:[^\n]*\n){1,200}?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1|\Z)", re.M | re.S)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$|^([^\s#>*+-][^\n]*)\n {0,3}=+[ \t]*$", re.M)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SENTENCE_END = re.compile(r"""[.!?…:。！？]["'”’»)\]]*$""")


def require(kinds: Iterable[str]) -> None:
    """Refuses before any work what cannot be read for want of a package.

    Raises:
      ClaraError: which package is missing, and for what.
    """
    for kind in sorted(set(kinds) & set(PACKAGES)):
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            raise ClaraError(f"{kind} files are read with the package {PACKAGES[kind]}: pip install {PACKAGES[kind]}")


def read_documents(inputs: Iterable[str]) -> Iterator[Document]:
    """The documents of some inputs (see `find_files`), in order; the first mistake ends it."""
    for file in find_files(inputs)[0]:
        if file.kind == JSONL:
            for where, line in raw_lines(file.path):
                yield json_document(line, where, file.name)
        else:
            yield read_file(file)


def read_file(file: InputFile) -> Document:
    """The document of a file of any kind but JSONL.

    Raises:
      ClaraError: it cannot be read, holds no text, is encrypted, or a package is missing.
    """
    document = _READERS[file.kind](file, _content(file.path))
    if not document.text.strip():
        raise ClaraError(f"{file.path}: holds no text")
    return document


def json_document(line: bytes, where: str, name: str) -> Document:
    """The document of a JSONL line.

    Args:
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
    return Document(name, _one_line(title), _newlines(text), where)


def _field(fields: dict[str, Any], names: tuple[str, ...], where: str) -> str | None:
    """The first of some fields that is present, or None; an id may be a whole number."""
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
            return file.read()
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise ClaraError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _text(file: InputFile, content: bytes) -> Document:
    text, guessed = _decoded(file.path, content)
    return Document(file.name, _stem(file), text, file.path, guessed_encoding=guessed)


def _markdown(file: InputFile, content: bytes) -> Document:
    text, guessed = _decoded(file.path, content)
    title, front = None, _FRONT_MATTER.match(text)
    # Two rules of dashes with prose between them are no front matter: that has fields.
    if front and re.search(r"^[\w-]+[ \t]*:", front["fields"], re.M):
        text = text[front.end() :]
        title = re.search(r"^title[ \t]*:[ \t]*(.+)$", front["fields"], re.M | re.I)
    if title is None:
        title = _HEADING.search(_FENCE.sub("", text))
    title = next((group for group in title.groups() if group), "") if title else ""
    return Document(file.name, _one_line(title).strip("\"'") or _stem(file), text, file.path, guessed_encoding=guessed)


def _html(file: InputFile, content: bytes) -> Document:
    trafilatura = _package(HTML)
    page, guessed = _decoded(file.path, content, _DECLARED.search(content[:4096]))
    if "<html" not in page[:10000].lower():
        page = f"<html><body>{page}</body></html>"  # a fragment is refused otherwise
    try:
        found = trafilatura.bare_extraction(
            page,
            with_metadata=True,
            include_comments=False,
            # Nothing but the title is used, and a search for dates takes most of the time.
            date_extraction_params={"extensive_search": False, "original_date": False},
        )
    except Exception as error:  # of lxml and what else lies below
        raise ClaraError(f"{file.path}: is no HTML that can be read ({type(error).__name__}: {error})") from error
    if found is None or not (found.text or "").strip():
        raise ClaraError(f"{file.path}: holds no main text")
    # Each line is a paragraph, but for the rows of a table and the items of a list.
    text = re.sub(r"\n+(?![-|])", "\n\n", _newlines(found.text))
    title = _one_line(found.title or "") or _stem(file)
    return Document(file.name, title, text, file.path, guessed_encoding=guessed)


def _pdf(file: InputFile, content: bytes) -> Document:
    pypdf = _package(PDF)
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        # Many files are encrypted with an empty password, only to forbid printing.
        if reader.is_encrypted and not reader.decrypt(""):
            raise ClaraError(f"{file.path}: is encrypted; remove the password first")
        title = _one_line(str((reader.metadata or {}).get("/Title") or "")) or _stem(file)
        texts = [_newlines(page.extract_text()).strip() for page in reader.pages]
    except ClaraError:
        raise
    except pypdf.errors.DependencyError:
        raise ClaraError(
            f"{file.path}: is encrypted with AES; remove the password first, or: pip install cryptography"
        ) from None
    except Exception as error:  # a damaged file may raise nearly anything
        raise ClaraError(f"{file.path}: is no PDF that can be read ({type(error).__name__}: {error})") from error
    if not any(texts):
        raise ClaraError(f"{file.path}: holds no text on its {len(texts)} pages (a scan?); recognise it (OCR) first")
    pages, text = [], ""
    for page in texts:
        if text and page:  # a sentence may run on over the page's end
            text += "\n\n" if _SENTENCE_END.search(text) else "\n"
        pages.append(len(text))
        text += page
    return Document(file.name, title, text, file.path, tuple(pages))


_READERS = {TEXT: _text, MARKDOWN: _markdown, HTML: _html, PDF: _pdf}


def _package(kind: str) -> ModuleType:
    require([kind])
    module = importlib.import_module(PACKAGES[kind])
    logging.getLogger(PACKAGES[kind]).setLevel(logging.CRITICAL)  # what matters is said by our own messages
    return module


def _decoded(path: str, content: bytes, declared: re.Match | None = None) -> tuple[str, str | None]:
    """A file's text, and its encoding where that was guessed.

    A byte order mark decides; then UTF-8, where it fits: by chance it fits nothing else but ASCII; then what the file
    declares; then a guess.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            try:
                return _newlines(content[len(mark) :].decode(encoding)), None
            except UnicodeDecodeError as error:
                raise ClaraError(f"{path}: byte {error.start + 1} is not {encoding}; save the file as UTF-8") from None
    try:
        if b"\0" not in content:
            return _newlines(content.decode()), None
    except UnicodeDecodeError:
        pass
    if declared:
        name = next(group for group in declared.groups() if group).decode("ascii", "replace").lower()
        # As browsers read it: pages that say Latin-1 mean Windows' extension of it.
        name = "cp1252" if name in ("iso-8859-1", "latin-1", "latin1", "us-ascii") else name
        try:
            return _newlines(content.decode(name)), None
        except (LookupError, UnicodeDecodeError):
            pass
    if importlib.util.find_spec("charset_normalizer") is None:
        raise ClaraError(f"{path}: is not UTF-8; save it as UTF-8, or: pip install charset-normalizer")
    from charset_normalizer import from_bytes

    logging.getLogger("charset_normalizer").setLevel(logging.CRITICAL)
    best = from_bytes(content).best()
    if best is None:
        raise ClaraError(f"{path}: is not UTF-8, and no encoding fits (is it text?); save it as UTF-8")
    return _newlines(str(best).removeprefix("\ufeff")), best.encoding


def _newlines(text: str) -> str:
    """Lines end with "\\n"; surrogate pairs are one character, halves of them the replacement character."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _SURROGATE.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _one_line(text: str) -> str:
    return " ".join(_newlines(text).split())


def _stem(file: InputFile) -> str:
    """The file's name without folder and suffixes."""
    name = posixpath.basename(file.name)
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    return posixpath.splitext(name)[0]


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)
