"""Files of every kind, small enough to make in a test."""

import io
import zipfile

import pypdf
import pytest
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from clara_jax.data.corpus.readers import read_documents
from clara_jax.errors import ClaraError


def pdf(pages, title=None, password=None, algorithm="RC4-128") -> bytes:
    """A PDF with real text: pages of lines. A page without lines is blank."""
    writer = pypdf.PdfWriter()
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(key): NameObject(value) for key, value in names.items()})
    for lines in pages:
        page = writer.add_blank_page(595, 842)
        drawn = "".join(f"1 0 0 1 50 {800 - 14 * i} Tm ({line}) Tj\n" for i, line in enumerate(lines))
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 11 Tf\n{drawn}ET".encode("latin-1"))
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        page[NameObject("/Contents")] = writer._add_object(stream)
    if title is not None:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password, algorithm=algorithm)
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def archive(files, compression=zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP archive of files, {name: str or bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return file.getvalue()


def parts_of(content) -> dict[str, bytes]:
    """The files in a ZIP archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def word(paragraphs, table=(), **properties) -> bytes:
    """A Word file of paragraphs, then a table of rows."""
    import docx

    document, file = docx.Document(), io.BytesIO()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if table:
        made = document.add_table(len(table), len(table[0]))
        for row, cells in zip(made.rows, table, strict=True):
            for cell, text in zip(row.cells, cells, strict=True):
                cell.text = text
    for name, value in properties.items():
        setattr(document.core_properties, name, value)
    document.save(file)
    return file.getvalue()


def slides(*pages, notes="") -> bytes:
    """A PowerPoint file with a title and a text on each slide, and notes on the last one."""
    import pptx

    made, file = pptx.Presentation(), io.BytesIO()
    for title, text in pages:
        slide = made.slides.add_slide(made.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = text
    if notes:
        slide.notes_slide.notes_text_frame.text = notes
    made.save(file)
    return file.getvalue()


CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="O/book.opf"/></rootfiles></container>'
)
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><dc:title>{title}</dc:title><dc:creator>Ada Lind</dc:creator><dc:date>1931</dc:date></metadata>
<manifest>{items}</manifest><spine>{spine}</spine></package>"""


def book(chapters, title="The harbour", **more) -> bytes:
    """An EPUB file of chapters, {name: text}, in their order; more of its parts by name."""
    item = '<item id="c{}" href="{}" media-type="application/xhtml+xml"/>'
    items = "".join(item.format(*numbered) for numbered in enumerate(chapters))
    spine = "".join(f'<itemref idref="c{number}"/>' for number in range(len(chapters)))
    page = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head><body><p>{}</p></body></html>'
    files = {"META-INF/container.xml": CONTAINER, "O/book.opf": PACKAGE.format(title=title, items=items, spine=spine)}
    return archive(files | {f"O/{name}": page.format(text) for name, text in chapters.items()} | more)


def write(folder, files) -> str:
    """Writes files, {name: str or bytes}, and returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def read(folder, files):
    return list(read_documents([write(folder, files)]))


def refusal(folder, files):
    with pytest.raises(ClaraError) as caught:
        read(folder, files)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "")
