"""ROUGE by hand, against rouge-score's words, on other scripts and on nothing."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from clara_jax.metrics.rouge import rouge

CAT = "the cat sat on the mat"


def test_by_hand():
    # "on", "the" twice and "mat" are in both, of five and six words; "on the mat" is the longest in their order.
    values = rouge("on the mat, the dog", [CAT])
    assert values["rouge1"] == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
    assert values["rougeL"] == pytest.approx(2 * (3 / 5) * (3 / 6) / (3 / 5 + 3 / 6))


def test_the_best_reference_for_each():
    same_words, same_order = "mat the on sat cat the", "the cat sat on"
    values = rouge(CAT, [same_words, same_order])
    assert values["rouge1"] == 1.0 == rouge(CAT, [same_words])["rouge1"]
    assert values["rougeL"] == rouge(CAT, [same_order])["rougeL"] == pytest.approx(0.8)
    assert rouge(CAT, [same_words])["rougeL"] < 0.8


def test_words_are_not_stemmed():
    assert rouge("cats", ["cat"]) == {"rouge1": 0.0, "rougeL": 0.0}


def test_ascii_text_as_the_package_has_it():
    rng, package = random.Random(0), RougeScorer(["rouge1", "rougeL"])
    words = "The the U.S. don't x_y 3,000 co-founder (sat) cats cat -- mat".split()
    for _ in range(100):
        text, reference = (" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(2))
        expected = package.score(reference, text)
        assert rouge(text, [reference]) == {name: score.fmeasure for name, score in expected.items()}


def test_other_scripts_have_words():
    for text in ("Москва и Минск", "北京 上海", "Café à Zürich"):
        assert rouge(text.upper(), [f"«{text}»!"]) == {"rouge1": 1.0, "rougeL": 1.0}
    assert rouge("Cafe\u0301", ["Caf\u00e9"])["rouge1"] == 1.0


def test_nothing():
    for text, reference in (("", CAT), (CAT, ""), ("", ""), ("...", "—")):
        assert rouge(text, [reference]) == {"rouge1": 0.0, "rougeL": 0.0}
    with pytest.raises(ValueError):
        rouge(CAT, [])
