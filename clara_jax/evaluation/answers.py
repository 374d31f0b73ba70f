"""How close an answer is to its references: exact match, cover match and token F1 on normalized text.

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

ARTICLES = re.compile(r"\b(a|an|the)\b")
_DECISIONS = ("yes", "no", "noanswer")
_BOOLEANS = {"True": "yes", "False": "no"}


@dataclasses.dataclass(frozen=True)
class Convention:
    """How answers are read.

    Attributes:
      ascii: only ASCII's punctuation is dropped, and accents stay as they are written.
      nothing: F1 of an answer and a reference that both have no word.
      decisions: F1 is 0 where answer or reference is "yes", "no" or "noanswer" and the other one is not the same.
      booleans: exactly "True" and "False" stand for "yes" and "no".
      in_a_row: an answer covers a reference where it has the reference's words one after the other; else wherever they
        are, and however often.
      first: only the first reference counts; else the best of all.
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
    """Lower case, without punctuation and English articles, words parted by one space.

    Composed and decomposed accents (é) become the same characters first, unless the convention is ASCII's.
    """
    if convention.booleans:
        text = _BOOLEANS.get(text, text)
    text = text.lower()
    if convention.ascii:
        dropped = _is_ascii_punctuation
    else:
        text, dropped = unicodedata.normalize("NFC", text), _is_punctuation
    text = "".join(character for character in text if not dropped(character))
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, golds: Sequence[str], convention: Convention = OURS) -> float:
    """1.0 if the prediction equals one of the references after `normalize`, else 0.0.

    Args:
      golds: at least one reference. Nothing matches nothing: an empty prediction, an empty reference.
    """
    found = normalize(prediction, convention)
    return max(float(found == gold) for gold in _normalized(golds, convention))


def cover_match(prediction: str, golds: Sequence[str], convention: Convention = OURS) -> float:
    """Cover-EM: 1.0 if one of the references is in the prediction after `normalize`, word by word, else 0.0.

    Args:
      golds: at least one reference; one without a word is in every prediction.
    """
    words = normalize(prediction, convention).split()
    return max(float(_covers(words, gold.split(), convention)) for gold in _normalized(golds, convention))


def token_f1(prediction: str, golds: Sequence[str], convention: Convention = OURS) -> float:
    """Harmonic mean of precision and recall of the prediction's words, 0 to 1, for the best of the references.

    Args:
      golds: at least one reference. Where only one of prediction and reference has a word, F1 is 0.0.
    """
    found = normalize(prediction, convention)
    return max(_f1(found, gold, convention) for gold in _normalized(golds, convention))


def _normalized(golds: Sequence[str], convention: Convention) -> list[str]:
    return [normalize(gold, convention) for gold in (golds[:1] if convention.first else golds)]


def _covers(words: list[str], gold: list[str], convention: Convention) -> bool:
    if not convention.in_a_row:
        return set(gold) <= set(words)
    return any(words[start : start + len(gold)] == gold for start in range(len(words) - len(gold) + 1))


def _f1(prediction: str, gold: str, convention: Convention) -> float:
    if convention.decisions and prediction != gold and (prediction in _DECISIONS or gold in _DECISIONS):
        return 0.0
    words, wanted = prediction.split(), gold.split()
    if not words and not wanted:
        return convention.nothing
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def _is_ascii_punctuation(character: str) -> bool:
    return character in string.punctuation


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
