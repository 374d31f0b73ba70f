"""Unicode's normal forms of any text, in time linear in its length."""

from __future__ import annotations

import unicodedata
from typing import Literal

import regex

MOST_MARKS = 30  # on one character, as in Unicode's stream-safe format; no writing has as many
# All that the normal forms sort: marks, and the half-width voicing marks of kana, which become marks.
_TOO_MANY = regex.compile(rf"([\p{{M}}\uff9e\uff9f]{{{MOST_MARKS}}})[\p{{M}}\uff9e\uff9f]+")


def normal_form(form: Literal["NFC", "NFKC", "NFKD"], text: str) -> str:
    """Return a text in a normal form; of the marks on one character only the first `MOST_MARKS` are kept.

    Python sorts the marks of a character in quadratic time: a megabyte of them would take minutes.
    """
    if text.isascii():
        return text
    # One mark may decompose into three: the limit is applied to the result, too.
    return _few_marks(unicodedata.normalize(form, _few_marks(text)))


def _few_marks(text: str) -> str:
    return _TOO_MANY.sub(r"\1", text)
