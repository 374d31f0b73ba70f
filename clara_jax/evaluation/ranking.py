"""How well candidates are ranked."""

from __future__ import annotations

import numpy as np


def recall_at(scores: np.ndarray, valid: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Recall@k: the fraction of a row's positive candidates that are among its k best.

    Among equal scores the lower index comes first, as in `clara_jax.method.topk.select`.

    Args:
      scores: [B, D].
      valid: bool [B, D], which candidates exist; absent ones are never among the best.
      positives: bool [B, D].
      k: at least 1; may be above D.

    Returns:
      float64 [B]; NaN for a row without a positive among its candidates, so that `numpy.nanmean` leaves it out.
    """
    order = np.argsort(np.where(valid, -scores.astype(np.float64), np.inf), axis=1, kind="stable")[:, :k]
    present = positives & valid
    found = np.take_along_axis(present, order, axis=1).sum(axis=1)
    total = present.sum(axis=1)
    return np.where(total > 0, found / np.maximum(total, 1), np.nan)
