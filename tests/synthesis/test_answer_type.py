"""Answers that are not of the kind that the question asks for."""

from itertools import groupby

import pytest

from clara_jax.synthesis.checks import CheckLimits, DocumentText, missed_answer_type, pair_problem
from clara_jax.text.words import words

TIME, MORE = "a quantity or a time", "more than a number"


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("When was the mill built?", "in 1874", None),
        ("When was the mill built?", "Hanna Velde", TIME),
        ("In which year did it burn down?", "in the year of the flood", None),
        ("By what date was it built?", "a museum", TIME),
        ("How many looms are shown?", "twelve looms", None),
        ("How many looms are shown?", "a dozen", None),
        ("How many looms are shown?", "looms of oak", TIME),
        ("How tall is it?", "red granite", TIME),
        ("For how long did it stand?", "until the flood", None),
        ("When rocks melt, what is formed?", "magma", None),
        ("How did it burn down?", "by lightning", None),
        ("How much did the town pay?", "very little", None),
        ("Who built the mill?", "1874", MORE),
        ("Who built the mill?", "Hanna Velde in 1874", None),
        ("To whom was it sold?", "12th", MORE),
        ("Where does the town rank?", "9th", None),
        ("Who built it, and when was it built?", "1874", None),
        ("Which mill is older?", "3", None),
    ],
)
def test_kinds(question, answer, expected):
    numbers = bool(DocumentText("").numbers_of(answer, doubtful=True))
    assert missed_answer_type(question, words(answer), numbers) == expected


def test_a_pair_of_another_kind_is_refused():
    document, limits = DocumentText("Hanna Velde built the mill of Ostrow in 1874."), CheckLimits()
    assert pair_problem(document, "When was the mill of Ostrow built?", "Hanna Velde", limits).kind == "wrong_kind"
    assert pair_problem(document, "Who built the mill of Ostrow?", "1874", limits).kind == "wrong_kind"
    assert pair_problem(document, "When was the mill of Ostrow built?", "Not stated.", limits).kind == "refusal"
    german = DocumentText("Hanna Velde baute die Mühle 1874.", "de")
    assert pair_problem(german, "When was the mill of Ostrow built?", "Hanna Velde", limits) is None


def test_rates_on_real_pairs(sample):
    def refused(document, question, answer):
        return missed_answer_type(question, words(answer), bool(document.numbers_of(answer, doubtful=True))) is not None

    assert not [pair for pair in sample if refused(*pair)]
    # Of another question on the same document: the document says it, and it is wrong all the same.
    others = [
        (document, question, answer)
        for _, pairs in groupby(sample, lambda pair: pair[0].text)
        for pairs in [list(pairs)]
        for (document, question, right), (_, _, answer) in zip(pairs, pairs[1:] + pairs[:1], strict=True)
        if answer != right
    ]
    assert len(others) > 5000 and sum(refused(*pair) for pair in others) / len(others) > 0.05
