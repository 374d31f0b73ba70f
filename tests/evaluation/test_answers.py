"""Exact match and F1: SQuAD's published examples of normalization, other scripts, and nothing at all."""

import pytest

from clara_jax.evaluation.answers import exact_match, normalize, token_f1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Eiffel\tTower.", "eiffel tower"),
        ("An apple a day — the best!", "apple day best"),
        ("theatre, another", "theatre another"),  # articles are words of their own
        ("U.S.A.", "usa"),
        ("$1,000 + 5%", "1000 5"),
        ("“Rock ’n’ Roll”", "rock n roll"),
        ("¿Dónde está?", "dónde está"),
        ("Cafe\u0301", "caf\u00e9"),
        ("ÉCOLE", "école"),
        ("北京、上海。", "北京上海"),
        ("no\u00a0break", "no break"),
        ("The", ""),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


def test_exact_match_takes_the_best_reference():
    assert exact_match("the Seine", ["Loire", "Seine."]) == 1.0
    assert exact_match("Seine river", ["Loire", "Seine"]) == 0.0
    assert exact_match("", ["Seine"]) == 0.0 and exact_match("", ["Seine", "the"]) == 1.0


def test_f1_by_hand():
    assert token_f1("born in Rouen", ["Rouen"]) == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert token_f1("Rouen Rouen", ["in Rouen, Rouen, Rouen"]) == pytest.approx(
        2 * 1 * 0.5 / 1.5
    )  # counted with repeats
    assert token_f1("Oslo, Norway", ["Norway", "Oslo Norway"]) == 1.0  # the best of the references
    assert token_f1("Oslo", ["Rouen"]) == 0.0


def test_f1_of_nothing():
    assert token_f1("", [""]) == token_f1("the", ["..."]) == 1.0
    assert token_f1("", ["Rouen"]) == token_f1("Rouen", [""]) == 0.0


def test_no_reference_is_a_mistake():
    with pytest.raises(ValueError):
        exact_match("Rouen", [])
    with pytest.raises(ValueError):
        token_f1("Rouen", [])
