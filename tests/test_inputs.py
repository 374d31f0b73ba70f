"""Documents that a model cannot read are told from those that it can, by its tokenizer alone."""

from types import SimpleNamespace

import pytest

from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.input_pipeline.word_level import word_level_tokenizer
from clara_jax.inputs import beyond_training, chunk_ids, unread
from tests import tiny

ENGLISH, GREEK = tiny.document(1), "Η θάλασσα είναι ήρεμη σήμερα και ο ουρανός καθαρός."


def bundle(tokenizer, base="tiny", top_k=None):
    made = ClaraTokenizer(tokenizer, doc_max_length=32, memory_tokens=4, max_length=192)
    return SimpleNamespace(tokenizer=made, base={"name": base}, top_k=top_k)


@pytest.fixture(scope="module")
def of_bytes():
    return bundle(tiny.tokenizer())


@pytest.fixture(scope="module")
def of_words():
    return bundle(word_level_tokenizer([ENGLISH]), "scratch")


def test_bytes_of_characters_and_unknown_words_are_what_is_not_known(of_bytes, of_words):
    share = of_bytes.tokenizer.unknown_share
    assert share([]) == share([""]) == share([ENGLISH]) == 0 and share([GREEK]) > 0.7
    assert 0 < share([f"{ENGLISH} ✓"]) < 0.2
    assert (
        of_words.tokenizer.unknown_share([ENGLISH]) == 0 and of_words.tokenizer.unknown_share(["A sea of grass"]) > 0.5
    )


def test_a_warning_says_which_documents_cannot_be_read(of_bytes, of_words):
    assert unread(of_bytes, [ENGLISH] * 3) is None and unread(of_words, [ENGLISH] * 3) is None
    assert "the model's tokenizer does not know" in unread(of_bytes, [GREEK])
    message = unread(of_words, [ENGLISH, "Rain fell on the hills all night."])
    assert message.startswith("this model cannot read ordinary text: it was made from scratch")
    assert unread(of_bytes, [ENGLISH] * 32 + [GREEK] * 99) is None, "the first ones are judged"
    of_a_base = SimpleNamespace(**vars(of_words) | {"base": {"name": "tiny"}})
    assert unread(of_a_base, [ENGLISH] * 9 + ["Rain fell."]) is None and unread(of_a_base, ["Rain fell."])


def test_k_is_compared_with_the_last_stage(of_bytes):
    trained = SimpleNamespace(top_k=2)
    assert beyond_training(trained, 2) is beyond_training(trained, None) is beyond_training(of_bytes, 9) is None
    assert "trained to read 2" in beyond_training(trained, 3)


def test_chunks_are_numbered_where_there_are_several():
    assert chunk_ids("a", 1) == ["a"] and chunk_ids("a", 2) == ["a#0", "a#1"]
