"""Needles: balanced, where they say they are, asked for without a doubt, and the same for the same seed."""

import random
from collections import Counter
from itertools import product

import pytest

from clara_jax.errors import ClaraError
from clara_jax.evaluation.altered_documents import FACTS, POSITIONS, date_spellings, needle_cases, number_spellings
from clara_jax.metrics.answers import cover_match, exact_match

WORDS = (
    "river stone market winter garden castle harbour forest winding silver morning people letter bread evening".split()
)


def sentence(rng, words):
    chosen = [rng.choice(WORDS) for _ in range(words)]
    return " ".join([chosen[0].capitalize(), *chosen[1:]]) + "."


def document(seed, sentences=12, words=10):
    rng = random.Random(seed)
    return " ".join(sentence(rng, words) for _ in range(sentences))


DOCUMENTS = [document(seed) for seed in range(40)]


def needle(case):
    """The sentence that was put in, found by what no document holds."""
    sentences = [f"{part}." for part in case.documents[0].removesuffix(".").split(". ")]
    return next(i for i, text in enumerate(sentences) if case.references[0] in text), sentences


def test_balanced_and_of_one_document():
    cases = needle_cases(DOCUMENTS, 0)
    cells = Counter((case.tags["position"], case.tags["fact"]) for case in cases)
    assert cells == dict.fromkeys(product(POSITIONS, FACTS), 20)
    assert len({case.id for case in cases}) == len(cases) == 300
    assert len({case.documents for case in cases}) == 300 and len({case.question for case in cases}) > 200
    assert all((case.kind, len(case.documents), case.positives) == ("question", 1, (0,)) for case in cases)


def test_the_needle_is_where_its_position_says():
    for case in needle_cases(DOCUMENTS, 3, 60):
        at, sentences = needle(case)
        assert len(sentences) == 13
        assert at == {"beginning": 0, "first third": 4, "middle": 6, "last third": 8, "end": 12}[case.tags["position"]]
        rest = " ".join(sentences[:at] + sentences[at + 1 :])
        assert rest in DOCUMENTS  # nothing else was changed
        assert not cover_match(rest, case.references)
        assert exact_match(case.references[0], case.references) == 1.0


def test_positions_are_shares_of_words():
    rng = random.Random(0)
    uneven = " ".join([sentence(rng, 3) for _ in range(20)] + [sentence(rng, 10) for _ in range(6)])
    for case in needle_cases([uneven], 0, 15):
        text = case.documents[0]
        start = text.rindex(".", 0, text.index(case.references[0])) + 1 if needle(case)[0] else 0
        before = len(text[:start].split())
        assert abs(before - POSITIONS[case.tags["position"]] * 120) <= 2


def subject_of(case):
    return next(word for word in case.question.rstrip("?").split()[1:] if word[0].isupper())


def test_the_subject_is_asked_for_and_stands_only_in_the_needle():
    for case in needle_cases(DOCUMENTS, 1):
        at, sentences = needle(case)
        assert subject_of(case) in sentences[at] and case.documents[0].count(subject_of(case)) == 1


@pytest.mark.parametrize("part", ["the value", "another spelling", "the subject"])
def test_what_stands_in_the_document_is_drawn_again(part):
    for i, case in enumerate(needle_cases(DOCUMENTS[:1], 0, 15)):
        told = {"the value": case.references[0], "another spelling": case.references[-1]}.get(part, subject_of(case))
        again = needle_cases([DOCUMENTS[0].replace(". ", f", {told.lower()}. ", 1)], 0, 15)[i]
        assert told.lower() in again.documents[0] and told not in again.documents[0].replace(told.lower(), "")
        assert again.references != case.references


def test_the_same_seed_gives_the_same_and_another_does_not():
    cases = needle_cases(DOCUMENTS, 0, 45)
    assert cases == needle_cases(iter(DOCUMENTS), 0, 45)
    assert cases == needle_cases(DOCUMENTS, 0)[:45]
    others = needle_cases(DOCUMENTS, 1, 45)
    assert [case.id for case in others] == [case.id for case in cases]
    assert sum(a.question == b.question for a, b in zip(cases, others, strict=True)) < 5
    assert cases[0].question == "Who kept the Wendray lighthouse?"  # whatever Python version draws


def test_whole_rounds():
    assert [len(needle_cases(DOCUMENTS, 0, limit)) for limit in (1, 15, 29, 30, 999)] == [15, 15, 15, 30, 300]


@pytest.mark.parametrize("words", [100, 150])
def test_longer_documents_are_cut_at_a_sentence(words):
    long = [document(seed, 60) for seed in range(5)]
    for case in needle_cases(long, 0, 15, words):
        at, sentences = needle(case)
        assert words - 22 <= len(case.documents[0].split()) <= words
        assert any(text.startswith(" ".join(sentences[:at] + sentences[at + 1 :])) for text in long)


def test_no_sentence_is_longer_than_what_is_left_for_it():
    long = [document(seed, 138, 1) for seed in range(3)]  # fills all but the needle's words
    lengths = {len(case.documents[0].split()) for case in needle_cases(long, 0)}
    assert max(lengths) <= 150 and min(lengths) > 138


def test_titles_and_white_space_are_left_out():
    titled = ["The Title\n" + text.replace(". ", ".\n", 2) for text in DOCUMENTS[:3]]
    for case in needle_cases(titled, 0, 15):
        assert "Title" not in case.documents[0] and "\n" not in case.documents[0]


@pytest.mark.parametrize("documents", [[], [document(0, 5, 5)], [document(0, 3, 40)], [document(0, 1, 400)]])
def test_documents_that_will_not_do(documents):
    with pytest.raises(ClaraError, match="needle: no document has 75 words and enough sentences"):
        needle_cases(documents, 0)
    assert len(needle_cases([*documents, *DOCUMENTS[:1]], 0, 15)) == 15  # are passed over


@pytest.mark.parametrize(
    ("number", "spellings"),
    [
        (0, ("0", "zero")),
        (12, ("12", "twelve")),
        (20, ("20", "twenty")),
        (47, ("47", "forty-seven", "forty seven")),
        (100, ("100", "one hundred")),
        (205, ("205", "two hundred and five", "two hundred five")),
        (
            999,
            (
                "999",
                "nine hundred and ninety-nine",
                "nine hundred and ninety nine",
                "nine hundred ninety-nine",
                "nine hundred ninety nine",
            ),
        ),
    ],
)
def test_numbers_in_words(number, spellings):
    assert number_spellings(number) == spellings


def test_all_numbers_are_told_apart():
    spellings = [spelling for number in range(1000) for spelling in number_spellings(number)]
    assert len(set(spellings)) == len(spellings)


def test_dates():
    assert date_spellings(14, 3, 1907) == (
        "14 March 1907",
        "March 14, 1907",
        "14th March 1907",
        "14th of March 1907",
        "March 14th, 1907",
        "1907-03-14",
    )
    endings = [
        date_spellings(day, 5, 2000)[2].removesuffix(" May 2000") for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23)
    ]
    assert endings == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd"]
    assert exact_match("march 14 1907", date_spellings(14, 3, 1907)) == 1.0
