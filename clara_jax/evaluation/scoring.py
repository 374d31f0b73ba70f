"""One outcome in numbers, and what these numbers are called."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from clara_jax.data.facts import kept
from clara_jax.evaluation.answers import OURS, RELEASED, cover_match, exact_match, token_f1
from clara_jax.evaluation.cases import Case
from clara_jax.evaluation.outcomes import Outcome
from clara_jax.evaluation.overlap import rouge
from clara_jax.evaluation.ranking import DEPTHS, ndcg_at, precision_at, recall_at, reciprocal_rank


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a number is shown.

    Attributes:
      title: in a few words.
      unit: "share" (0 to 1), "tokens", "ms", "times", "bytes" or "".
      higher_is_better: None where neither is.
      kind: "mean" over the cases where the number is not NaN; "ratio" of two sums, which single cases do not have;
        "part", a number that is there for ratios alone.
      parts: the names of the two numbers, numerator first, whose sums make the ratio.
    """

    title: str
    unit: str
    higher_is_better: bool | None
    kind: Literal["mean", "ratio", "part"] = "mean"
    parts: tuple[str, str] | None = None


METRICS = {
    "exact_match": Metric("exact match", "share", True),
    "f1": Metric("token F1", "share", True),
    "cover_match": Metric("cover match: a reference is in the answer", "share", True),
    "exact_match_released": Metric("exact match, as the released evaluation", "share", True),
    "f1_released": Metric("token F1, as the released evaluation", "share", True),
    "cover_match_released": Metric("cover match, as the released evaluation", "share", True),
    "followed": Metric("changed document followed: its answer, not the one before", "share", True),
    "kept_original": Metric("changed document not followed: the answer before it was changed", "share", False),
    "tokens_right": Metric("tokens written out right", "share", True),
    "windows_right": Metric("windows written out right", "share", True),
    "rouge1": Metric("ROUGE-1 F with the document", "share", True),
    "rougeL": Metric("ROUGE-L F with the document", "share", True),
    "rouge1_references": Metric("ROUGE-1 F with the best reference", "share", True),
    "rougeL_references": Metric("ROUGE-L F with the best reference", "share", True),
    "names_kept": Metric("the document's names that are told", "share", True),
    "numbers_kept": Metric("the document's numbers that are told", "share", True),
    **{f"recall@{k}": Metric(f"Recall@{k}", "share", True) for k in DEPTHS},
    **{f"precision@{k}": Metric(f"Precision@{k}", "share", True) for k in DEPTHS},
    "mrr": Metric("mean reciprocal rank", "share", True),
    "ndcg@5": Metric("nDCG@5", "share", True),
    "empty": Metric("answers without a word", "share", False),
    "cut": Metric("answers cut at the limit", "share", False),
    "answer_tokens": Metric("tokens of the answer", "tokens", None),
    "prompt_tokens": Metric("tokens of the prompt", "tokens", False),
    "text_tokens": Metric("tokens of the documents as text", "tokens", None),
    "document_tokens": Metric("tokens of the documents in the prompt", "tokens", False),
    "documents": Metric("documents in the prompt", "", None, "part"),
    "document_rates": Metric("rates of the documents, together", "times", None, "part"),
    "document_bytes": Metric("bytes of the documents, together", "bytes", None, "part"),
    "effective_rate": Metric("effective rate", "times", True, "ratio", ("document_rates", "documents")),
    "compress_rate": Metric("compress rate of all tokens", "times", True, "ratio", ("text_tokens", "document_tokens")),
    "passage_bytes": Metric("bytes a passage", "bytes", False, "ratio", ("document_bytes", "documents")),
    "first_ms": Metric("time to the first token", "ms", False),
    "total_ms": Metric("time in all", "ms", False),
}


def score(case: Case, outcome: Outcome) -> dict[str, float]:
    """The numbers of one outcome: all of `METRICS` but the ratios.

    An empty answer is an answer, which is right only where a reference has no word, either. One that was cut at the
    limit counts with what is left of it. ROUGE and what is kept compare with the told document itself, as the paper
    (Table 16) and the released evaluation do. A changed document is followed where its answer is in what was said, and
    the one before is not.

    Returns:
      By name, in the order of `METRICS`. NaN is what is not defined: answers where nothing was generated or no
      reference is known, ranks where nothing was ranked, no positive is known or there are fewer candidates than k,
      facts that the document has not got, times that were not taken.

    Raises:
      ValueError: the outcome is of another case, or its order does not hold every candidate once.
    """
    if outcome.case != case.id:
        raise ValueError(f"an outcome of {outcome.case!r} for the case {case.id!r}")
    values = dict.fromkeys((name for name, metric in METRICS.items() if metric.kind != "ratio"), math.nan)
    if outcome.answer is not None:
        values |= _generated(outcome)
        values |= {"question": _answer, "paraphrase": _paraphrase, "autoencode": _written_out}[case.kind](case, outcome)
    if outcome.order is not None:
        values |= _ranking(case, outcome.order)
    if outcome.milliseconds is not None:
        values |= {f"{name}_ms": float(outcome.milliseconds.get(name, math.nan)) for name in ("first", "total")}
    return values


def _generated(outcome: Outcome) -> dict[str, float]:
    return {
        "empty": float(not any(map(str.isalnum, outcome.answer))),
        "cut": float(outcome.ended == "length"),
        "answer_tokens": float(outcome.answer_tokens),
        "prompt_tokens": float(outcome.prompt_tokens),
        "text_tokens": float(outcome.text_tokens),
        "document_tokens": float(outcome.document_tokens),
        "documents": float(len(outcome.rates)),
        "document_rates": float(sum(outcome.rates)),
        "document_bytes": float(outcome.document_bytes),
    }


def _answer(case: Case, outcome: Outcome) -> dict[str, float]:
    if not case.references:
        return {}
    answer = outcome.answer
    values = {}
    if case.instead_of:
        says, said_before = (bool(cover_match(answer, own)) for own in (case.references, case.instead_of))
        values = {"followed": float(says and not said_before), "kept_original": float(said_before and not says)}
    return values | {
        f"{name}{suffix}": metric(answer, case.references, convention)
        for name, metric in (("exact_match", exact_match), ("f1", token_f1), ("cover_match", cover_match))
        for suffix, convention in (("", OURS), ("_released", RELEASED))
    }


def _written_out(case: Case, outcome: Outcome) -> dict[str, float]:
    values = rouge(outcome.answer, case.documents)
    if outcome.window_tokens:
        whole = outcome.right_tokens == outcome.window_tokens == outcome.answer_tokens
        values |= {"tokens_right": outcome.right_tokens / outcome.window_tokens, "windows_right": float(whole)}
    return values


def _paraphrase(case: Case, outcome: Outcome) -> dict[str, float]:
    (document,), answer = case.documents, outcome.answer
    values = rouge(answer, [document])
    values |= {f"{name}_kept": share for name, share in kept(document, answer).items()}
    if case.references:
        values |= {f"{name}_references": value for name, value in rouge(answer, case.references).items()}
    return values


def _ranking(case: Case, order: tuple[int, ...]) -> dict[str, float]:
    count = len(case.documents)
    if sorted(order) != list(range(count)):
        raise ValueError(f"the order {order} of the case {case.id!r} does not hold each of {count} candidates once")
    ranked = -np.argsort(order)[None], np.ones((1, count), bool), np.isin(np.arange(count), case.positives)[None]
    metrics = {f"recall@{k}": recall_at(*ranked, k) for k in DEPTHS if k <= count}
    metrics |= {f"precision@{k}": precision_at(*ranked, k) for k in DEPTHS if k <= count}
    metrics |= {"mrr": reciprocal_rank(*ranked)}
    metrics |= {"ndcg@5": ndcg_at(*ranked, 5)} if count >= 5 else {}
    return {name: float(value[0]) for name, value in metrics.items()}
