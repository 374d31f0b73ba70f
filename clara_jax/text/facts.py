"""Names and numbers of a text that its paraphrase keeps.

The paper's Table 16 counts entities that spaCy's model finds in both texts. What is a fact here is a rule instead, for
English, which needs no model and gives the same everywhere:

*Numbers* are digits, grouped or not (1,000 = 1000; 2.50 = 2.5), without their unit ($5, 5%, 5th and 5 are one
number), and numbers in words (twelve = 12, two hundred and five = 205, twenty-first = 21, 2.5 million = 2500000).
A number is its value, without sign. Digits within a word that begins with a letter belong to a name (B52). "One",
"first" and "second" often count nothing and need not be kept, but they stand for a 1 or a 2. A year in words (nineteen
ninety) is two numbers.

*Dates* are numbers: day, month and year. The name of a month, capitalized and beside digits, stands for 1 to 12.

*Names* are runs of capitalized words within a sentence, also over "of" and the particles of surnames (Leonardo da
Vinci); a genitive ends one. What begins a sentence or a quotation, or follows a colon, is capitalized anyway. Such a
word is part of a name where it has another capital (NASA), where it is also capitalized within a sentence, or where the
next word is capitalized; but in the last two cases not where it is a common function word, or is elsewhere in the text
in lower case.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from clara_jax.spelling import normal_form
from clara_jax.text.sentences import paragraph_ends, sentence_ends

_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen".split(),
    "twenty thirty forty fifty sixty seventy eighty ninety".split(),
)
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
    " fifteenth sixteenth seventeenth eighteenth nineteenth".split(),
    "twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth".split(),
)
_BELOW_HUNDRED = {
    word: value
    for small, tens in (_CARDINALS, _ORDINALS)
    for value, word in (*enumerate(small), *zip(range(20, 100, 10), tens, strict=True))
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_SCALES |= {f"{word}th": scale for word, scale in _SCALES.items()}
_ENDS_NUMBER = {*_ORDINALS[0], *_ORDINALS[1], *(word for word in _SCALES if word.endswith("th"))}
_DOUBTFUL = (["one"], ["first"], ["second"])

_MONTHS: Sequence[str] = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH = (
    r"(?P<month>Jan(uary)?|Feb(ruary)?|Mar(ch)?|Apr(il)?|May|June?|July?|Aug(ust)?|Sept?(ember)?|Oct(ober)?"
    r"|Nov(ember)?|Dec(ember)?)\b"
)
_DATES = (
    re.compile(rf"(?P<before>\d(st|nd|rd|th)?(\s+of)?\s+){_MONTH}"),
    re.compile(rf"(?P<before>\b){_MONTH}(?=\.?,?\s+\d)"),
)
# Digits, in groups of three (comma, no-break or thin space) or not, with decimals; or a word.
_TOKEN = re.compile(r"(?<!\w)(\d{1,3}([,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(\.\d+)?|[^\W_]+")
_GROUPING = re.compile(r"[,\s]")
_WITHIN_NUMBER = re.compile(r"\s+|-")

_WORD = re.compile(r"[^\W_]+([.'-][^\W_]+)*")
_GENITIVE = re.compile(r"'s$", re.IGNORECASE)
_WITHIN_NAME = re.compile(r"\.?\s+(&\s+)?")
_OPENS = re.compile(r"(^|[\"“„«‘:])\W*$")
_PARTICLES = frozenset("of de da del della di du la le van von der den bin ibn al".split())
_FUNCTION_WORDS = frozenset(_BELOW_HUNDRED) | frozenset(
    """a about above across after again against all almost already also although always among an and another any anyone
    are around as at be because been before behind being below beneath beside between both but by can could despite did
    do does during each either even eventually ever every everyone few finally for former from further had has have he
    hence her here his how however if in indeed initially inside instead into is it its itself just last late later like
    many may meanwhile might more moreover most much must my near neither never nevertheless next no nobody none nor not
    nothing now of off often on once only onto or other others our out over own per perhaps previously rather same
    several shall she should since so some sometimes soon still such than that the their them then there therefore these
    they this those though through throughout thus to today together tomorrow too toward towards under unless unlike
    until up upon very was we well were what when where whereas whether which while who whose why will with within
    without would yes yesterday yet you your""".split()
)


def kept(source: str, paraphrase: str) -> dict[str, float]:
    """Return the shares of a text's names and numbers that its paraphrase keeps.

    A name is kept where its words follow each other, capitalized or not; a number, where one of equal value is, in
    digits or in words. Each counts once, however often it occurs.

    Returns:
      {"names": 0 to 1, "numbers": 0 to 1}, NaN where the source has none (which the released evaluation counts as 1).
    """
    named, counted = names(source), numbers(source)
    words = f" {' '.join(_plain(match[0]) for match in _WORD.finditer(_unified(paraphrase)))} "
    return {
        "names": _share(sum(f" {name} " in words for name in named), len(named)),
        "numbers": _share(len(counted & numbers(paraphrase, doubtful=True)), len(counted)),
    }


def numbers(text: str, doubtful: bool = False) -> set[Decimal]:
    """Return the values of a text's numbers and dates; the module's docstring has the rules.

    Args:
      text: English.
      doubtful: with "one", "first" and "second" where they stand alone.
    """
    phrases = _phrases(_with_months_as_digits(_unified(text)))
    return {phrase.value for phrase in phrases if doubtful or phrase.words not in _DOUBTFUL}


def names(text: str) -> set[str]:
    """Return a text's names in lower case, their words separated by one space; the module's docstring has the rules."""
    text = _with_months_as_digits(_unified(text))
    runs = [run for sentence in _sentences(text) for run in _runs(sentence)]
    within = {_plain(word) for begins, words in runs for word in words[begins:]}
    common = {_plain(match[0]) for match in _WORD.finditer(text) if match[0][0].islower()} | _FUNCTION_WORDS
    found = set()
    for begins, words in runs:
        first = _plain(words[0])
        named = words[0][1:] != words[0][1:].lower() or (first not in common and (words[1:] or first in within))
        rest = words[1:] if begins and not named else words
        found.add(" ".join(map(_plain, itertools.dropwhile(_PARTICLES.__contains__, rest))))
    return found - {""}


def _share(part: int, total: int) -> float:
    return part / total if total else math.nan


def _unified(text: str) -> str:
    """Return the text with accents composed, one kind of apostrophe and one of hyphen."""
    return normal_form("NFC", text).translate({0x2019: "'", 0x2010: "-", 0x2011: "-"})


def _with_months_as_digits(text: str) -> str:
    for date in _DATES:
        text = date.sub(lambda match: f"{match['before']}{1 + _MONTHS.index(match['month'][:3])}", text)
    return text


def _phrases(text: str) -> Iterator[_Phrase]:
    phrase, end = None, 0
    for match in _TOKEN.finditer(text):
        word = match[0].lower()
        if phrase and not (_WITHIN_NUMBER.fullmatch(text, end, match.start()) and phrase.takes(word)):
            yield phrase
            phrase = None
        if phrase is None and (match[1] or word.isdecimal() or word in _BELOW_HUNDRED or word in _SCALES):
            phrase = _Phrase(word)
        end = match.end()
    if phrase:
        yield phrase


class _Phrase:
    """A number that is read word by word.

    Attributes:
      words: in lower case.
    """

    def __init__(self, word: str):
        self.words = [word]
        self._complete = 0  # thousands, millions, billions
        self._scale = math.inf  # the last of them
        self._group: int | Decimal = 0  # what may be multiplied yet
        self._room = 100  # only a number below this may be added
        if word in _SCALES:
            self._group = 1  # a hundred
            self._multiply(_SCALES[word])
        elif word in _BELOW_HUNDRED:
            self._add(_BELOW_HUNDRED[word])
        else:
            self._group, self._room = Decimal(_GROUPING.sub("", word)), 0

    @property
    def value(self) -> Decimal:
        """The number read so far."""
        return Decimal(self._complete + self._group)

    def takes(self, word: str) -> bool:
        """Take the next word if it belongs to this number; return whether it does."""
        if self.words[-1] in _ENDS_NUMBER:
            taken = False
        elif word in _BELOW_HUNDRED:
            taken = self._add(_BELOW_HUNDRED[word])
        elif word in _SCALES:
            taken = self._multiply(_SCALES[word])
        else:
            taken = word == "and" and self._room >= 100
        if taken:
            self.words.append(word)
        return taken

    def _add(self, value: int) -> bool:
        if value >= self._room:
            return False
        self._group += value
        self._room = 10 if value >= 20 and value % 10 == 0 else 0
        return True

    def _multiply(self, scale: int) -> bool:
        if scale == 100 and 0 < self._group < 100:
            self._group *= scale
        elif 1000 <= scale < self._scale and self._group:
            self._complete += self._group * scale
            self._group, self._scale = 0, scale
        else:
            return False
        self._room = scale
        return True


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in paragraph_ends(text):
        for begin, stop in itertools.pairwise([0, *sentence_ends(text[start:end])]):
            yield text[start + begin : start + stop]
        start = end


def _runs(sentence: str) -> list[tuple[bool, list[str]]]:
    """Return runs of capitalized words with particles between them; none has "I".

    Each comes with whether its first word would be capitalized anyway, as at the beginning of a sentence.
    """
    runs, end = [], 0
    goes_on, particles = False, []
    for match in _WORD.finditer(sentence):
        word = match[0]
        goes_on = goes_on and _WITHIN_NAME.fullmatch(sentence, end, match.start()) is not None
        if word[0].isalpha() and word != word.lower() and word.split("'")[0] != "I":
            if goes_on:
                runs[-1][1].extend([*particles, word])
            else:
                runs.append((_OPENS.search(sentence[: match.start()]) is not None, [word]))
            goes_on, particles = not _GENITIVE.search(word), []
        elif goes_on and word in _PARTICLES:
            particles.append(word)
        else:
            goes_on = False
        end = match.end()
    return runs


def _plain(word: str) -> str:
    return _GENITIVE.sub("", word).replace(".", "").lower()
