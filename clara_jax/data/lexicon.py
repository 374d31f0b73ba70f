"""Lexicon of the invented world: the words of names, the values of facts, and the phrases that state and ask for them.

Names and values share no word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_ONSETS = "Ba De Fi Go Hu Ka Le Mi No Pu Ra Se Ti Vo Wu Za Bri Cla Dro Fre".split()
_MIDDLES = "ban del fim gor hul kam len mir nos pur ral set tiv von wun zal bril clam drof fren".split()
NAME_WORDS = len(_ONSETS) * len(_MIDDLES)

_TOWNS = (
    "Oslo Lima Accra Quito Perth Turin Kyoto Rouen Cairo Dakar Hanoi Izmir Lagos Malmo Natal Porto Quebec Riga Sofia "
    "Tunis Ulm Vaduz Warsaw York"
).split()
_TRADES = (
    "painter baker weaver sailor tailor miner doctor judge nurse potter singer dancer farmer banker barber cook "
    "diver guard jeweller lawyer mason pilot poet smith"
).split()
_INSTRUMENTS = (
    "flute harp lute viola piano drum horn cello banjo guitar fiddle bassoon trumpet tuba zither bagpipe mandolin "
    "clarinet trombone sitar gong bugle lyre recorder"
).split()
_COUNTRIES = (
    "Norway Peru Ghana Japan France Egypt Senegal Vietnam Turkey Nigeria Sweden Brazil Portugal Canada Latvia Bulgaria "
    "Tunisia Germany Poland England Chile Kenya India Spain"
).split()
_GOODS = (
    "cheese salt wool silk wine honey glass paper iron copper amber coal tea rice olives pearls timber marble leather "
    "pepper linen soap sugar cotton"
).split()
_GENRES = (
    "novel ballad poem farce song diary comedy tragedy sonnet hymn fable satire memoir sermon letter chant ballet saga "
    "psalm lament riddle thriller romance parody"
).split()
_MATERIALS = (
    "parchment vellum bronze clay slate ivory velvet canvas birch cedar granite tin wax papyrus bamboo jade brass "
    "silver gold lead chalk bone oak steel"
).split()
_YEARS = [str(1500 + 20 * i) for i in range(24)]
MOST_VALUES = len(_YEARS)


class _Fact(NamedTuple):
    """One attribute: its name, its values, clauses that state a value, questions for it; "{}" is an entity's name."""

    name: str
    values: Sequence[str]
    clauses: tuple[str, ...]
    questions: tuple[str, ...]


class _Kind(NamedTuple):
    """A kind of entity: the pronoun of later sentences, the endings of its two name words, its facts in order."""

    pronoun: str
    endings: tuple[str, str]
    facts: tuple[_Fact, ...]


PERSON, PLACE, WORK = range(3)
KINDS = (
    _Kind(
        "This person",
        ("a", "son"),
        (
            _Fact(
                "town",
                _TOWNS,
                ("was born in {}", "comes from {}", "grew up in {}"),
                ("Where was {} born?", "Where is {} from?", "In which town did {} grow up?"),
            ),
            _Fact(
                "trade",
                _TRADES,
                ("works as a {}", "is a {} by trade", "earns money as a {}"),
                ("What does {} do?", "Which trade has {}?", "As what does {} earn money?"),
            ),
            _Fact(
                "instrument",
                _INSTRUMENTS,
                ("plays the {}", "practises the {}", "owns a {}"),
                ("What does {} play?", "What does {} practise?", "Which instrument does {} own?"),
            ),
        ),
    ),
    _Kind(
        "This place",
        ("ville", "dale"),
        (
            _Fact(
                "country",
                _COUNTRIES,
                ("lies in {}", "is found in {}", "belongs to {}"),
                ("Where does {} lie?", "Where is {} found?", "To which country does {} belong?"),
            ),
            _Fact(
                "goods",
                _GOODS,
                ("sells {}", "is known for {}", "lives off {}"),
                ("What does {} sell?", "What made {} known?", "What does {} live off?"),
            ),
            _Fact(
                "year",
                _YEARS,
                ("was founded in {}", "dates from {}", "was first settled in {}"),
                ("When was {} founded?", "How old is {}?", "In which year was {} first settled?"),
            ),
        ),
    ),
    _Kind(
        "This work",
        ("ic", "song"),
        (
            _Fact(
                "genre",
                _GENRES,
                ("is a famous {}", "is read as a {}", "counts as a {}"),
                ("Which genre is {}?", "What is {} called?", "As what does {} count?"),
            ),
            _Fact(
                "material",
                _MATERIALS,
                ("is carried by {}", "is preserved on {}", "was copied onto {}"),
                ("What carries {}?", "What preserves {}?", "Onto which material was {} copied?"),
            ),
            _Fact(
                "year",
                _YEARS,
                ("appeared in {}", "was finished in {}", "was first seen in {}"),
                ("When did {} appear?", "When was {} finished?", "In which year was {} first seen?"),
            ),
        ),
    ),
)
MOST_ATTRIBUTES, MOST_PHRASINGS = len(KINDS[0].facts), len(KINDS[0].facts[0].clauses)

# Where there are complex questions, a work's document states its maker, and the question names the work alone.
MAKER = "maker"
MAKER_CLAUSES = ("is by {}", "was made by {}", "comes from the hand of {}")
MAKER_QUESTIONS = ("Who made {}?", "By whom is {}?", "From whose hand does {} come?")
MAKER_OF = "the maker of {}"


def word(kind: int, place: int, index: int) -> str:
    """Return a name word; the stride makes neighbours look different, and no two words are the same."""
    stem = index * 147 % NAME_WORDS
    return _ONSETS[stem % len(_ONSETS)] + _MIDDLES[stem // len(_ONSETS)] + KINDS[kind].endings[place]
