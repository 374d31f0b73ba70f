"""Confidence intervals of means: the paired percentile bootstrap over cases (Efron and Tibshirani 1993, chapter 13).

The cases are resampled with replacement, and the spread of a statistic over many such draws estimates its sampling
distribution. All metrics and systems share the draws, so that the interval of a difference knows which cases are hard
for both.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

BLOCK = 2**20  # counts that are handled at a time: 8 MiB in float64
# Decimals of a difference. Sums in another order differ in later ones, which would give equal means a sign.
DIGITS = 12


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic of n cases.

    Attributes:
      mean: NaN of no cases.
      low: lower bound of its confidence interval; NaN of fewer than two cases, which have no spread. Cases that are all
        equal have none either: both bounds are the mean, which is too narrow where the cases are few.
      high: upper bound, likewise.
      n: cases that count.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """A difference of two statistics, with its interval.

    Attributes:
      p: two-sided p-value of there being none: twice the share of draws on the side of 0 that has fewer of them, draws
        at 0 counted on both sides, and the cases as they are counted as one more draw; so never below
        2 / (resamples + 1). NaN where the bounds are.
    """

    p: float


class Bootstrap:
    """Resamples of cases, drawn once, for all statistics of the same cases.

    The same number of cases, resamples and seed give the same draws, on any machine.

    Args:
      cases: their number n; every array below is [n], in the same order.
      resamples: draws R. They take R * n bytes.
      seed: of the draws.
      level: the probability with which an interval is to cover the true value.
    """

    def __init__(self, cases: int, resamples: int = 2000, seed: int = 0, level: float = 0.95):
        self.cases, self.resamples, self.level = cases, resamples, level
        self._counts = np.zeros((resamples, cases), np.uint8)  # a count above 255 has no measurable probability
        rng = np.random.default_rng(seed)
        for rows in self._blocks():
            count = len(self._counts[rows])
            drawn = rng.integers(0, max(cases, 1), (count, cases)) + cases * np.arange(count)[:, None]
            self._counts[rows] = np.bincount(drawn.ravel(), minlength=count * cases).reshape(count, cases)

    def mean(self, values: np.ndarray, per: np.ndarray | None = None) -> Interval:
        """Return the mean of the cases that are not NaN, or a ratio of sums.

        Args:
          values: [n].
          per: [n], for the sum of values divided by the sum of these, over the cases where neither is NaN. A sum of 0
            makes the ratio NaN.
        """
        known, (values, per) = self._common(values, self._per(per))
        return Interval(*self._interval(self._ratios(values, per), _ratio(values, per), known))

    def difference(
        self, a: np.ndarray, b: np.ndarray, per: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    ) -> Difference:
        """Return ``mean(a, per[0]) - mean(b, per[1])`` in the same draws, over the cases where none of them is NaN."""
        known, (a, per_a, b, per_b) = self._common(a, self._per(per[0]), b, self._per(per[1]))
        draws = np.round(self._ratios(a, per_a) - self._ratios(b, per_b), DIGITS)
        mean, low, high, n = self._interval(draws, _ratio(a, per_a) - _ratio(b, per_b), known)
        fewer = min((draws <= 0).sum(), (draws >= 0).sum())
        p = min(1.0, float(2 * (1 + fewer) / (1 + np.isfinite(draws).sum())))
        return Difference(mean, low, high, n, math.nan if math.isnan(low) else p)

    def normalised(self, system: np.ndarray, none: np.ndarray, text: np.ndarray) -> Interval:
        """Return (system - none) / (text - none) of three means in the same draws, where none of them is NaN.

        Where text is not above none the ratio is not defined, and the mean is NaN. So are the bounds where that happens
        in more draws than an interval leaves out on one side: too few would be left.
        """
        known, values = self._common(system, none, text)
        weights = known.astype(float)  # cases that are not known are in no mean
        draws_system, draws_none, draws_text = (self._ratios(array, weights) for array in values)
        mean_system, mean_none, mean_text = (_ratio(array, weights) for array in values)
        lead = np.round(draws_text - draws_none, DIGITS)
        draws = np.divide(draws_system - draws_none, lead, out=np.full(len(lead), np.nan), where=lead > 0)
        defined = round(mean_text - mean_none, DIGITS) > 0
        mean = (mean_system - mean_none) / (mean_text - mean_none) if defined else math.nan
        mean, low, high, n = self._interval(draws, mean, known)
        if np.mean(~(lead > 0)) > (1 - self.level) / 2:
            low = high = math.nan
        return Interval(mean, low, high, n)

    def _per(self, per: np.ndarray | None) -> np.ndarray:
        return np.ones(self.cases) if per is None else per

    def _common(self, *arrays: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return which cases are NaN in no array, and the arrays with 0 for all others."""
        for array in arrays:
            if np.shape(array) != (self.cases,):
                raise ValueError(f"values of shape {np.shape(array)} for {self.cases} cases")
        known = ~np.any([np.isnan(array) for array in arrays], axis=0)
        return known, [np.where(known, array, 0.0) for array in arrays]

    def _ratios(self, values: np.ndarray, per: np.ndarray) -> np.ndarray:
        """Return the ratio of sums in each draw, [R], NaN where a draw has none of the known cases."""
        columns = np.stack([values, per], axis=1)
        sums = np.concatenate([self._counts[rows].astype(np.float64) @ columns for rows in self._blocks()])
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)

    def _interval(self, draws: np.ndarray, mean: float, known: np.ndarray) -> tuple[float, float, float, int]:
        n, tail = int(known.sum()), (1 - self.level) / 2
        low = high = math.nan
        if n >= 2 and not math.isnan(mean):
            low, high = np.nanquantile(draws, [tail, 1 - tail])
        mean, low, high = (round(float(value), DIGITS) for value in (mean, low, high))
        return mean, low, high, n

    def _blocks(self) -> list[slice]:
        rows = max(1, BLOCK // max(self.cases, 1))
        return [slice(start, start + rows) for start in range(0, self.resamples, rows)]


def _ratio(values: np.ndarray, per: np.ndarray) -> float:
    return float(values.sum() / per.sum()) if per.sum() else math.nan
