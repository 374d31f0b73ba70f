"""Readers: what a file of each kind becomes, and the one line that refuses it."""

import gzip
import json

import pytest

from clara_jax.data.corpus import readers
from clara_jax.data.corpus.files import find_files
from clara_jax.errors import ClaraError
from tests.data.corpus import pdf, read, refusal, write

PAGE = """<!doctype html><html><head><title>The ferry | Harbour</title><meta property="og:title" content="The ferry">
</head><body><nav><a href="/">Home</a></nav><main><h1>The ferry</h1><p>The ferry to Ulm Island leaves from Pier 4 every
hour. It takes forty minutes.</p><ul><li>Adults pay six.</li><li>Children pay two.</li></ul><p>Tickets are sold on board
&amp; at the pier.</p></main><footer>Copyright Harbour</footer></body></html>"""


def test_text_is_kept_and_named_by_its_path(tmp_path):
    (document,) = read(tmp_path, {"b/Ferry notes.txt": "One.\r\nTwo.\rThree.\n"})
    assert document.text == "One.\nTwo.\nThree.\n"
    assert (document.id, document.title) == ("b/Ferry notes.txt", "Ferry notes")
    assert document.source == f"{tmp_path}/b/Ferry notes.txt"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_unicode_encodings(encoding, tmp_path):
    text = "Grüße aus Köln, 東京."
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (document,) = read(tmp_path, {"a.txt": mark + text.encode(encoding)})
    assert (document.text, document.guessed_encoding) == (text, None)


def test_another_encoding_is_guessed_and_said(tmp_path):
    text = "Das Mädchen aß Äpfel und Öl floß über die Straße, während die Vögel fröhlich sangen. " * 5
    (document,) = read(tmp_path, {"a.txt": text.encode("cp1252")})
    assert document.text == text
    assert document.guessed_encoding


def test_an_encoding_that_cannot_be_guessed(tmp_path, monkeypatch):
    assert refusal(tmp_path, {"a.txt": bytes(range(256)) * 8}).startswith("/a.txt: is not UTF-8, and no encoding fits")
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    message = refusal(tmp_path, {"a.txt": "über".encode("latin-1")})
    assert message == "/a.txt: is not UTF-8; save it as UTF-8, or: pip install charset-normalizer"
    assert "byte 1 is not utf-16-le" in refusal(tmp_path, {"a.txt": b"\xff\xfe\x00"})


@pytest.mark.parametrize(
    "content, title, text",
    [
        ("# The *ferry* #\nIt sails.", "The *ferry*", "# The *ferry* #\nIt sails."),
        ("---\ntitle: 'On ferries'\ntags: [a]\n---\n# Another\nIt sails.", "On ferries", "# Another\nIt sails."),
        ("---\nlayout: page\n---\nFerries\n=======\nThey sail.", "Ferries", "Ferries\n=======\nThey sail."),
        ("---\nNo field here.\n---\nText.", "a", "---\nNo field here.\n---\nText."),
        ("```sh\n# no heading\n```\n## Late\n", "Late", "```sh\n# no heading\n```\n## Late\n"),
        ("Only text.", "a", "Only text."),
    ],
)
def test_markdown(content, title, text, tmp_path):
    (document,) = read(tmp_path, {"a.md": content})
    assert (document.title, document.text) == (title, text)


def test_html_main_text(tmp_path):
    (document,) = read(tmp_path, {"a.html": PAGE})
    assert document.title == "The ferry"
    assert "The ferry to Ulm Island leaves from Pier 4 every hour. It takes forty minutes." in document.text
    assert "\n- Adults pay six.\n- Children pay two.\n\nTickets are sold on board & at the pier." in document.text
    assert "Home" not in document.text and "Copyright" not in document.text


def test_html_fragments_and_declared_encodings(tmp_path):
    declared = (
        '<html><head><meta charset="iso-8859-2"><title>Łódź</title></head><body><p>Żółty łabędź.</p></body></html>'
    )
    fragment, page = read(tmp_path, {"a.htm": "<p>Just one paragraph.</p>", "b.html": declared.encode("iso-8859-2")})
    assert (fragment.title, fragment.text) == ("a", "Just one paragraph.")
    assert (page.title, page.text.strip(), page.guessed_encoding) == ("Łódź", "Żółty łabędź.", None)


def test_pdf_pages(tmp_path):
    pages = [["The ferry sails every hour", "and takes forty minutes."], [], ["Tickets are sold at", "the pier."]]
    (document,) = read(tmp_path, {"a.pdf": pdf(pages, "Ferry  guide")})
    assert document.title == "Ferry guide"
    assert document.text.split() == " ".join(" ".join(page) for page in pages).split()
    assert [document.page(document.text.index(word)) for word in ("The", "minutes", "Tickets", "pier")] == [1, 1, 3, 3]
    (untitled,) = read(tmp_path / "x", {"b.pdf": pdf(pages[:1])})
    assert untitled.title == "b"


def test_encrypted_pdf(tmp_path):
    assert refusal(tmp_path, {"a.pdf": pdf([["Secret."]], password="x")}) == (
        "/a.pdf: is encrypted; remove the password first"
    )
    (document,) = read(tmp_path, {"a.pdf": pdf([["Not to be printed."]], password="")})  # opens without a password
    assert document.text == "Not to be printed."


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.pdf": pdf([[], []])}, "/a.pdf: holds no text on its 2 pages (a scan?); recognise it (OCR) first"),
        ({"a.pdf": b"%PDF-1.4 nothing more"}, "/a.pdf: is no PDF that can be read ("),
        ({"a.txt": ""}, "/a.txt: holds no text"),
        ({"a.md": " \n\t\n"}, "/a.md: holds no text"),
        ({"a.html": "<html><body></body></html>"}, "/a.html: holds no main text"),
        ({"a.txt.gz": b"no gzip"}, "/a.txt.gz: cannot be read: "),
        ({"a.png": b"x"}, "--input: : nothing to read; files must be one of .txt, .md"),
        ({"a.jsonl": "{"}, "/a.jsonl:1: column 2: not JSON"),
        ({"a.jsonl": "[]"}, "/a.jsonl:1: the line holds a list; each line must be a JSON object"),
        ({"a.jsonl": '\n{"id": 1}'}, '/a.jsonl:2: "text" is missing; each document needs a text (or "contents"'),
        ({"a.jsonl": '{"text": " "}'}, '/a.jsonl:1: "text" is empty'),
        ({"a.jsonl": '{"text": 3}'}, '/a.jsonl:1: "text" is a number; it must be a string'),
        ({"a.jsonl": '{"text": "x", "id": true}'}, '/a.jsonl:1: "id" is true or false'),
        ({"a.jsonl": '{"text": "x\\ud83d"}'}, '/a.jsonl:1: "text" holds half of a surrogate pair'),
    ],
)
def test_refusals(files, message, tmp_path):
    assert refusal(tmp_path, files).startswith(message)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    assert refusal(tmp_path, {"a.pdf": pdf([["x"]])}).endswith("pip install pypdf")
    assert refusal(tmp_path / "x", {"a.html": PAGE}).endswith("pip install trafilatura")


def test_json_lines_in_their_spellings(tmp_path):
    lines = [
        {"id": "one", "title": "A\ntitle", "text": "Text."},
        {"_id": 7, "contents": "Text\r\nof two lines."},
        {"title": None, "body": "No id."},
    ]
    content = gzip.compress("\n".join(map(json.dumps, lines)).encode())
    documents = read(tmp_path, {"x/wiki.jsonl.gz": content})
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("one", "A title", "Text."),
        ("7", "", "Text\nof two lines."),
        ("x/wiki.jsonl.gz:3", "", "No id."),
    ]
    assert documents[2].source == f"{tmp_path}/x/wiki.jsonl.gz:3"


def test_which_files_and_their_names(tmp_path, monkeypatch):
    names = ["b.txt", "a/z.md", "a/y.TXT", ".hidden/c.txt", "a/.d.txt", "e.png", "f"]
    folder = write(tmp_path / "in", dict.fromkeys(names, "x"))
    files, ignored = find_files([folder])
    assert [file.name for file in files] == ["a/y.TXT", "a/z.md", "b.txt"]
    assert ignored == {".png": 1, "no suffix": 1, "hidden": 2}
    assert [file.name for file in find_files([f"{folder}/*/*.md"])[0]] == ["a/z.md"]
    assert [file.name for file in find_files([f"{folder}/**/*.md"])[0]] == ["a/z.md"]
    assert [file.name for file in find_files([f"{folder}/a/z.md", folder])[0]] == ["z.md", "a/y.TXT", "b.txt"]
    monkeypatch.chdir(tmp_path / "in")
    assert [(file.name, file.path) for file in find_files(["a"])[0]] == [("y.TXT", "a/y.TXT"), ("z.md", "a/z.md")]
    assert [file.name for file in find_files(["b.txt"])[0]] == ["b.txt"]
    with pytest.raises(ClaraError, match="e.png: is of no known kind; it must be one of .txt"):
        find_files(["e.png"])
    with pytest.raises(ClaraError, match="--input: nowhere does not exist"):
        find_files(["nowhere"])
