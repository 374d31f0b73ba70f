"""Exact match, cover match and F1 by hand: SQuAD's published examples of normalization, other scripts, the conventions
of published evaluations, and nothing at all."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.metrics.answers import (
    HOTPOTQA,
    OURS,
    RELEASED,
    SQUAD,
    cover_match,
    exact_match,
    normalize,
    token_f1,
    words,
)

ALL = (OURS, SQUAD, HOTPOTQA, RELEASED)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Eiffel\tTower.", "eiffel tower"),
        ("An apple a day — the best!", "apple day best"),
        ("theatre, another", "theatre another"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("$1,000 + 5%", "1000 5"),
        ("“Rock ’n’ Roll”", "rock n roll"),
        ("¿Dónde está?", "dónde está"),
        ("Cafe\u0301", "caf\u00e9"),
        ("ÉCOLE", "école"),
        ("北京、上海。", "北京上海"),
        ("no\u00a0break", "no break"),
        ("True", "true"),
        ("The", ""),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The “Rock” — U.S.!", "“rock” — us"),  # only ASCII's punctuation
        ("Cafe\u0301", "cafe\u0301"),
        ("no\u00a0break", "no break"),
        ("An ÉCOLE, the 2nd.", "école 2nd"),
    ],
)
def test_normalize_as_scripts_do(text, expected):
    for convention in (SQUAD, HOTPOTQA, RELEASED):
        assert normalize(text, convention) == expected


def test_booleans_of_the_released_evaluation():
    assert normalize("True", RELEASED) == "yes" and normalize("False", RELEASED) == "no"
    for text in ("true", "TRUE", " True", "True."):  # as it stands, before anything is normalized
        assert normalize(text, RELEASED) == "true"
    assert exact_match("True", ["Yes."], RELEASED) == token_f1("no", ["False"], RELEASED) == 1.0
    assert cover_match("no, never", ["False"], RELEASED) == 1.0
    assert exact_match("True", ["yes"], HOTPOTQA) == exact_match("True", ["yes"]) == 0.0


def test_exact_match_takes_the_best_reference():
    assert exact_match("the Seine", ["Loire", "Seine."]) == 1.0
    assert exact_match("Seine river", ["Loire", "Seine"]) == 0.0
    assert exact_match("", ["Seine"]) == 0.0 and exact_match("", ["Seine", "the"]) == 1.0


def test_the_released_evaluation_reads_the_first_reference_alone():
    for metric in (exact_match, cover_match, token_f1):
        assert metric("Seine", ["Loire", "Seine"], RELEASED) == 0.0
        assert metric("Seine", ["Seine", "Loire"], RELEASED) == 1.0
        assert metric("Seine", ["Loire", "Seine"], SQUAD) == metric("Seine", ["Loire", "Seine"]) == 1.0


def test_cover_match_by_hand():
    assert cover_match("It was the River Seine.", ["Loire", "River Seine"]) == 1.0
    assert cover_match("nobody knows", ["no"]) == 0.0  # words, not characters
    assert cover_match("Seine", ["River Seine"]) == 0.0
    assert cover_match("born on May 5, 1912", ["5 May 1912"]) == 0.0  # in a row, as the paper's "contained" says
    assert cover_match("born on May 5, 1912", ["5 May 1912"], RELEASED) == 1.0  # in any order
    assert cover_match("New Delhi", ["New New Delhi"]) == 0.0
    assert cover_match("New Delhi", ["New New Delhi"], RELEASED) == 1.0  # however often
    assert cover_match("in Paris and in London", ["Paris in London"]) == 0.0


def test_f1_by_hand():
    assert token_f1("born in Rouen", ["Rouen"]) == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert token_f1("Rouen Rouen", ["in Rouen, Rouen, Rouen"]) == pytest.approx(
        2 * 1 * 0.5 / 1.5
    )  # counted with repeats
    assert token_f1("Oslo, Norway", ["Norway", "Oslo Norway"]) == 1.0  # the best of the references
    assert token_f1("Oslo", ["Rouen"]) == 0.0


@pytest.mark.parametrize("answer, gold", [("yes it is", "yes"), ("no", "no one"), ("noanswer given", "noanswer")])
def test_yes_and_no_are_right_or_wrong(answer, gold):
    for convention in (HOTPOTQA, RELEASED):
        assert token_f1(answer, [gold], convention) == 0.0
        assert token_f1(gold.upper(), [f"{gold}!"], convention) == 1.0
    assert token_f1(answer, [gold], SQUAD) == token_f1(answer, [gold]) > 0.4
    assert token_f1("yes it is", ["yes", "yes it is"], HOTPOTQA) == 1.0


def test_numbers_are_compared_as_they_are_written():
    for convention in ALL:
        assert exact_match("twelve", ["12"], convention) == token_f1("twelve", ["12"], convention) == 0.0
        assert exact_match("1,000", ["1000"], convention) == cover_match("1,000 m", ["1000"], convention) == 1.0
        assert exact_match("1.5", ["15"], convention) == 1.0  # so SQuAD has it: the point is punctuation


def test_nothing():
    assert token_f1("", [""]) == token_f1("the", ["..."]) == 1.0
    assert token_f1("", ["Rouen"]) == token_f1("Rouen", [""]) == 0.0
    assert token_f1("", [""], SQUAD) == token_f1("the", ["..."], RELEASED) == 0.0  # no word in common
    for convention in ALL:
        assert exact_match("", ["..."], convention) == cover_match("", ["the"], convention) == 1.0
        assert cover_match("Rouen", [""], convention) == 1.0
        assert exact_match(" ", ["Rouen"], convention) == cover_match(" ", ["Rouen"], convention) == 0.0


def test_no_reference_is_a_mistake():
    for metric in (exact_match, cover_match, token_f1):
        for convention in ALL:
            with pytest.raises(ValueError):
                metric("Rouen", [], convention)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127, exclude_categories=("Cc",))))
def test_the_conventions_agree_on_ascii(text, gold):
    text = "".join(character for character in text if character.isprintable() or character.isspace())
    assert normalize(text) == normalize(text, SQUAD)
    for metric in (exact_match, cover_match, token_f1):
        if normalize(gold):
            rules = SQUAD if metric is not cover_match else dataclasses.replace(SQUAD, in_a_row=True)
            assert metric(text, [gold]) == metric(text, [gold], rules)


HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=1, max_size=8)


@settings(deadline=None)
@given(HAN, HAN)
def test_characters_are_words_where_no_blanks_are(first, second):
    assert token_f1(first + second, [first]) >= 2 * len(first) / (2 * len(first) + len(second)) - 1e-9
    assert cover_match(second + first, [first]) == 1.0
    assert exact_match(f"{first} {second}", [f"{first}、{second}。"]) == 1.0
    assert token_f1(first + second, [first], SQUAD) == 0.0  # the official convention has one word


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from("\u2212-–—\uff0d\ufe63"), st.sampled_from("€£¥₹₽$￥¢₿"))
def test_signs_count_as_ascii_ones_do(number, minus, currency):
    assert exact_match(f"{minus}{number}", [f"-{number}"]) == 1.0
    assert exact_match(f"{currency}{number}", [str(number)]) == exact_match(f"${number}", [str(number)]) == 1.0
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in str(number))
    assert exact_match(wide, [str(number)]) == 1.0
    assert exact_match(wide, [str(number)], SQUAD) == 0.0
    for zero in (0x660, 0x6F0, 0x966):  # Arabic, Persian, Hindi
        assert exact_match("".join(chr(ord(digit) - 48 + zero) for digit in str(number)), [str(number)]) == 1.0


@pytest.mark.parametrize("one, other", [("Straße", "STRASSE"), ("İzmir", "izmir"), ("ΟΔΟΣ", "οδος"), ("Ǆ", "ǆ")])
def test_letters_with_one_capital(one, other):
    assert words(one) == words(other)


@settings(deadline=None)
@given(
    st.text("abc dé", min_size=1),
    st.sampled_from("\u200b\u200d\u2060\ufeff\u202e\u00ad\ufe0f\U000e0101"),
    st.integers(0, 9),
)
def test_marks_that_are_never_shown(text, mark, place):
    assert words(text[:place] + mark + text[place:]) == words(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("東京都の2023年", ["東", "京", "都", "の", "2023", "年"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("서울 한강", ["서울", "한강"]),  # Korean has blanks
        ("ﬁne ﬂow", ["fine", "flow"]),
        ("rock´n´roll", ["rocknroll"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected
