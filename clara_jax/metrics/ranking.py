"""Metrics of a ranking of candidates.

All functions take the same arrays, one row a question:

  scores: [B, D]. Among equal scores the lower index comes first, as in `clara_jax.method.estimators.methods.select`.
  valid: bool [B, D], which candidates exist; absent ones take no place in the order.
  positives: bool [B, D], which of them are relevant; absent ones do not count.
  k: at least 1; may be above D.

and return float64 [B], with NaN for a row without a positive among its candidates, so that `numpy.nanmean` leaves it
out. The released evaluation counts such a row as 0; for all others, its Recall@k and Precision@k are these.
"""

from __future__ import annotations

import numpy as np

DEPTHS = (1, 3, 5)  # k of Recall@k and its like: the paper's, Table 7


def recall_at(scores: np.ndarray, valid: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Return Recall@k: the fraction of a row's positive candidates that are among its k best."""
    hits, total = _ranked(scores, valid, positives)
    return _where_known(total, hits[:, :k].sum(axis=1) / np.maximum(total, 1))


def precision_at(scores: np.ndarray, valid: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Return Precision@k: the positives among a row's k best, divided by k, also where there are fewer candidates."""
    hits, total = _ranked(scores, valid, positives)
    return _where_known(total, hits[:, :k].sum(axis=1) / k)


def reciprocal_rank(scores: np.ndarray, valid: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return 1 divided by the rank, from 1, of a row's best positive; its mean is MRR."""
    hits, total = _ranked(scores, valid, positives)
    return _where_known(total, 1 / (1 + hits.argmax(axis=1)))


def ndcg_at(scores: np.ndarray, valid: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Return nDCG@k (Järvelin and Kekäläinen 2002).

    Each positive has gain 1, the discount is log2(1 + rank), and the ideal order has all positives first.
    """
    hits, total = _ranked(scores, valid, positives)
    discounts = 1 / np.log2(2 + np.arange(hits.shape[1]))[:k]
    best = np.append(0, discounts.cumsum())[np.minimum(total, len(discounts))]
    return _where_known(total, hits[:, :k] @ discounts / np.where(total > 0, best, 1))


def _ranked(scores: np.ndarray, valid: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a row's candidates, best first and absent ones last, are positives [B, D], and how many [B]."""
    order = np.argsort(np.where(valid, -scores.astype(np.float64), np.inf), axis=1, kind="stable")
    hits = np.take_along_axis(positives & valid, order, axis=1)
    return hits, hits.sum(axis=1)


def _where_known(total: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(total > 0, values, np.nan)
