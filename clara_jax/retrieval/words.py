"""Tokenization of texts in any script for full-text search, the same for the index and for questions.

A text is normalized (NFKC, no case, no accents), then split. Scripts that write blanks are split where Unicode's
letters, marks and digits end. The others (Han, kana, Thai, ...), and Korean, whose particles stick to the words, are
indexed by single characters and by pairs of neighbours, and searched by pairs; a question of one character by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex

from clara_jax.spelling import normal_form

LONGEST = 128  # characters of a word; a longer one is truncated
_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\p{Balinese}\p{Javanese}\p{Nushu}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Tangut}ー々〆"
)
_TOKENS = regex.compile(
    rf"(?P<run>[{_UNSPACED}][{_UNSPACED}\p{{M}}]*)|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+|\p{{So}}", regex.V1
)
# Accents, vowel points of Hebrew and Arabic, the Arabic tatweel, variation selectors, and invisible characters except
# the zero-width space, which ends a word.
_DROPPED = regex.compile(
    r"[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
    r"\ufe20-\ufe2f]|\p{Variation_Selector}|[\p{Cf}--\u200b]",
    regex.V1,
)
_LETTERS = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ŧ": "t", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i", "ٱ": "ا"}
)


def indexed(text: str) -> str:
    """Return the words of a text for the index, with blanks between them."""
    words: list[str] = []
    for word, characters in _cut(text):
        words += [word] if characters is None else [*characters, *_pairs(characters)]
    return " ".join(words)


def asked(text: str) -> str:
    """Return the words of a question for the search, with blanks between them; empty where it has none."""
    words: list[str] = []
    for word, characters in _cut(text):
        words += [word] if characters is None else _pairs(characters) or characters
    return " ".join(words)


def _cut(text: str) -> Iterator[tuple[str, list[str] | None]]:
    """Split a text into words, each with its characters where it is of a script without blanks."""
    for found in _TOKENS.finditer(_plain(text)):
        word = found[0]
        yield word[:LONGEST], regex.findall(r"\X", word) if found["run"] else None


def _pairs(characters: list[str]) -> list[str]:
    return [a + b for a, b in zip(characters, characters[1:], strict=False)]


def _plain(text: str) -> str:
    spelled = normal_form("NFKD", text).casefold()
    return normal_form("NFKC", _DROPPED.sub("", spelled)).translate(_LETTERS)
