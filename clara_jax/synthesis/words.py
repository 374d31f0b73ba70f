"""Words of any script, so that two texts can be compared whatever their language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from clara_jax.data.corpus.counting import UNSPACED
from clara_jax.spelling import normal_form

# Thai, Lao, Burmese and Khmer have no spaces between words either.
_UNSPACED = UNSPACED + "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Vowel signs of Hindi and others: for the module re they are no part of a word.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c).startswith("M"))
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+")
_CHARACTER = re.compile(rf"[{_UNSPACED}]")


def written_words(text: str) -> list[str]:
    """Runs of letters and digits, compatible characters unified (NFKC); each character where a script has no spaces."""
    return _WORD.findall(normal_form("NFKC", text))


def words(text: str) -> list[str]:
    """As `written_words`, without case."""
    return [word.casefold() for word in written_words(text)]


def in_a_row(found: Sequence[str]) -> str:
    """Words as one string, in which another's words stand only where they follow each other."""
    return f" {' '.join(found)} "


def without_spaces(word: str) -> bool:
    """It is a character of a script without spaces."""
    return _CHARACTER.fullmatch(word) is not None


def jaccard(a: set[str] | frozenset[str], b: set[str] | frozenset[str]) -> float:
    """Members in both sets over members in either; 0.0 where both are empty."""
    both = len(a & b)
    return both / (len(a) + len(b) - both or 1)
