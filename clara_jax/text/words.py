"""Words of any script, so that two texts can be compared whatever their language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from clara_jax.spelling import normal_form
from clara_jax.text.counting import UNSPACED

# Thai, Lao, Burmese and Khmer have no spaces between words either.
_UNSPACED = UNSPACED + "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Vowel signs of Hindi and others, which the module re does not count as parts of words.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c).startswith("M"))
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+")
_CHARACTER = re.compile(rf"[{_UNSPACED}]")


def written_words(text: str) -> list[str]:
    """Split a text into runs of letters and digits (NFKC), or into characters where a script has no spaces."""
    return _WORD.findall(normal_form("NFKC", text))


def words(text: str) -> list[str]:
    """Split a text as `written_words` does, with case folded."""
    return [word.casefold() for word in written_words(text)]


def in_a_row(found: Sequence[str]) -> str:
    """Join words into one string, so that a phrase is a substring only where its words follow each other."""
    return f" {' '.join(found)} "


def without_spaces(word: str) -> bool:
    """Return whether a word is a character of a script without spaces."""
    return _CHARACTER.fullmatch(word) is not None


def jaccard(a: set[str] | frozenset[str], b: set[str] | frozenset[str]) -> float:
    """Return the number of common members over that of all members; 0.0 where both sets are empty."""
    both = len(a & b)
    return both / (len(a) + len(b) - both or 1)
