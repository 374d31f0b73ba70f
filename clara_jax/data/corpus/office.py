"""The text of Word, PowerPoint and EPUB files, which are ZIP archives of XML.

The functions are run by `clara_jax.confined`, which bounds their time and memory. An archive is never unpacked to disk,
so names in it lead nowhere; entities are not expanded, and nothing outside of the file is read.
"""

from __future__ import annotations

import io
import posixpath
import urllib.parse
import zipfile
from collections.abc import Iterator
from typing import Any

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  # compiled, and has no stubs

from clara_jax.data.corpus.extraction import html_text, refusing
from clara_jax.errors import ClaraError

MOST_PARTS = 10_000
LARGEST = 2**28  # bytes of all parts, unpacked; zipfile reads no more of a part than its entry says
_OLD = b"\xd0\xcf\x11\xe0"  # a compound file: Office before 2007, or an encrypted document
_ENCRYPTED = 0x1  # a flag of a ZIP entry
_DC, _TERMS = "{http://purl.org/dc/elements/1.1/}", "{http://purl.org/dc/terms/}"
_CONTAINER, _DRM = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html")


def docx_text(content: bytes) -> dict[str, Any]:
    """Return the "parts" of a Word file as texts (paragraphs and tables, in order), its "title" and its "fields".

    Raises:
      ClaraError: no Word file that can be read, or one with a password.
    """
    import docx

    with refusing("Word file"):
        about = _properties(_archive(content))
        return {"parts": list(_blocks(docx.Document(io.BytesIO(content)))), **about}


def pptx_text(content: bytes) -> dict[str, Any]:
    """Return the slides of a PowerPoint file, with their notes, as "parts", its "title" and its "fields".

    Raises:
      ClaraError: no PowerPoint file that can be read, or one with a password.
    """
    import pptx

    with refusing("PowerPoint file"):
        about = _properties(_archive(content))
        slides = []
        for slide in pptx.Presentation(io.BytesIO(content)).slides:
            texts = list(_shape_texts(slide.shapes))
            notes = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
            texts += [notes.text] if notes is not None else []
            slides.append("\n\n".join(text for text in texts if text.strip()))
        return {"parts": slides, **about}


def epub_text(content: bytes) -> dict[str, Any]:
    """Return the chapters of an EPUB file, in their reading order, as "parts", its "title" and its "fields".

    Raises:
      ClaraError: no EPUB file that can be read, or a protected one.
    """
    with refusing("EPUB file"):
        archive = _archive(content)
        (path, *_) = _parsed(archive.read(_CONTAINER)).xpath("//*[local-name()='rootfile']/@full-path")
        package = _parsed(archive.read(path))
        files = {
            item.get("id"): posixpath.normpath(
                posixpath.join(posixpath.dirname(path), urllib.parse.unquote(item.get("href") or ""))
            )
            for item in package.iter("{*}item")
            if item.get("media-type") in _PAGES
        }
        spine = [files[item.get("idref")] for item in package.iter("{*}itemref") if item.get("idref") in files]
        if set(spine) & _protected(archive):
            raise ClaraError("is protected against copying (DRM); its text cannot be read")
        chapters = [_chapter(archive.read(name)) for name in dict.fromkeys(spine)]
        return {"parts": chapters, **_described(package)}


def _archive(content: bytes) -> zipfile.ZipFile:
    """Open an archive whose parts, unpacked, have a size that memory holds."""
    if content.startswith(_OLD):
        raise ClaraError("is encrypted, or of a format before 2007; save it anew, without a password")
    archive = zipfile.ZipFile(io.BytesIO(content))
    parts = archive.infolist()
    if len(parts) > MOST_PARTS:
        raise ClaraError(f"has {len(parts):,} parts, more than {MOST_PARTS:,}; save it as text")
    if sum(part.file_size for part in parts) > LARGEST:
        raise ClaraError(f"unpacks to more than {LARGEST // 2**20:,} MiB; save it as text")
    if any(part.flag_bits & _ENCRYPTED for part in parts):
        raise ClaraError("is encrypted; remove the password first")
    return archive


def _parsed(content: bytes) -> etree._Element:
    return etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))


def _properties(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return the title and the fields that an Office file states of itself."""
    name = "docProps/core.xml"
    return _described(_parsed(archive.read(name)) if name in archive.namelist() else etree.Element("none"))


def _described(element: etree._Element) -> dict[str, Any]:
    """Return the "title", and as "fields" author and date of creation, of Dublin Core's elements below one."""

    def text(*tags: str) -> str:
        return next((found.text for tag in tags for found in element.iter(tag) if found.text), "").strip()

    fields = {"author": text(f"{_DC}creator"), "created": text(f"{_TERMS}created", f"{_DC}date")}
    return {"title": text(f"{_DC}title"), "fields": {name: value for name, value in fields.items() if value}}


def _blocks(container: Any) -> Iterator[str]:
    """Yield the paragraphs of a Word file's body or cell, and a line for each row of its tables."""
    for block in container.iter_inner_content():
        if hasattr(block, "rows"):
            yield "\n".join(map(_row, block.rows))
        elif block.text.strip():
            yield block.text


def _row(row: Any) -> str:
    cells = list({id(cell._tc): cell for cell in row.cells}.values())  # a merged cell stands for several
    return " | ".join(" ".join(" ".join(_blocks(cell)).split()) for cell in cells)


def _shape_texts(shapes: Any) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes"):  # a group
            yield from _shape_texts(shape.shapes)
        elif shape.has_text_frame:
            yield shape.text_frame.text
        elif getattr(shape, "has_table", False):
            rows = ([" ".join(cell.text.split()) for cell in row.cells] for row in shape.table.rows)
            yield "\n".join(map(" | ".join, rows))


def _protected(archive: zipfile.ZipFile) -> set[str]:
    """Return the names of the encrypted parts of an EPUB file; only its fonts may be."""
    if _DRM not in archive.namelist():
        return set()
    return {urllib.parse.unquote(uri) for uri in _parsed(archive.read(_DRM)).xpath("//*/@URI")}


def _chapter(page: bytes) -> str:
    """Return the text of a page; where no main text is found in it, as on a title page, all of its text."""
    encoding = "utf-16" if page.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = page.decode(encoding, "replace")
    found = html_text(text)["text"]
    if found.strip():
        return found
    root = etree.fromstring(text.encode(), etree.HTMLParser(encoding="utf-8", no_network=True))
    return "" if root is None else "\n\n".join(line.strip() for line in root.itertext() if line.strip())
