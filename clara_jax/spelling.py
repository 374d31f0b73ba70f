"""Unicode's normal forms, whatever the text, in time linear in its length."""

from __future__ import annotations

import unicodedata
from typing import Literal

import regex

MOST_MARKS = 30  # on one character, as in Unicode's stream-safe format; no writing has as many
# All that the normal forms put in order: marks, and the half-width voicing marks of kana, which become some.
_TOO_MANY = regex.compile(rf"([\p{{M}}\uff9e\uff9f]{{{MOST_MARKS}}})[\p{{M}}\uff9e\uff9f]+")


def normal_form(form: Literal["NFC", "NFKC", "NFKD"], text: str) -> str:
    """Return a text in a normal form; of more marks on one character than any writing has, the first are kept.

    Python puts the marks of a character in order in time with the square of their number: a megabyte of them would
    take minutes.
    """
    if text.isascii():
        return text
    # One mark may stand for three: of what they become the first are kept, too.
    return _few_marks(unicodedata.normalize(form, _few_marks(text)))


def _few_marks(text: str) -> str:
    return _TOO_MANY.sub(r"\1", text)
