"""Documents whose answer is changed: what is put in, where, and which cases are left out."""

import dataclasses

import pytest

from clara_jax.evaluation.altered_documents import counterfactual_cases
from clara_jax.metrics.answers import cover_match
from clara_jax.metrics.cases import Case, Suite


def case(name, question, document, *references, **fields):
    return Case(name, "question", question, (document,), references, **fields)


BORN = [
    case("ada", "Where was Ada born?", "Ada was born in Oslo. Oslo is cold.", "Oslo"),
    case("rollo", "Where was Rollo born?", "Rollo was born in Rouen.", "Rouen"),
    case("mika", "Where was Mika born?", "Mika was born in New York City.", "New York City", "New York"),
]
BUILT = [
    case("tower", "When was the tower built?", "The tower was built in 1820, with 12 bells.", "1820"),
    case("mill", "When was the mill built?", "The mill was built in 1764.", "1764"),
    case("bells", "How many bells has it?", "The tower was built in 1820, with 12 bells.", "12 bells"),
    case("boats", "How many bells are there?", "There are 30 bells.", "30 bells"),
]


def changed(cases, seed=0, limit=None):
    return {case.id: case for case in counterfactual_cases(cases, seed, limit)}


def test_another_answer_of_the_same_kind_stands_everywhere():
    found = changed(BORN + BUILT)
    assert set(found) == {"ada", "rollo", "mika", "tower", "mill", "bells", "boats"}
    ada = found["ada"]
    (new,) = ada.references
    assert new in ("Rouen", "New York City") and ada.instead_of == ("Oslo",)
    assert ada.documents == (f"Ada was born in {new}. {new} is cold.",) and ada.question == BORN[0].question
    assert found["mika"].documents[0] in ("Mika was born in Oslo.", "Mika was born in Rouen.")  # the longest first
    assert found["tower"].documents == ("The tower was built in 1764, with 12 bells.",)
    assert found["bells"].references == ("30 bells",)
    for case in found.values():
        assert not cover_match(case.documents[0], case.instead_of) and cover_match(case.documents[0], case.references)


def test_draws_are_the_cases_own():
    assert changed(BORN) == changed(BORN) == {**changed(BORN[::-1])}
    assert list(changed(BORN, limit=2)) == ["ada", "rollo"] and changed(BORN, limit=2)["ada"] == changed(BORN)["ada"]
    pool = [case(str(i), "Where was it?", f"It was in Town{i}.", f"Town{i}") for i in range(30)]
    assert changed(pool) != changed(pool, seed=1)


@pytest.mark.parametrize(
    "other",
    [
        case("x", "What was it?", "It was cold.", "cold"),  # no entity
        case("x", "Where was Oslo?", "It was in Oslo.", "Oslo"),  # the question has it
        case("x", "Where was it?", "It was in Oslo. So was Oslos.", "Bergen"),  # the document has not
        case("x", "Where was he?", "John Stuart was in Old Bergen, and Bergen is far.", "Old Bergen"),  # a word is left
        case("x", "Where was it?", "It was in Oslo."),  # no reference
        case("x", "Where?", "In Oslo.", "Oslo in the north of Norway beside the sea"),  # a sentence
    ],
)
def test_what_cannot_be_changed_is_left_out(other):
    assert "x" not in changed([*BORN, other])


def test_nothing_else_of_the_kind_leaves_nothing():
    assert changed(BORN[:1]) == {} and changed([BORN[0], BUILT[0]]) == {}
    near = case("near", "Where was Ada born?", "Ada was born in Oslo, not in Rouen.", "Oslo")
    assert changed([near, BORN[1]]) == {"rollo": changed([BORN[0], BORN[1]])["rollo"]}  # both stand in near's document


def test_tags_say_the_kind_and_positives_stay():
    tagged = [
        dataclasses.replace(case, tags={"fact": fact}, positives=(0,))
        for case, fact in zip(BORN, ("town", "town", "other"), strict=True)
    ]
    found = changed(tagged)
    assert set(found) == {"ada", "rollo"} and found["ada"].references == ("Rouen",)
    assert found["ada"].positives == (0,) and found["ada"].tags == {"fact": "town"}


def test_only_changed_cases_carry_what_they_had():
    """Suites of before there were changed ones keep their digests."""
    plain, swapped = BORN[0], changed(BORN)["ada"]
    assert "instead_of" not in plain.fields() and swapped.fields()["instead_of"] == ("Oslo",)
    known = "d4d50211"
    assert Suite("s", False, (plain,)).digest()[:8] == known
