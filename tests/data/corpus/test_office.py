"""Word, PowerPoint, EPUB and tables: what they become, and what a stranger's file cannot do."""

import pytest

from clara_jax.data.corpus import office, readers
from clara_jax.data.corpus.tables import table_text
from clara_jax.errors import ClaraError
from tests.data.corpus import archive, book, parts_of, read, refusal, slides, word

SECRET = '<!DOCTYPE x [<!ENTITY j "expanded"><!ENTITY secret SYSTEM "file:///etc/passwd">]>'
BOMB = (
    '<!DOCTYPE x [<!ENTITY secret ""><!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    + "]>"
)


def test_word(tmp_path):
    content = word(
        ["The ferry sails.", "", "Every hour."], [["Pier", "Island"], ["4", "Ulm"]], title="Ferries", author="Ada Lind"
    )
    (document,) = read(tmp_path, {"a.docx": content})
    assert document.text == "The ferry sails.\n\nEvery hour.\n\nPier | Island\n4 | Ulm" and document.title == "Ferries"
    assert document.metadata.fields["author"] == "Ada Lind" and document.metadata.type == "docx"
    assert document.metadata.path == str(tmp_path.resolve() / "a.docx") and document.metadata.modified.endswith("Z")


def test_slides_are_pages(tmp_path):
    (document,) = read(
        tmp_path, {"a.pptx": slides(("Ferries", "They sail."), ("Piers", "There are four."), notes="N.")}
    )
    assert [document.page(document.text.index(word)) for word in ("Ferries", "They", "four", "N.")] == [1, 1, 2, 2]


def test_chapters_of_a_book(tmp_path):
    page = "<html><body><p>Its name has a blank.</p></body></html>"
    chapters = {"b.xhtml": "The ferry sails every hour.", "a%20b.xhtml": "x", "c.xhtml": "Nobody waits at Pier 4."}
    (document,) = read(tmp_path, {"a.epub": book(chapters, **{"O/a b.xhtml": page})})
    assert document.title == "The harbour" and document.metadata.fields == {"author": "Ada Lind", "created": "1931"}
    assert document.text == "The ferry sails every hour.\n\nIts name has a blank.\n\nNobody waits at Pier 4."


def test_a_protected_book(tmp_path):
    locked = {"META-INF/encryption.xml": '<e><CipherReference URI="O/a.xhtml"/></e>'}
    assert "protected against copying" in refusal(tmp_path, {"a.epub": book({"a.xhtml": "x"}, **locked)})
    fonts = {"META-INF/encryption.xml": '<e><CipherReference URI="O/font.otf"/></e>'}
    assert read(tmp_path / "x", {"a.epub": book({"a.xhtml": "Text."}, **fonts)})[0].text == "Text."


@pytest.mark.parametrize(
    "content, text",
    [
        ("name,town\nAnn,Ulm\nBo,\n", "name: Ann; town: Ulm\n\nname: Bo"),
        ('name;note\n"Lind; Ada";"she said ""no""\nand left"\n', 'name: Lind; Ada; note: she said "no" and left'),
        ("1,2\n3,4\n", "1; 2\n\n3; 4"),
        ("a,b\n1,2,3\n\n,,\n", "a: 1; b: 2; 3"),
        ("alone\n", "alone"),
        ("", ""),
        ("one\ntwo, three\n", "one: two; three"),
        ('a,b\n"open,1\n2,3', "a: open,1 2,3"),
    ],
)
def test_tables(content, text):
    assert table_text(content) == text


def test_a_table_of_tabs_and_a_cell_without_an_end(tmp_path):
    document, _ = read(tmp_path, {"a.tsv": "a\tb, c\n1\t2\n".encode("utf-16"), "b.csv": "a,b\n1,2\n"})
    assert document.text == "a: 1; b, c: 2" and document.metadata.type == "tsv"
    message = refusal(tmp_path / "x", {"a.csv": 'a,b\n"' + "x\n" * 100_000})
    assert message.startswith("/a.csv: line ") and message.endswith("is a quote before it not closed?")


def test_a_table_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr("clara_jax.data.corpus.tables.LARGEST", 1000)
    with pytest.raises(ClaraError, match="more than 0 MiB of text"):
        table_text("a" * 70 + "\n" + "1\n" * 100)


def with_entities(kind, declared):
    """A file whose title or text has two entities."""
    if kind == "epub":
        parts = parts_of(book({"a.xhtml": "Text."}, title="&j;&secret;"))
        return archive(parts | {"O/book.opf": declared.encode() + parts["O/book.opf"]})
    parts = parts_of(word(["Text."]))
    body = parts["word/document.xml"].replace(b"Text.", b"Text.&j;&secret;")
    return archive(parts | {"word/document.xml": body.replace(b"?>", b"?>" + declared.encode(), 1)})


@pytest.mark.parametrize("kind", ["epub", "docx"])
def test_entities_are_not_expanded_and_nothing_else_is_read(kind, tmp_path):
    (document,) = read(tmp_path / "a", {f"a.{kind}": with_entities(kind, SECRET)})
    assert (document.title, document.text) == ("a", "Text.")
    with pytest.raises(ClaraError, match="entity amplification"):
        read(tmp_path / "b", {f"a.{kind}": with_entities(kind, BOMB)})


@pytest.mark.parametrize("kind", ["docx", "pptx", "epub"])
def test_archives_that_are_refused(kind, tmp_path, monkeypatch):
    """A bomb is refused by the sizes that it states; one that lies about them is cut off there by zipfile."""
    read_part = getattr(office, f"{kind}_text")

    def said(content):
        with pytest.raises(ClaraError) as caught:
            read_part(content)
        return str(caught.value)

    monkeypatch.setattr(office, "LARGEST", 10**6)
    monkeypatch.setattr(office, "MOST_PARTS", 50)
    assert all("can be read (BadZipFile" in said(content) for content in (b"", b"PK\x03\x04 and no more"))
    assert said(b"\xd0\xcf\x11\xe0\xa1\xb1") == (
        "is encrypted, or of a format before 2007; save it anew, without a password"
    )
    assert said(archive({"a.xml": b" " * 2 * 10**6})) == "unpacks to more than 0 MiB; save it as text"
    assert said(archive(dict.fromkeys(map(str, range(51)), ""))) == "has 51 parts, more than 50; save it as text"
    assert "that can be read (" in said(archive({"../../etc/passwd": "x", "/a": "x"}))
    assert not list(tmp_path.iterdir())
    locked = bytearray(archive({"a": "x"}))
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    assert said(bytes(locked)) == "is encrypted; remove the password first"


def test_a_part_that_lies_about_its_size(monkeypatch):
    content = bytearray(archive({"META-INF/container.xml": b" " * 3 * 10**6}))
    for place in (22, content.index(b"PK\x01\x02") + 24):
        content[place : place + 4] = (10).to_bytes(4, "little")
    with pytest.raises(ClaraError, match="is no EPUB file that can be read"):
        office.epub_text(bytes(content))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    assert refusal(tmp_path, {"a.docx": b"x"}).endswith("python-docx: pip install python-docx")
    assert refusal(tmp_path / "x", {"a.pptx": b"x"}).endswith("python-pptx: pip install python-pptx")
