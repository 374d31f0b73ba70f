"""Ranks against plain loops and scikit-learn, by hand, and in the order of the training loss's top-k."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from clara_jax.method.estimators.methods import select
from clara_jax.metrics.ranking import ndcg_at, precision_at, recall_at, reciprocal_rank


def slow_hits(scores, valid, positives):
    """Whether each candidate that is there, best first, is a positive."""
    present = [i for i in range(len(scores)) if valid[i]]
    return [bool(positives[i]) for i in sorted(present, key=lambda i: (-scores[i], i))]


def slow_recall(hits, k):
    return sum(hits[:k]) / sum(hits)


def slow_precision(hits, k):
    return sum(hits[:k]) / k


def slow_reciprocal_rank(hits, _):
    return 1 / (1 + hits.index(True))


def slow_ndcg(hits, k):
    def gain(order):
        return sum(1 / math.log2(place + 1) for place, hit in enumerate(order[:k], 1) if hit)

    return gain(hits) / gain(sorted(hits, reverse=True))


def make(rows=200, width=7):
    rng = np.random.default_rng(0)
    scores = rng.integers(-2, 3, (rows, width)).astype(np.float32) / 2  # many ties
    return scores, rng.random((rows, width)) < 0.7, rng.random((rows, width)) < 0.4


@pytest.mark.parametrize(
    "metric, slow",
    [
        (recall_at, slow_recall),
        (precision_at, slow_precision),
        (lambda *arrays: reciprocal_rank(*arrays[:3]), slow_reciprocal_rank),
        (ndcg_at, slow_ndcg),
    ],
)
def test_against_a_plain_loop(metric, slow):
    scores, valid, positives = make()
    hits = [slow_hits(*row) for row in zip(scores, valid, positives, strict=True)]
    for k in (1, 3, 7, 9):
        expected = [slow(row, k) if any(row) else np.nan for row in hits]
        result = metric(scores, valid, positives, k)
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, expected, rtol=1e-14)
    assert np.isnan(expected).any() and not np.isnan(expected).all()


def test_against_scikit_learn():
    rng = np.random.default_rng(1)
    scores, positives = rng.random((100, 9)), rng.random((100, 9)) < 0.4
    positives[:, 3] = True
    for k in (1, 5, 9):
        expected = [ndcg_score(positives[i : i + 1], scores[i : i + 1], k=k) for i in range(100)]
        np.testing.assert_allclose(ndcg_at(scores, np.ones((100, 9), bool), positives, k), expected, rtol=1e-12)


def test_by_hand():
    scores, valid = np.array([[0.1, 0.9, 0.5, 0.7]]), np.ones((1, 4), bool)  # order 1, 3, 2, 0
    positives = np.array([[True, False, True, False]])  # places 3 and 4
    assert [recall_at(scores, valid, positives, k)[0] for k in (2, 3, 4, 5)] == [0, 0.5, 1, 1]
    assert [precision_at(scores, valid, positives, k)[0] for k in (2, 3, 4, 5)] == [0, 1 / 3, 0.5, 0.4]
    assert reciprocal_rank(scores, valid, positives)[0] == 1 / 3
    assert ndcg_at(scores, valid, positives, 2)[0] == 0
    assert ndcg_at(scores, valid, positives, 3)[0] == pytest.approx(0.5 / (1 + 1 / math.log2(3)))
    assert ndcg_at(scores, valid, ~positives, 4)[0] == 1


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
    last = np.array([[False, False, True]])
    assert recall_at(scores, valid, last, 1) == precision_at(scores, valid, last, 1) == [1.0]
    assert reciprocal_rank(scores, valid, last) == ndcg_at(scores, valid, last, 1) == [1.0]
    none = np.array([[True, False, False]])
    assert np.isnan(reciprocal_rank(scores, valid, none)[0])
    for metric in (recall_at, precision_at, ndcg_at):
        assert np.isnan(metric(scores, valid, none, 3)[0])
