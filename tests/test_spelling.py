"""Unicode's normal forms: Python's for every writing, in linear time for any text."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.metrics.answers import words
from clara_jax.retrieval.words import indexed
from clara_jax.spelling import MOST_MARKS, normal_form
from clara_jax.text.facts import names
from clara_jax.text.words import written_words

FORMS = ("NFC", "NFKC", "NFKD")


@settings(deadline=None)
@given(st.sampled_from(FORMS), st.text(st.characters(exclude_categories=()), max_size=25))
def test_it_is_pythons(form, text):
    assert normal_form(form, text) == unicodedata.normalize(form, text)


@settings(deadline=None)
@given(st.sampled_from(FORMS), st.text("e\u0301\u0344\u0f73\uff9e\u0327", max_size=200))
def test_once_is_enough(form, text):
    assert normal_form(form, normal_form(form, text)) == normal_form(form, text)


@pytest.mark.parametrize("marks", ["\u0301\u0327", "\u0344", "\u0f73", "\uff9e\uff9f", "\u3099\u0301"])
def test_a_megabyte_of_marks(marks):
    began = time.process_time()
    for form in FORMS:
        assert len(normal_form(form, "e" + marks * (10**6 // len(marks)))) <= MOST_MARKS + 1
    assert time.process_time() - began < 5


@pytest.mark.parametrize("read", [indexed, words, written_words, names])
def test_what_reads_words_takes_a_megabyte_of_marks(read):
    began = time.process_time()
    read("e" + "\u0301\u0327" * 500_000 + " end")
    assert time.process_time() - began < 10
