"""Passages of a corpus and documents of an import bear their titles in one form."""

import pytest

from clara_jax.data.importers.examples import ImportedDocument
from clara_jax.text.chunks import Chunker
from clara_jax.text.counting import count_words
from clara_jax.text.documents import CorpusDocument
from clara_jax.text.titles import titled

TEXT = "One two three. Four five six."


@pytest.mark.parametrize("limit, line", [(20, "The old ferry"), (8, "The old"), (2, "")])
def test_an_import_leaves_passages_as_they_are(limit, line):
    (chunk, *_) = Chunker(count_words, limit)(CorpusDocument("d", "The old ferry", TEXT, "d.txt"))
    assert chunk.text.removesuffix(chunk.body) == (f"{line}\n" if line else "")
    full = ImportedDocument(chunk.title, chunk.text).full()
    assert full == (chunk.text if line else f"The old ferry\n{chunk.text}")


@pytest.mark.parametrize("heading", ["# The old ferry", "The  old ferry", "## The old ferry ##", "The old ferry\n==="])
def test_a_text_that_begins_with_its_title_is_not_given_it_again(heading):
    text = f"{heading}\n\n" + "One two three. Four five six. " * 4
    first, *rest = Chunker(count_words, 16)(CorpusDocument("d", "The old ferry", text, "d.md"))
    assert first.text == first.body and first.text.startswith(heading)
    assert first.tokens == count_words([first.text])[0]
    assert rest and all(chunk.text == f"The old ferry\n{chunk.body}" for chunk in rest)
    assert titled("The old ferry", text) == text
    other = "# The old ferry of 1920\n\nOne."
    (chunk,) = Chunker(count_words, 40)(CorpusDocument("d", "The old ferry", other, "d.md"))
    assert chunk.text == f"The old ferry\n{other}" == titled("The old ferry", other)


def test_a_passage_is_its_title_and_text():
    (chunk,) = Chunker(count_words, 20)(CorpusDocument("d", "The old ferry", TEXT, "d.txt"))
    assert chunk.text == titled("The old ferry", TEXT) == ImportedDocument("The old ferry", TEXT).full()
    assert titled("", TEXT) == TEXT
    for title in ("C#", "#1 (album)", "F# minor"):  # no marks of a heading
        for text in (f"{title}\n{TEXT}", f"# {title}\n{TEXT}", f"## {title} ##\n{TEXT}"):
            assert titled(title, text) == text
            (chunk,) = Chunker(count_words, 40)(CorpusDocument("d", title, text, "d.md"))
            assert chunk.text == text
