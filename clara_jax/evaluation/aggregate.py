"""Metrics of every system on every case of a suite, and their statistics in the same bootstrap draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction
from clara_jax.evaluation.scoring import METRICS, score
from clara_jax.metrics.bootstrap import Bootstrap, Interval
from clara_jax.metrics.cases import Suite

# The main metric of a suite, by its kind.
MAIN = {"question": "f1", "paraphrase": "rougeL", "autoencode": "tokens_right"}
DIGITS = 6  # decimals of the numbers in reports
SHOWN = tuple(name for name, metric in METRICS.items() if metric.kind != "part")


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
