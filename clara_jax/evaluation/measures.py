"""The numbers of a suite: every system before every case, and statistics of them in the same draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.evaluation.cases import Suite
from clara_jax.evaluation.intervals import Bootstrap, Interval
from clara_jax.evaluation.outcomes import Outcome
from clara_jax.evaluation.scoring import METRICS, score

# What a system is judged by in one number, by kind of suite.
MAIN = {"question": "f1", "paraphrase": "rougeL", "autoencode": "tokens_right"}
DIGITS = 6  # of the numbers in reports, after the point
SHOWN = tuple(name for name, metric in METRICS.items() if metric.kind != "part")


class Measures:
    """Numbers by system, metric and case; n cases in the suite's order.

    Args:
      outcomes: of systems by name; cases without an outcome are NaN.
      draws: of the suite's cases.

    Attributes:
      outcomes: of systems by name, then of cases by id.

    Raises:
      ClaraError: an outcome is of no case of the suite, or does not go with its case.
    """

    def __init__(self, suite: Suite, outcomes: Mapping[str, Sequence[Outcome]], draws: Bootstrap):
        self.suite, self.draws = suite, draws
        self.outcomes = {system: {outcome.case: outcome for outcome in own} for system, own in outcomes.items()}
        self._values = {system: self._score(system, own) for system, own in self.outcomes.items()}

    def _score(self, system: str, outcomes: Mapping[str, Outcome]) -> dict[str, np.ndarray]:
        cases = {case.id: (place, case) for place, case in enumerate(self.suite.cases)}
        names = [name for name, metric in METRICS.items() if metric.kind != "ratio"]
        values = np.full((len(names), len(cases)), math.nan)
        for outcome in outcomes.values():
            if outcome.case not in cases:
                raise ClaraError(f"{self.suite.name}: {system}: there is no case {outcome.case!r}; remove its outcome")
            place, case = cases[outcome.case]
            try:
                values[:, place] = list(score(case, outcome).values())
            except ValueError as error:
                raise ClaraError(f"{self.suite.name}: {system}: {error}; remove the outcome") from None
        return dict(zip(names, values, strict=True))

    def value(self, system: str, metric: str, case: int) -> float:
        """Of one case; NaN where it is not known. Not of a ratio."""
        return float(self._values[system][metric][case])

    def known(self, system: str, metric: str) -> np.ndarray:
        """bool [n], the cases of which a number is known."""
        values, per = self._of(system, metric)
        return ~np.isnan(values) & ~np.isnan(0.0 if per is None else per)

    def means(
        self, system: str, metrics: Sequence[str] = SHOWN, among: np.ndarray | None = None
    ) -> dict[str, dict[str, Any]]:
        """By metric, without those that no case has: {"mean", "low", "high", "n"}.

        Args:
          among: bool [n], the cases that count; None for all.
        """
        found = {}
        for metric in metrics:
            values, per = self._of(system, metric, among)
            found[metric] = self.draws.mean(values, per)
        return _known(found)

    def differences(self, system: str, other: str, metrics: Sequence[str] = SHOWN) -> dict[str, dict[str, Any]]:
        """``system`` minus ``other`` on the cases that both have, likewise and with "p"."""
        found = {}
        for metric in metrics:
            (a, per_a), (b, per_b) = self._of(system, metric), self._of(other, metric)
            found[metric] = self.draws.difference(a, b, (per_a, per_b))
        return _known(found)

    def normalised(self, system: str, none: str, text: str, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Where ``system`` stands between ``none`` (0) and ``text`` (1), on the cases that all three have, see
        `Bootstrap.normalised`. By metric, without those that no case has; a mean that is not defined is None."""
        found = {}
        for metric in metrics:
            own, least, most = (self._values[name][metric] for name in (system, none, text))
            found[metric] = self.draws.normalised(own, least, most)
        return {metric: plain(dataclasses.asdict(own)) for metric, own in found.items() if own.n}

    def followed_with(self, system: str, text: str) -> dict[str, Any] | None:
        """The share of the changed documents that ``text`` follows that ``system`` follows as well; None where it
        follows none."""
        own, other = (self._values[name]["followed"] for name in (system, text))
        share = self.draws.mean(np.where(other > 0, own, math.nan))
        return plain(dataclasses.asdict(share)) if share.n else None

    def _of(self, system: str, metric: str, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        own, parts = self._values[system], METRICS[metric].parts
        values, per = (own[metric], None) if parts is None else (own[parts[0]], own[parts[1]])
        return (values if among is None else np.where(among, values, math.nan)), per


def plain(value: Any) -> Any:
    """Numbers as JSON may have them, rounded: what is not finite is None. Containers are gone through."""
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(own) for own in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def _known(found: Mapping[str, Interval]) -> dict[str, dict[str, Any]]:
    return {
        metric: plain(dataclasses.asdict(interval))
        for metric, interval in found.items()
        if interval.n and not math.isnan(interval.mean)
    }
