"""What counts as a number and as a name, one sentence at a time, and how many are kept."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_jax.text.facts import kept, names, numbers


@pytest.mark.parametrize(
    "text, expected",
    [
        ("twelve", {12}),
        ("Twenty-one, thirty five and FORTY", {21, 35, 40}),
        ("two hundred and five", {205}),
        ("a hundred sheep, nineteen hundred cows", {100, 1900}),
        ("three thousand four hundred and fifty-six", {3456}),
        ("two hundred thousand; two million three hundred thousand and seven", {200_000, 2_300_007}),
        ("2.5 million, 9 hundred", {2_500_000, 900}),
        ("the twenty-first of the hundredth, the 3rd, the 12th", {21, 100, 3, 12}),
        ("five and six, seven eight", {5, 6, 7, 8}),
        ("one thousand, two thousand", {1000, 2000}),
        ("zero, 0, 007", {0, 7}),
        ("1,234,567.50 and 12.0", {Decimal("1234567.5"), 12}),
        ("10\u00a0000 or 10\u202f000", {10_000}),
        ("1,5 and 1,0000", {1, 5, 0}),  # groups have three digits
        ("$5m, 7%, 40km, 1990s", {5, 7, 40, 1990}),
        ("1914-18, 10:30, 2/3", {1914, 18, 10, 30, 2, 3}),
        ("B52, X1, Covid-19", {19}),
        ("٣ and ١٢", {3, 12}),
        ("someone, tenth-rate, weighty, often", {10}),
        ("nineteen ninety", {19, 90}),
        ("10⁶ of ² m², ½, ①, _5th_, _7_", {10, 7}),  # digits that are not decimal, and digits within words
        ("", set()),
    ],
)
def test_numbers(text, expected):
    assert numbers(text) == expected


@given(st.text(st.characters(categories=["Nd", "Nl", "No", "Lu", "Pc", "Po", "Zs"]), max_size=20))
def test_no_text_is_refused(text):
    assert all(number >= 0 for number in numbers(text)) and len(names(text)) <= len(text)


def test_doubtful_numbers():
    text = "One of the first stayed a second; one hundred came twenty-first."
    assert numbers(text) == {100, 21}
    assert numbers(text, doubtful=True) == {1, 2, 100, 21}
    assert numbers("1 of them") == {1}
    assert kept("It won 1 to 2.", "It won one to nothing, in a second.")["numbers"] == 1.0


@pytest.mark.parametrize(
    "text", ["12 May 1990", "12th of May, 1990", "May 12, 1990", "1990-05-12", "12/5/1990", "12. May 1990"]
)
def test_dates(text):
    assert numbers(f"Born on {text} in Rouen.") == {12, 5, 1990}
    assert names(f"Born on {text} in Rouen.") == {"rouen"}


def test_months_beside_no_digits_are_names():
    assert names("He came in September.") == {"september"} and not numbers("He came in September.")
    assert numbers("It may 5 times; Jan. 7, Sept 8") == {5, 1, 7, 9, 8}
    assert numbers("The Marches 3, Mayor 4") == {3, 4}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Later the physicist Marie Curie went to Paris.", {"marie curie", "paris"}),
        ("Marie Curie left. She was ill.", {"marie curie"}),  # the next word is capitalized
        ("Marie left. They missed Marie.", {"marie"}),  # capitalized elsewhere within a sentence
        ("Painting made him rich.", set()),
        ("Painting Rome was hard, as painting is.", {"rome"}),  # elsewhere in lower case
        ("The Seine is long. In Rouen it bends. But Paris is first.", {"seine", "rouen", "paris"}),
        ("NASA and McDonald grew. IBM did not.", {"nasa", "mcdonald", "ibm"}),
        ("He met Leonardo da Vinci at the University of Oxford, of all places.",
         {"leonardo da vinci", "university of oxford"}),
        ("They saw Vincent Van Gogh and Anna.", {"vincent van gogh", "anna"}),
        ("Near Rome, Italy, lay France's President Macron.", {"rome", "italy", "france", "president macron"}),
        ("It was Dr. J. R. Smith of the U.S. Army.", {"dr j r smith", "us army"}),
        ("So said Jean-Paul O’Neill and Johnson & Johnson.", {"jean-paul o'neill", "johnson johnson"}),
        ("Then I left, and I'm glad that I’ve gone.", set()),
        ('She cried: "Nothing works," and left Oslo.', {"oslo"}),
        ("He flew a B52 and an iPad on Apollo 11.", {"b52", "ipad", "apollo"}),
        ("Das sah Émile in Zürich.", {"émile", "zürich"}),
        ("They like Cafe\u0301 Noir.", {"caf\u00e9 noir"}),
        ("A Mayor of London spoke; the mayor left.", {"mayor of london"}),
        ("Mayor of London he was, the mayor.", {"london"}),
        ("Rouen\n\nHeavy rain fell.\n\nRiver floods hit Rouen.", {"rouen"}),  # headings and paragraphs begin anew
        ("北京是中国的首都。", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_names(text, expected):
    assert names(text) == expected


SOURCE = "Marie Curie was born in Warsaw on 7 November 1867. She got two Nobel Prizes, in 1903 and 1911, in Sweden."


def test_kept_by_hand():
    assert names(SOURCE) == {"marie curie", "warsaw", "nobel prizes", "sweden"}
    assert numbers(SOURCE) == {7, 11, 1867, 2, 1903, 1911}
    other = "sweden gave marie curie's team the Nobel prizes of 1903 and 1911; Curie came on the seventh, from WARSAWA."
    assert kept(SOURCE, other) == {"names": 3 / 4, "numbers": 3 / 6}


def test_kept_whole_and_not_at_all():
    for text in (SOURCE, SOURCE.upper(), SOURCE + " " + SOURCE):
        assert kept(SOURCE, text)["names"] == 1.0
    assert kept(SOURCE, SOURCE) == kept(SOURCE, SOURCE + " Rouen has 9 bridges.") == {"names": 1.0, "numbers": 1.0}
    assert kept(SOURCE, "") == kept(SOURCE, "…") == {"names": 0.0, "numbers": 0.0}
    assert kept(SOURCE, "Curie Marie of the Prizes Nobel")["names"] == 0.0  # words in their order


def test_nothing_to_keep():
    for source in ("", "Rain fell.", "..."):
        assert all(math.isnan(share) for share in kept(source, SOURCE).values())
