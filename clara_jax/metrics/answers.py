"""Metrics of an answer against its references: exact match, cover match and token F1 on normalized text.

The definitions are SQuAD's (Rajpurkar et al. 2016), which HotpotQA, NQ and the paper use as well; what published
scripts do otherwise is a `Convention`. Words are compared as they are written in all of them: "twelve" is not "12".
"""

from __future__ import annotations

import dataclasses
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from clara_jax.spelling import normal_form

ARTICLES = re.compile(r"\b(a|an|the)\b")
# Variants of ASCII's -, /, :, *, |, ~ that no Unicode normal form maps to them.
_LIKE_ASCII = frozenset("\u2212\u2044\u2215\u2236\u2217\u2223\u223c")
_INVISIBLE = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10)))
) | frozenset(map(chr, range(0xE0100, 0xE01F0)))
# Thai, Lao, Burmese, Khmer, kana and Chinese characters are written without spaces between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
_UNSPACED += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_MARKS = "".join(c for c in map(chr, range(0xE00, 0x3100)) if unicodedata.category(c).startswith("M"))
# A character of these scripts with its marks, or a run of others without white space.
UNBROKEN = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}]+")
_DECISIONS = (["yes"], ["no"], ["noanswer"])
_BOOLEANS = {"True": "yes", "False": "no"}


@dataclasses.dataclass(frozen=True)
class Convention:
    """The rules by which an answer is normalized and compared with its references.

    Attributes:
      ascii: drop only ASCII punctuation, keep accents, and split words at white space, as the official scripts do.
        Otherwise normalize text of any script as English text is: see `normalize` and `words`.
      nothing: F1 of an answer and a reference that both have no word.
      decisions: F1 is 0 where answer or reference is "yes", "no" or "noanswer" and the other one is not the same.
      booleans: exactly "True" and "False" stand for "yes" and "no".
      in_a_row: an answer covers a reference where it contains the reference's words consecutively; otherwise wherever
        they are, and however often.
      first: only the first reference counts; otherwise the best of all.
    """

    ascii: bool = True
    nothing: float = 0.0
    decisions: bool = False
    booleans: bool = False
    in_a_row: bool = False
    first: bool = False


OURS = Convention(ascii=False, nothing=1.0, in_a_row=True)
SQUAD = Convention()  # evaluate-v1.1.py
HOTPOTQA = Convention(decisions=True)  # hotpot_evaluate_v1.py
RELEASED = Convention(decisions=True, booleans=True, first=True)  # evaluation/evaluate.py of the released CLaRa code


def normalize(text: str, convention: Convention = OURS) -> str:
    """Return the text in lower case, without punctuation and English articles, with single spaces between words.

    Unless the convention is ASCII's, variants of a character become one: full width, ligatures, composed and decomposed
    accents (NFKC), digits of all scripts, small letters with the same capital. Currencies are dropped as "$" is,
    Unicode's minus and slashes as ASCII's are, and invisible marks (zero width, direction, variation) altogether. On
    ASCII text the two conventions agree.
    """
    if convention.booleans:
        text = _BOOLEANS.get(text, text)
    text = text.lower()
    if convention.ascii:
        dropped = _is_ascii_punctuation
    else:
        # Dropped first, since NFKC would turn standalone accents (´) into a space with a mark.
        text = "".join(character for character in text if unicodedata.category(character) != "Sk")
        # Letters that have a capital in common (ß and ss, σ and ς, i and the dotted İ), digits of all scripts.
        text = normal_form("NFKC", text).casefold().replace("i\u0307", "i")
        text, dropped = "".join(str(unicodedata.decimal(c, c)) for c in text), _is_not_read
    text = "".join(character for character in text if not dropped(character))
    return " ".join(ARTICLES.sub(" ", text).split())


def words(text: str, convention: Convention = OURS) -> list[str]:
    """Return the words of a text after `normalize`.

    Words are split at white space. Unless the convention is ASCII's, each character with its marks is a word in scripts
    that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese).
    """
    found = normalize(text, convention)
    return found.split() if convention.ascii else UNBROKEN.findall(found)


def exact_match(prediction: str, golds: Sequence[str], convention: Convention = OURS) -> float:
    """Return 1.0 if the prediction equals one of the references after `normalize`, else 0.0.

    Args:
      prediction: the answer.
      golds: at least one reference. An empty prediction matches an empty reference.
      convention: how both are normalized and compared.
    """
    found = words(prediction, convention)
    return max(float(found == gold) for gold in _wanted(golds, convention))


def cover_match(prediction: str, golds: Sequence[str], convention: Convention = OURS) -> float:
    """Return 1.0 if the prediction contains the words of one of the references after `normalize`, else 0.0 (cover-EM).

    Args:
      prediction: the answer.
      golds: at least one reference; one without a word is in every prediction.
      convention: how both are normalized and compared.
    """
    found = words(prediction, convention)
    return max(float(_covers(found, gold, convention)) for gold in _wanted(golds, convention))


def token_f1(prediction: str, golds: Sequence[str], convention: Convention = OURS) -> float:
    """Return the F1 of the prediction's words, 0 to 1, for the best of the references.

    Args:
      prediction: the answer.
      golds: at least one reference. Where only one of prediction and reference has a word, F1 is 0.0.
      convention: how both are normalized and compared.
    """
    found = words(prediction, convention)
    return max(_f1(found, gold, convention) for gold in _wanted(golds, convention))


def _wanted(golds: Sequence[str], convention: Convention) -> list[list[str]]:
    return [words(gold, convention) for gold in (golds[:1] if convention.first else golds)]


def _covers(words: list[str], gold: list[str], convention: Convention) -> bool:
    if not convention.in_a_row:
        return set(gold) <= set(words)
    return any(words[start : start + len(gold)] == gold for start in range(len(words) - len(gold) + 1))


def _f1(found: list[str], wanted: list[str], convention: Convention) -> float:
    if convention.decisions and found != wanted and (found in _DECISIONS or wanted in _DECISIONS):
        return 0.0
    if not found and not wanted:
        return convention.nothing
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def _is_ascii_punctuation(character: str) -> bool:
    return character in string.punctuation


def _is_not_read(character: str) -> bool:
    if character in string.punctuation or character in _LIKE_ASCII or character in _INVISIBLE:
        return True
    kind = unicodedata.category(character)
    # Punctuation, currencies, accents alone; formats, and controls that separate no words.
    return kind[0] == "P" or kind in ("Sc", "Sk", "Cf") or (kind == "Cc" and not character.isspace())
