"""ROUGE-1 and ROUGE-L of a text against references (Lin 2004)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from clara_jax.metrics.answers import UNBROKEN
from clara_jax.spelling import normal_form

_WORD = re.compile(r"[^\W_]+")


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """Return F of ROUGE-1 (words) and of ROUGE-L (longest common subsequence), 0 to 1, each for its best reference.

    Computed by the package rouge-score. Words are runs of letters and digits in lower case, each character in scripts
    without spaces (`clara_jax.metrics.answers.words`), *not stemmed*, as in the released evaluation. On ASCII text
    values are those of the package's default tokenizer, whose words are the runs of ASCII letters and digits.

    Args:
      text: the answer.
      references: at least one. Where text or reference has no word, both values are 0.0, also where both have none.

    Returns:
      {"rouge1": F, "rougeL": F}.
    """
    scores = _scorer().score_multi(references, text)
    return {name: float(score.fmeasure) for name, score in scores.items()}


@functools.cache
def _scorer():
    from rouge_score import rouge_scorer  # takes seconds to import, and only paraphrases need it

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], tokenizer=_Words())


class _Words:
    """A tokenizer with the interface of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        runs = _WORD.findall(normal_form("NFKC", text.lower()).lower())
        return [word for run in runs for word in UNBROKEN.findall(run)]
