"""Chunks: exact offsets, nothing lost, never too long, and cut where a reader would."""

import dataclasses
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.text.chunks import Chunker
from clara_jax.text.counting import TokenCounter, count_words, open_counter
from clara_jax.text.documents import CorpusDocument
from clara_jax.text.sentences import WINDOW, paragraph_ends, sentence_ends
from tests.data import tiny_tokenizer

BYTES = TokenCounter(ClaraTokenizer(tiny_tokenizer(), doc_max_length=8, memory_tokens=1))


def document(text, title="", **fields):
    return CorpusDocument("d", title, text, "d.txt", **fields)


def bodies(chunker, text, title=""):
    return [chunk.body for chunk in chunker(document(text, title))]


def sentences(text):
    ends = sentence_ends(text)
    return [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]


# --- sentences and paragraphs ---


def test_sentences_end_where_a_reader_says():
    expected = [
        "Dr. Smith went to Washington, D.C. on Jan. 5.",
        "He paid $3.50 for tea, e.g. green tea!",
        "“Was it good?” asked Mr. Jones.",
        "It was.",
    ]
    assert sentences(" ".join(expected)) == expected


def test_line_ends_within_a_paragraph_end_no_sentence():
    assert sentences("The ferry sails\nevery hour. It takes\nforty minutes.") == [
        "The ferry sails\nevery hour.",
        "It takes\nforty minutes.",
    ]


def test_sentences_across_windows():
    text = " ".join(f"Of all sentences this is number {i} in order." for i in range(3 * WINDOW // 30))
    assert sentences(text) == [f"{part}." for part in text[:-1].split(". ")]
    assert sentence_ends("x" * (3 * WINDOW))[-1] == 3 * WINDOW


@pytest.mark.parametrize(
    "expected",
    [
        ["Wrapped at a width of some\nforty characters it goes\non.", "Another paragraph of its own\nhas two lines."],
        ["A list:", "- first item", "- second item\n  goes on"],
        ["# Heading\n\n## Another\nThe text below.", "More."],
        ["Short line.", "A much longer line than the one that stands above it, which is a paragraph of its own."],
    ],
)
def test_paragraphs(expected):
    glue = "\n" if expected[0] in ("A list:", "Short line.") else "\n\n"
    text = glue.join(expected) + "\n"
    ends = paragraph_ends(text)
    assert [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)] == expected


def test_an_unknown_language():
    with pytest.raises(ClaraError, match="--language: 'xx' is unknown to pysbd; it must be one of am, ar, bg"):
        Chunker(count_words, language="xx")


# --- where chunks end ---


def test_a_short_document_is_one_chunk():
    (chunk,) = Chunker(count_words, 20)(document("\n One. Two.\n\nThree. \n", "Numbers", pages=(0, 6)))
    assert (chunk.id, chunk.text, chunk.body) == ("d#0", "Numbers\nOne. Two.\n\nThree.", "One. Two.\n\nThree.")
    assert (chunk.start, chunk.end, chunk.page, chunk.tokens) == (2, 19, 1, 4)
    assert chunk.fields() == {
        "id": "d#0",
        "document": "d",
        "title": "Numbers",
        "text": chunk.text,
        "source": "d.txt",
        "start": 2,
        "end": 19,
        "page": 1,
    }
    assert "page" not in dataclasses.replace(chunk, page=None).fields()


def test_paragraphs_are_preferred_then_sentences_then_words():
    first, second = "One two three four. Five six.", "Seven eight nine. Ten eleven twelve."
    chunker = Chunker(count_words, 10)
    assert bodies(chunker, f"{first}\n\n{second}") == [first, second]
    # The first paragraph alone would fill less than half.
    assert bodies(chunker, f"One two.\n\n{first} {second}") == [f"One two.\n\n{first}", second]
    assert bodies(Chunker(count_words, 4), "a b c d e f g. H i.") == ["a b c d", "e f g.", "H i."]
    assert bodies(Chunker(BYTES, 8), "abcdefghijklmnopqrs tu") == ["abcdefgh", "ijklmnop", "qrs tu"]


def test_a_word_that_fits_is_never_divided():
    assert bodies(Chunker(BYTES, 8), "ab cdefghi jk") == ["ab", "cdefghi", "jk"]


def test_overlap_in_sentences_and_tokens():
    text = "A b c. D e f. G h i. J k l. M n o."
    assert bodies(Chunker(count_words, 6, overlap=1), text) == [
        "A b c. D e f.",
        "D e f. G h i.",
        "G h i. J k l.",
        "J k l. M n o.",
    ]
    by_tokens = Chunker(count_words, 9, overlap=4, overlap_unit="tokens")
    assert bodies(by_tokens, text) == ["A b c. D e f. G h i.", "G h i. J k l. M n o."]
    # Of two sentences only one is at most half a chunk, and none leaves room for a long one.
    assert bodies(Chunker(count_words, 9, overlap=2), text) == ["A b c. D e f. G h i.", "G h i. J k l. M n o."]
    assert bodies(Chunker(count_words, 6, overlap=1), "A b c. D e f. G h i j k l.") == ["A b c. D e f.", "G h i j k l."]


def test_the_title_counts_and_is_cut_when_it_is_long():
    chunker = Chunker(count_words, 7)
    assert [c.text for c in chunker(document("One two three four five six seven.", "T"))] == [
        "T\nOne two three four five six",
        "T\nseven.",
    ]
    (chunk, *_) = Chunker(count_words, 12)(document("One.", "a title of many words"))
    assert (chunk.text, chunk.title) == ("a title of\nOne.", "a title of many words")
    (chunk,) = Chunker(count_words, 3)(document("One.", "Long"))
    assert chunk.text == "One."
    (chunk,) = Chunker(count_words, 8, title=False)(document("One.", "T"))
    assert chunk.text == "One."


def test_pages_of_chunks():
    chunks = Chunker(count_words, 2)(document("A b.\n\nC d.\n\nE f.", pages=(0, 6, 6)))
    assert [(chunk.body, chunk.page) for chunk in chunks] == [("A b.", 1), ("C d.", 3), ("E f.", 3)]


def test_a_blank_document_has_no_chunks():
    assert Chunker(count_words)(document(" \n\n")) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_tokens": 0}, "--max-tokens: 0 must be at least 1"),
        ({"overlap": -1}, "--overlap: -1 must be zero or positive"),
        ({"overlap": 5, "max_tokens": 8, "overlap_unit": "tokens"}, "--overlap: 5 tokens are more than half"),
        ({"overlap_unit": "lines"}, "--overlap-unit: 'lines' must be"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ClaraError, match=message):
        Chunker(count_words, **options)


def test_a_limit_below_one_character():
    with pytest.raises(ClaraError, match="d.txt: the character '東' is longer than --max-tokens 2 allows"):
        Chunker(BYTES, 2)(document("ab 東"))


def test_a_very_long_word_is_divided_in_linear_time():
    calls = []

    def count(texts):
        calls.append(sum(map(len, texts)))
        return [len(text) for text in texts]

    word = "x" * 200_000
    sizes = [chunk.end - chunk.start for chunk in Chunker(count, 64)(document(word))]
    assert max(sizes) == 64 and sum(sizes) == len(word)
    assert sum(calls) < 40 * len(word)  # the whole of it for every chunk would be 3000 times


# --- for any text ---

WORDS = st.sampled_from(
    ["a", "the", "Dr.", "end.", "What?", "thethethe", "東京。", "e.g.", "“So.”", "ünï", "x" * 40, "- item", "# Head"]
)
SPACES = st.sampled_from([" ", " ", " ", "\n", "\n\n", "  \n \t\n", "\u00a0", "\u2003", "\x0c", "   "])
TEXTS = st.one_of(
    st.lists(st.tuples(WORDS, SPACES), max_size=120).map(lambda pairs: "".join(a + b for a, b in pairs)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)


def erratic(texts):
    """A count that joining changes, up and down, as a tokenizer's might."""
    return [max(1, len(text.split()) + sum(map(ord, text)) % 3 - 1) if text.strip() else 0 for text in texts]


@settings(max_examples=150, deadline=None)
@given(
    text=TEXTS,
    title=st.sampled_from(["", "Ferry", "a long title of many words " * 5]),
    count=st.sampled_from([count_words, BYTES, erratic]),
    limit=st.integers(4, 40),
    overlap=st.integers(0, 3),
    unit=st.sampled_from(["sentences", "tokens"]),
)
def test_offsets_are_exact_nothing_is_lost_and_nothing_too_long(text, title, count, limit, overlap, unit):
    overlap = min(overlap, limit // 2) if unit == "tokens" else overlap
    chunks = Chunker(count, limit, overlap, unit)(document(text, title))
    covered = set()
    for number, chunk in enumerate(chunks):
        assert chunk.id == f"d#{number}"
        assert chunk.body == text[chunk.start : chunk.end] == chunk.body.strip() != ""
        assert chunk.text.removesuffix(chunk.body) in ("", *(chunk.text[: i + 1] for i in [chunk.text.find("\n")]))
        assert count([chunk.text]) == [chunk.tokens] and chunk.tokens <= limit
        covered.update(range(chunk.start, chunk.end))
    assert all(i in covered or character.isspace() for i, character in enumerate(text))
    assert all(a.start < b.start and a.end < b.end for a, b in zip(chunks[:-1], chunks[1:], strict=True))
    if not overlap:
        assert all(a.end <= b.start for a, b in zip(chunks[:-1], chunks[1:], strict=True))


# --- counting ---


def test_words_of_scripts_without_spaces():
    assert count_words(["", "two words", "東京 tower", "東京。"]) == [0, 2, 3, 3]


def test_tokens_are_those_the_compressor_reads():
    tokenizer = ClaraTokenizer(tiny_tokenizer(), doc_max_length=12, memory_tokens=2)
    count = pickle.loads(pickle.dumps(TokenCounter(tokenizer)))
    assert count(["abc", "", "the an"]) == [3, 0, 2]
    text = "The ferry. It sails <ENC> to the pier, and an inn. " * 5  # with a special token's string
    chunks = Chunker(count, 12)(document(text))
    assert len(chunks) > 5 and not any(tokenizer.is_cut(chunk.text) for chunk in chunks)


def test_counters_by_name(tmp_path):
    assert open_counter("words", 256) is count_words
    ClaraTokenizer(tiny_tokenizer(), doc_max_length=12, memory_tokens=2).save(tmp_path)
    assert open_counter(str(tmp_path), 12)(["abc"]) == [3]
    with pytest.raises(ClaraError, match="--max-tokens: 13 is more than the checkpoint's doc_max_length, 12"):
        open_counter(str(tmp_path), 13)
    with pytest.raises(ClaraError, match="nothing/here/at/all: no such directory"):
        open_counter("nothing/here/at/all", 256)
