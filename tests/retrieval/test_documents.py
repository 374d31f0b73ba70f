"""Corpora as a store reads them: whole documents are cut, chunks are taken as they are, mistakes are said."""

import json

import pytest

from clara_jax.data.builders import build
from clara_jax.errors import ClaraError
from clara_jax.retrieval.documents import chunk_document, read
from clara_jax.text.chunks import Chunker
from clara_jax.text.counting import count_words
from clara_jax.text.documents import CorpusDocument

CHUNKER = Chunker(count_words, max_tokens=8)


def lines(path, *objects):
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return str(path)


def test_folders_and_lines(tmp_path):
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "deep" / "b.md").write_text(
        "# Ships\n\nShips sail on the sea. They come back in the evening."
    )
    (tmp_path / "notes" / "a.txt").write_text("Pears grow on trees.")
    corpus = lines(
        tmp_path / "corpus.jsonl",
        {"id": "x", "title": "X", "text": "A text of its own."},
        {
            "id": "y#0",
            "document": "y",
            "title": "Y",
            "text": "the first part",
            "source": "y.pdf",
            "start": 0,
            "end": 14,
        },
        {
            "id": "y#1",
            "document": "y",
            "title": "Y",
            "text": "the second part",
            "source": "y.pdf",
            "start": 15,
            "end": 30,
        },
        {"text": "no id, no title"},
    )
    found = list(read([str(tmp_path / "notes"), corpus], CHUNKER))
    assert [(document.id, len(document.chunks)) for document in found] == [
        ("a.txt", 1),
        ("deep/b.md", 2),
        ("x", 1),
        ("y", 2),
        ("corpus.jsonl:4", 1),
    ]
    ships = found[1].chunks
    assert [chunk.id for chunk in ships] == ["deep/b.md#0", "deep/b.md#1"] and all(chunk.tokens <= 8 for chunk in ships)
    assert ships[0].title == "Ships" and ships[0].text.startswith("# Ships\n")
    assert ships[1].text.startswith("Ships\n")
    assert found[3].chunks[1].start == 15 and found[3].chunks[1].source == "y.pdf" and found[3].chunks[1].tokens == 3


def test_a_data_set_that_was_built(tmp_path):
    """All its splits; what is no corpus is refused."""
    parts = [{"id": f"y#{i}", "document": "y", "title": "Y", "text": f"part {i}"} for i in range(2)]
    train, held_out = lines(tmp_path / "a.jsonl", {"id": "x", "text": "alone"}), lines(tmp_path / "b.jsonl", *parts)
    report = build("corpus", {"train": [train], "eval": [held_out]}, tmp_path / "data")
    for given in (tmp_path / "data", report.directory):
        found = {document.id: [chunk.text for chunk in document.chunks] for document in read([str(given)], CHUNKER)}
        assert found == {"x": ["alone"], "y": ["part 0", "part 1"]}
    record = lines(tmp_path / "c.jsonl", {"question": "Who?", "docs": ["d"], "answer": "Ann", "pos_index": [0]})
    build("end_to_end", {"train": [record]}, tmp_path / "other")
    with pytest.raises(ClaraError, match="holds records of end_to_end, not a corpus"):
        list(read([str(tmp_path / "other")], CHUNKER))


def test_mistakes(tmp_path):
    twice = lines(tmp_path / "twice.jsonl", {"id": "x", "text": "one"}, {"id": "x", "text": "two"})
    with pytest.raises(ClaraError, match=r"twice.jsonl:2: there is a document 'x' before"):
        list(read([twice], CHUNKER))
    apart = [{"id": f"{name}#{i}", "document": name, "text": "some"} for i, name in enumerate("xyx")]
    with pytest.raises(ClaraError, match="chunks of one stand together"):
        list(read([lines(tmp_path / "apart.jsonl", *apart)], CHUNKER))
    long = lines(tmp_path / "long.jsonl", {"id": "x#0", "document": "x", "text": "word " * 9})
    with pytest.raises(ClaraError, match=r"long.jsonl:1: has 9 tokens, and the compressor reads 8"):
        list(read([long], CHUNKER))
    for name in ("", " ", "a\nb", "x" * 513, "\x00"):
        with pytest.raises(ClaraError, match="control character"):
            chunk_document(CorpusDocument(name, "", "some text", "here"), CHUNKER)
    for name in ("../../etc/passwd", "a'b", "ü/ñ", "%2e%2e", "x" * 512):
        assert chunk_document(CorpusDocument(name, "", "some text", "here"), CHUNKER).id == name
