"""Metrics: of one prediction, and of systems over the cases of a suite, with statistics in the same bootstrap draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction
from clara_jax.metrics.answers import OURS, RELEASED, cover_match, exact_match, token_f1
from clara_jax.metrics.bootstrap import Bootstrap, Interval
from clara_jax.metrics.cases import Case, Suite
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
# The main metric of a suite, by its kind.
MAIN = {"question": "f1", "paraphrase": "rougeL", "autoencode": "tokens_right"}
DIGITS = 6  # decimals of the numbers in reports
SHOWN = tuple(name for name, metric in METRICS.items() if metric.kind != "part")


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


class Aggregator:
    """Metrics by system and case, and their aggregates; n cases in the suite's order.

    Args:
      suite: of which all predictions are.
      predictions: of systems by name; cases without a prediction are NaN.
      draws: resamples of the suite's cases.

    Attributes:
      predictions: of systems by name, then of cases by id.

    Raises:
      ClaraError: a prediction is of no case of the suite, or does not go with its case.
    """

    def __init__(self, suite: Suite, predictions: Mapping[str, Sequence[Prediction]], draws: Bootstrap):
        self.suite, self.draws = suite, draws
        self.predictions = {system: {one.case: one for one in found} for system, found in predictions.items()}
        self._values = {system: self._score(system, found) for system, found in self.predictions.items()}

    def _score(self, system: str, predictions: Mapping[str, Prediction]) -> dict[str, np.ndarray]:
        cases = {case.id: (place, case) for place, case in enumerate(self.suite.cases)}
        names = [name for name, metric in METRICS.items() if metric.kind != "ratio"]
        values = np.full((len(names), len(cases)), math.nan)
        for prediction in predictions.values():
            if prediction.case not in cases:
                raise ClaraError(
                    f"{self.suite.name}: {system}: there is no case {prediction.case!r}; remove its prediction"
                )
            place, case = cases[prediction.case]
            try:
                values[:, place] = list(score(case, prediction).values())
            except ValueError as error:
                raise ClaraError(f"{self.suite.name}: {system}: {error}; remove the prediction") from None
        return dict(zip(names, values, strict=True))

    def value(self, system: str, metric: str, case: int) -> float:
        """Return a metric of one case, NaN where it is not known. Ratios have none."""
        return float(self._values[system][metric][case])

    def known(self, system: str, metric: str) -> np.ndarray:
        """Return which cases have a value of the metric, bool [n]."""
        values, per = self._of(system, metric)
        return ~np.isnan(values) & ~np.isnan(0.0 if per is None else per)

    def means(
        self, system: str, metrics: Sequence[str] = SHOWN, among: np.ndarray | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return {"mean", "low", "high", "n"} by metric, without metrics that no case has.

        Args:
          system: its name.
          metrics: those that are aggregated.
          among: bool [n], the cases that count; None for all.
        """
        found = {}
        for metric in metrics:
            values, per = self._of(system, metric, among)
            found[metric] = self.draws.mean(values, per)
        return _known(found)

    def differences(self, system: str, other: str, metrics: Sequence[str] = SHOWN) -> dict[str, dict[str, Any]]:
        """Return ``system`` minus ``other`` on the cases that both have, as `means` does and with "p"."""
        found = {}
        for metric in metrics:
            (a, per_a), (b, per_b) = self._of(system, metric), self._of(other, metric)
            found[metric] = self.draws.difference(a, b, (per_a, per_b))
        return _known(found)

    def normalised(self, system: str, none: str, text: str, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return where ``system`` lies between ``none`` (0) and ``text`` (1), on the cases that all three have.

        Values are those of `Bootstrap.normalised`, by metric, without metrics that no case has; a mean that is not
        defined is None.
        """
        found = {}
        for metric in metrics:
            values, least, most = (self._values[name][metric] for name in (system, none, text))
            found[metric] = self.draws.normalised(values, least, most)
        return {metric: plain(dataclasses.asdict(share)) for metric, share in found.items() if share.n}

    def followed_with(self, system: str, text: str) -> dict[str, Any] | None:
        """Return the share that ``system`` follows of the changed documents that ``text`` follows.

        None where ``text`` follows none.
        """
        followed, reference = (self._values[name]["followed"] for name in (system, text))
        share = self.draws.mean(np.where(reference > 0, followed, math.nan))
        return plain(dataclasses.asdict(share)) if share.n else None

    def _of(self, system: str, metric: str, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        scores, parts = self._values[system], METRICS[metric].parts
        values, per = (scores[metric], None) if parts is None else (scores[parts[0]], scores[parts[1]])
        return (values if among is None else np.where(among, values, math.nan)), per


def plain(value: Any) -> Any:
    """Return a value as JSON may have it: floats rounded, None for those that are not finite, containers likewise."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def _known(found: Mapping[str, Interval]) -> dict[str, dict[str, Any]]:
    return {
        metric: plain(dataclasses.asdict(interval))
        for metric, interval in found.items()
        if interval.n and not math.isnan(interval.mean)
    }
