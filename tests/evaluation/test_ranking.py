"""Recall@k against a plain loop, and in the order of the training loss's own top-k."""

import jax.numpy as jnp
import numpy as np

from clara_jax.evaluation.ranking import recall_at
from clara_jax.method.topk import select


def slow_recall(scores, valid, positives, k):
    present = [i for i in range(len(scores)) if valid[i]]
    best = sorted(present, key=lambda i: (-scores[i], i))[:k]
    wanted = [i for i in present if positives[i]]
    return sum(i in best for i in wanted) / len(wanted) if wanted else np.nan


def make(rows=200, width=7):
    rng = np.random.default_rng(0)
    scores = rng.integers(-2, 3, (rows, width)).astype(np.float32) / 2  # many ties
    return scores, rng.random((rows, width)) < 0.7, rng.random((rows, width)) < 0.4


def test_against_a_plain_loop():
    scores, valid, positives = make()
    for k in (1, 3, 7, 9):
        expected = [slow_recall(*row, k) for row in zip(scores, valid, positives, strict=True)]
        result = recall_at(scores, valid, positives, k)
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result, expected)
    assert np.isnan(expected).any() and np.nanmin(recall_at(scores, valid, positives, 7)) == 1


def test_same_order_as_the_training_loss():
    scores, valid, positives = make()
    _, indices = select(jnp.asarray(scores), 2, "iterative", 0.5, jnp.asarray(valid))
    chosen = (np.asarray(indices)[..., None] == np.arange(7)).any(1) & valid
    present = positives & valid
    some = present.any(1)
    expected = (chosen & present).sum(1)[some] / present.sum(1)[some]
    np.testing.assert_allclose(recall_at(scores, valid, positives, 2)[some], expected)


def test_absent_candidates_never_count():
    scores, valid = np.array([[9.0, -9.0, 0.0]]), np.array([[False, True, True]])
    assert recall_at(scores, valid, np.array([[False, False, True]]), 1) == [1.0]
    assert np.isnan(recall_at(scores, valid, np.array([[True, False, False]]), 3)[0])
