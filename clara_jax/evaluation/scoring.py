"""The metrics of one prediction."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from clara_jax.evaluation.predictions import Prediction
from clara_jax.metrics.answers import OURS, RELEASED, cover_match, exact_match, token_f1
from clara_jax.metrics.cases import Case
from clara_jax.metrics.ranking import DEPTHS, ndcg_at, precision_at, recall_at, reciprocal_rank
from clara_jax.metrics.rouge import rouge
from clara_jax.text.facts import kept


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, as reports show it.

    Attributes:
      title: in a few words.
      unit: "share" (0 to 1), "tokens", "ms", "times", "bytes" or "".
      higher_is_better: None where neither is.
      kind: "mean" over the cases where the value is not NaN; "ratio" of two sums, which single cases do not have;
        "part", a value for ratios, which is not shown.
      parts: the names of a ratio's two metrics, numerator first.
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
    "names_kept": Metric("the document's names that are kept", "share", True),
    "numbers_kept": Metric("the document's numbers that are kept", "share", True),
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


def score(case: Case, prediction: Prediction) -> dict[str, float]:
    """Return the metrics of one prediction: all of `METRICS` but the ratios.

    An empty answer is an answer, which is right only where a reference has no word, either. One that was cut at the
    limit counts as it is. ROUGE and the shares that are kept compare a paraphrase with the document itself, as the
    paper (Table 16) and the released evaluation do. A changed document is followed where its new answer is in the
    prediction, and the original one is not.

    Returns:
      By name, in the order of `METRICS`. Undefined values are NaN: those of answers where nothing was generated or no
      reference is known, of ranks where nothing was ranked, no positive is known or there are fewer candidates than k,
      of facts where the document has none, of times that were not taken.

    Raises:
      ValueError: the prediction is of another case, or its order does not hold every candidate once.
    """
    if prediction.case != case.id:
        raise ValueError(f"a prediction of {prediction.case!r} for the case {case.id!r}")
    values = dict.fromkeys((name for name, metric in METRICS.items() if metric.kind != "ratio"), math.nan)
    if prediction.answer is not None:
        of_kind = {"question": _answer, "paraphrase": _paraphrase, "autoencode": _written_out}[case.kind]
        values |= _generated(prediction, prediction.answer)
        values |= of_kind(case, prediction, prediction.answer)
    if prediction.order is not None:
        values |= _ranking(case, prediction.order)
    if prediction.milliseconds is not None:
        values |= {f"{name}_ms": float(prediction.milliseconds.get(name, math.nan)) for name in ("first", "total")}
    return values


def _generated(prediction: Prediction, answer: str) -> dict[str, float]:
    return {
        "empty": float(not any(map(str.isalnum, answer))),
        "cut": float(prediction.ended == "length"),
        "answer_tokens": float(prediction.answer_tokens),
        "prompt_tokens": float(prediction.prompt_tokens),
        "text_tokens": float(prediction.text_tokens),
        "document_tokens": float(prediction.document_tokens),
        "documents": float(len(prediction.rates)),
        "document_rates": float(sum(prediction.rates)),
        "document_bytes": float(prediction.document_bytes),
    }


def _answer(case: Case, prediction: Prediction, answer: str) -> dict[str, float]:
    if not case.references:
        return {}
    values = {}
    if case.instead_of:
        new, original = (bool(cover_match(answer, golds)) for golds in (case.references, case.instead_of))
        values = {"followed": float(new and not original), "kept_original": float(original and not new)}
    return values | {
        f"{name}{suffix}": metric(answer, case.references, convention)
        for name, metric in (("exact_match", exact_match), ("f1", token_f1), ("cover_match", cover_match))
        for suffix, convention in (("", OURS), ("_released", RELEASED))
    }


def _written_out(case: Case, prediction: Prediction, answer: str) -> dict[str, float]:
    values = rouge(answer, case.documents)
    if prediction.window_tokens:
        assert prediction.right_tokens is not None  # both are counted together
        whole = prediction.right_tokens == prediction.window_tokens == prediction.answer_tokens
        values |= {"tokens_right": prediction.right_tokens / prediction.window_tokens, "windows_right": float(whole)}
    return values


def _paraphrase(case: Case, prediction: Prediction, answer: str) -> dict[str, float]:
    (document,) = case.documents
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
