"""A folder as people have it: what cannot be read is left out and listed, ids are the folder's, however it is named."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from clara_jax.data.corpus.cleaning import one_line
from clara_jax.errors import ClaraError
from clara_jax.retrieval import documents, syncing
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.documents import read
from clara_jax.retrieval.read_report import SHOWN, ReadReport
from clara_jax.text.chunks import Chunker
from clara_jax.text.counting import count_words
from tests.data.corpus import archive, book, pdf, slides, word, write

CHUNKER = Chunker(count_words, max_tokens=50)
GOOD = {
    "ferry.txt": "The ferry leaves from Pier 4.",
    "deep/er/notes.md": "# Notes\n\nPears grow on trees.",
    "latin.txt": "Das Mädchen aß Äpfel und Öl floß über die Straße, während die Vögel sangen. ".encode("cp1252") * 5,
    "page.html": "<html><body><p>The harbour has four piers.</p></body></html>",
    "paper.pdf": pdf([["The paper has a text."]]),
    "half.pdf": pdf([["One page is typed."], []]),
    "letter.docx": word(["Dear Ada."], author="Bo Ek"),
    "talk.pptx": slides(("Ferries", "They sail.")),
    "book.epub": book({"one.xhtml": "Once upon a time."}),
    "odd.csv": '﻿name;note\n"Lind; Ada";"said ""no""\n and left"\n;;;\nBo\n',
    "tabs.tsv": "a\tb\n1\t2\n",
    "line.txt": "word " * 20_000,
    "lines.jsonl": '{"id": "L1", "text": "One.", "year": 1931, "tags": ["a"]}\n{"text": 7}\n{"text": "Two."}\nno\n',
}
BAD = {
    "empty.txt": "holds no text",
    "blank.md": "holds no text",
    "junk.txt": "is not UTF-8, and no encoding fits (is it text?)",
    "scan.pdf": "holds no text on its 2 pages (a scan?); recognise it (OCR) first",
    "broken.pdf": "is no PDF that can be read",
    "broken.docx": "is no Word file that can be read",
    "junk.pptx": "is no PowerPoint file that can be read",
    "locked.docx": "is encrypted, or of a format before 2007",
    "no book.epub": "is no EPUB file that can be read",
    "short.txt.gz": "cannot be read",
    "away.txt": "cannot be read: No such file or directory",
    "red\x1b[31m.txt": "the id 'red\\x1b[31m.txt' must be",
    "lines.jsonl:2": '"text" is a number',
    "lines.jsonl:4": "not JSON",
}
MADE = {
    "empty.txt": "",
    "blank.md": " \n\t\n",
    "junk.txt": bytes(range(256)) * 8,
    "scan.pdf": pdf([[], []]),
    "broken.pdf": b"%PDF-1.4 nothing more",
    "broken.docx": word(["x"])[:700],
    "junk.pptx": os.urandom(500),
    "locked.docx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "no book.epub": archive({"a.txt": "x"}),
    "short.txt.gz": b"no gzip",
    "deep/copy of ferry.txt": GOOD["ferry.txt"],
    "red\x1b[31m.txt": "A name that colours a terminal.",
    ".hidden.txt": "x",
    ".git/config.txt": "x",
    "photo.jpg": b"\xff\xd8",
    "README": "x",
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "notes"
    write(made, GOOD | MADE)
    (made / "away.txt").symlink_to(made / "nowhere")
    if sys.platform == "linux":
        with open(os.fsencode(made) + b"/b\xff.txt", "w") as file:
            file.write("A name that is no UTF-8.")
    return made


def ids(*inputs, report=None):
    return [document.id for document in read([str(given) for given in inputs], CHUNKER, report=report or ReadReport())]


def test_a_messy_folder_in_one_call(folder):
    report = ReadReport()
    found = {document.id: document for document in read([str(folder)], CHUNKER, report=report)}
    expected = set(GOOD) - {"lines.jsonl", "ferry.txt"} | {"L1", "lines.jsonl:3", "deep/copy of ferry.txt"}
    assert set(found) == expected | ({"b\ufffd.txt"} if sys.platform == "linux" else set())
    assert {os.path.relpath(place, folder) for place in report.skipped} == set(BAD)
    for name, reason in BAD.items():
        assert report.skipped[f"{folder}/{name}"].startswith(reason) or reason in report.skipped[f"{folder}/{name}"]
    table = report.table()
    assert all(f"  {folder}/{one_line(name)}: " in table for name in BAD) and "\x1b" not in table
    rows = [line.split() for line in table.splitlines()]
    assert ["pdf", "2", "2"] in rows and ["jsonl", "1", "2"] in rows and ["docx", "1", "1"] in rows
    assert f"skipped: {len(BAD)}" in table
    assert f"the same file as another: 1\n  {folder}/ferry.txt: as {folder}/deep/copy of ferry.txt" in table
    assert f"{folder}/half.pdf: 1 of its 2 pages hold no text (scanned?)" in table
    assert f"{folder}/latin.txt: its encoding was guessed: " in table
    assert "passed over: 1 .jpg, 2 hidden, 1 no suffix" in table
    assert max(chunk.tokens for document in found.values() for chunk in document.chunks) <= 50

    assert found["L1"].metadata.fields == {"year": 1931, "tags": '["a"]'}
    assert found["L1"].metadata.type == "jsonl" and found["L1"].metadata.path == os.path.realpath(
        folder / "lines.jsonl"
    )
    assert found["odd.csv"].chunks[0].text == 'odd\nname: Lind; Ada; note: said "no" and left\n\nname: Bo'
    assert found["letter.docx"].metadata.fields["author"] == "Bo Ek"


def test_ids_are_below_the_folder_however_it_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "notes"
    write(folder, {"a.txt": "One.", "deep/b.md": "Two.", "copy.txt": "One.", "l.jsonl": '{"text": "Three."}'})
    expected = ids(folder)
    assert expected == ["a.txt", "deep/b.md", "l.jsonl:1"]
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    for place, names in [
        (tmp_path, ["notes", "./notes", "notes/", "link", "link/", "notes/../notes", str(tmp_path / "link")]),
        (folder, [".", "./", "../notes"]),
        (tmp_path / "elsewhere", ["../notes", "../link"]),
    ]:
        monkeypatch.chdir(place)
        for name in names:
            assert ids(name) == expected, name


def test_dates_that_no_calendar_has(tmp_path):
    write(tmp_path, {"a.txt": "One.", "b.txt": "Two."})
    os.utime(tmp_path / "a.txt", (0, 10**13))
    os.utime(tmp_path / "b.txt", (0, 0))
    dates = [document.metadata.modified for document in read([str(tmp_path)], CHUNKER)]
    assert dates[1] == "1970-01-01T00:00:00Z"


def test_a_strict_reading_ends_at_the_first(folder):
    with pytest.raises(ClaraError, match="away.txt: cannot be read"):
        list(read([str(folder)], CHUNKER))
    with pytest.raises(ClaraError, match="is of no known kind"):
        list(read([str(folder / "photo.jpg"), str(folder / "ferry.txt")], CHUNKER))


def test_what_is_named_itself_is_listed_too(folder):
    report = ReadReport()
    assert ids(
        folder / "photo.jpg", folder / "ferry.txt", folder / "lines.jsonl", folder / "scan.pdf", report=report
    ) == [
        "ferry.txt",
        "L1",
        "lines.jsonl:3",
    ]
    assert "is of no known kind" in report.skipped[f"{folder}/photo.jpg"]
    with pytest.raises(ClaraError, match="nowhere does not exist"):
        ids(folder / "nowhere", folder)
    report = ReadReport()
    assert not ids(folder / "scan.pdf", folder / "empty.txt", report=report)
    with pytest.raises(ClaraError, match="nothing could be read; the first of 2: .*scan.pdf: holds no text on its 2"):
        report.check_any()


def test_one_id_for_two_files(tmp_path):
    report = ReadReport()
    write(tmp_path, {"a/x.txt": "One.", "b/x.txt": "Two.", "b/y.txt": "Three."})
    assert ids(tmp_path / "a", tmp_path / "b", report=report) == ["x.txt", "y.txt"]
    assert "there is a document 'x.txt' before" in report.skipped[f"{tmp_path}/b/x.txt"]


def test_a_copy_of_what_cannot_be_read_cannot_be_read(tmp_path):
    report = ReadReport()
    write(tmp_path, {"a.pdf": MADE["broken.pdf"], "b.pdf": MADE["broken.pdf"], "c.txt": "x"})
    assert ids(tmp_path, report=report) == ["c.txt"]
    assert len(set(report.skipped.values())) == 1 and len(report.skipped) == 2 == len(report.failed)


def test_a_file_that_is_no_jsonl_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MOST_BAD_LINES", 5)
    write(
        tmp_path, {"a.jsonl": '{"id": "a", "text": "x"}\n' + "no\n" * 10 + '{"id": "b", "text": "x"}\n', "c.txt": "x"}
    )
    report = ReadReport()
    assert ids(tmp_path, report=report) == ["a", "c.txt"]
    assert "5 of its lines cannot be read" in report.skipped[f"{tmp_path}/a.jsonl"] and len(report.skipped) == 6


def test_what_failed_before_may_fail_again_in_a_strict_reading(folder):
    first = ReadReport()
    before = ids(folder, report=first)
    again = ReadReport(strict=True, known=first.skipped)
    assert ids(folder, report=again) == before and again.skipped == first.skipped
    (folder / "ferry.txt").write_text("")
    (folder / "deep/copy of ferry.txt").unlink()
    with pytest.raises(ClaraError, match="ferry.txt: holds no text"):
        ids(folder, report=ReadReport(strict=True, known=first.skipped))


def test_a_long_table_is_cut(tmp_path):
    report = ReadReport()
    for number in range(SHOWN + 5):
        report.skip(f"f{number}", ClaraError(f"f{number}: {('empty', 'broken')[number % 2]}"), "")
    lines = report.table().splitlines()
    assert lines[-1] == "  and 5 more" and len(lines) == SHOWN + 3
    assert lines[2:4] == ["  f0: empty", "  f2: empty"]


# --- what is gone ---


@pytest.fixture
def store(tmp_path):
    return DocumentStore.open_or_make(tmp_path / "store", "f" * 64, "float32", 1, 2)


def fill(store, report, *inputs):
    """Puts the documents of some inputs into a store, without a model."""
    for document in read([str(given) for given in inputs], CHUNKER, report=report):
        keys = [os.urandom(16) for _ in document.chunks]
        memories = np.ones((len(keys), 1, 2), np.float32)
        store.replace(document.chunks, keys, memories, metadata={document.id: document.metadata})


def gone(store, *inputs):
    report = ReadReport()
    scopes = syncing.folders([str(given) for given in inputs])
    fill(store, report, *inputs)
    return syncing.gone(store, scopes, report)


def test_what_is_gone_and_what_only_cannot_be_read(store, tmp_path, monkeypatch):
    write(tmp_path, {f"notes/{name}.txt": f"Text {name}." for name in "abc"} | {"other/o.txt": "Other."})
    write(
        tmp_path / "notes/sub",
        {"d.txt": "Text d.", "l.jsonl": '{"id": "l1", "text": "x"}\n{"id": "l2", "text": "y"}\n'},
    )
    assert gone(store, tmp_path / "notes", tmp_path / "other") == []
    (tmp_path / "notes/a.txt").unlink()
    (tmp_path / "notes/b.txt").write_text("")  # cannot be read now, but is there
    (tmp_path / "notes/sub/l.jsonl").write_text('{"id": "l1", "text": "x"}\n')
    monkeypatch.chdir(tmp_path / "notes")
    assert gone(store, ".") == ["a.txt", "l2"]
    (tmp_path / "notes/sub/l.jsonl").write_text('{"id": "l1", "text": "x"}\n{\n')
    assert gone(store, ".") == ["a.txt"]
    walk = os.walk

    def without_permission(folder, onerror, followlinks):
        for place, folders, names in walk(folder, followlinks=followlinks):
            if place.endswith("sub"):
                onerror(PermissionError(13, "Permission denied", place))
            else:
                yield place, folders, names

    monkeypatch.setattr(os, "walk", without_permission)
    assert gone(store, ".") == ["a.txt"]


def test_an_empty_folder_takes_nothing_away(store, tmp_path):
    write(tmp_path, {"disk/a.txt": "One.", "notes/b.txt": "Two."})
    assert gone(store, tmp_path / "disk", tmp_path / "notes") == []
    (tmp_path / "disk/a.txt").unlink()
    assert gone(store, tmp_path / "disk", tmp_path / "notes") == []
    with pytest.raises(ClaraError, match="nothing to read"):
        gone(store, tmp_path / "disk")
    for wrong in (f"{tmp_path}/*/*.txt", "gs://b/a", "nowhere"):
        with pytest.raises(ClaraError, match="--sync: .* is no folder or file"):
            syncing.folders([wrong])


def test_a_document_whose_path_was_not_kept(store, tmp_path):
    """Of stores of before: its source says where it lay."""
    write(tmp_path, {"notes/a.txt": "One.", "notes/b.txt": "Two.", "notes/c.txt": "Three."})
    given = list(read([str(tmp_path / "notes")], CHUNKER))
    for document in given:
        store.replace(document.chunks, [os.urandom(16)], np.ones((1, 1, 2), np.float32))
    assert {one.path for one in store.documents()[0]} == {""}
    (tmp_path / "notes/a.txt").unlink()
    (chunk,) = given[0].chunks
    for name, source in (("sent", f"{tmp_path}/notes/sent.txt"), ("d.txt", "d.txt"), ("e.txt", "")):
        sent = dataclasses.replace(chunk, id=f"{name}#0", document=name, source=source)
        store.replace([sent], [os.urandom(16)], np.ones((1, 1, 2), np.float32))
    assert gone(store, tmp_path / "notes") == ["a.txt"]
    (tmp_path / "notes/clara_notes").mkdir()  # no data set, only called like one
    assert gone(store, tmp_path / "notes") == ["a.txt"]


def test_own_fields_are_kept_and_found(store, tmp_path):
    lines = [
        {"id": "a", "text": "x", "title": "T", "year": 1931, "author": "Ada", "big": 10**30, "nothing": None, "f": 0.1},
        {"id": "b", "text": "y", "year": "unknown", "deep": {"x": [1, "ü"]}, "long": "x" * 3000, "draft": True},
    ]
    write(
        tmp_path, {"l.jsonl": "".join(json.dumps(line) + "\n" for line in lines) + '{"id": "c", "text": "z", "n": NaN}'}
    )
    fill(store, ReadReport(), tmp_path / "l.jsonl")
    kept = store.metadata(["a", "b", "c", "no"])
    assert kept["a"].fields == {"year": 1931, "author": "Ada", "big": str(10**30), "f": 0.1}
    assert kept["b"].fields == {"year": "unknown", "deep": '{"x": [1, "ü"]}', "draft": True}
    assert kept["c"].fields == {"n": "nan"} and set(kept) == {"a", "b", "c"}
    for condition, found in [
        ("fields.year > 1900", ["a#0"]),
        ("fields.year = 'unknown' OR fields.author LIKE 'A%'", ["a#0", "b#0"]),
        ("type = 'jsonl' AND fields.deep LIKE '%ü%'", ["b#0"]),
        ("fields.draft = 'true'", ["b#0"]),
        (f"path = '{os.path.realpath(tmp_path / 'l.jsonl')}' AND modified >= '2020'", ["a#0", "b#0", "c#0"]),
    ]:
        assert sorted(store.where(condition)) == found
