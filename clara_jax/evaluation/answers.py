"""How close an answer is to its references: exact match and token F1 on normalized text.

The definitions are SQuAD's (Rajpurkar et al. 2016), which HotpotQA, NQ and the paper use as well, with the punctuation
of all scripts instead of ASCII's alone.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, without punctuation and English articles, words parted by one space.

    Composed and decomposed accents (é) become the same characters first.
    """
    text = unicodedata.normalize("NFC", text.lower())
    text = "".join(character for character in text if not _is_punctuation(character))
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the references after `normalize`, else 0.0.

    Args:
      golds: at least one reference. Nothing matches nothing: an empty prediction, an empty reference.
    """
    return max(float(normalize(prediction) == normalize(gold)) for gold in golds)


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the prediction's words, 0 to 1, for the best of the references.

    Args:
      golds: at least one reference. Where prediction or reference has no word, F1 is 1.0 if both have none, else 0.0.
    """
    words = normalize(prediction).split()
    return max(_f1(words, normalize(gold).split()) for gold in golds)


def _f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * common / (len(prediction) + len(gold))


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
