"""Losses and metrics against their formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import Sequences, memory_at_end
from clara_jax.memory_count import FIXED, PROPORTIONAL
from clara_jax.method.compressor import alignment_loss, pool_states
from clara_jax.method.reranker import contrastive_loss, relevance_scores
from clara_jax.method.stages import Objective, recall

RNG = np.random.default_rng(0)


def test_alignment_loss_in_both_conventions(mesh):
    states = RNG.normal(size=(3, 9, 8)).astype(np.float32)
    mask = np.ones((3, 9), bool)
    mask[1, :4] = False
    mask[2] = False  # an absent document
    texts = Sequences(np.zeros(mask.shape, np.int32), mask.astype(np.int32), memory_at_end(mask.shape, 2))
    with jax.set_mesh(mesh):
        encoded = pool_states(jnp.asarray(states), jax.tree.map(jnp.asarray, texts))
    valid = mask.any(axis=1)[:, None]
    np.testing.assert_array_equal(encoded.memory[:, 0], states[:, -2:])
    squared = [np.sum((states[i, :-2][mask[i, :-2]].mean(0) - states[i, -2:].mean(0)) ** 2) for i in (0, 1)]
    np.testing.assert_allclose(alignment_loss(encoded, valid, "sum")[:, 0], [*squared, 0], rtol=1e-5)
    np.testing.assert_allclose(alignment_loss(encoded, valid, "mean")[:, 0], np.array([*squared, 0]) / 8, rtol=1e-5)
    with pytest.raises(ClaraError, match="mse_reduction"):
        Objective(mse_reduction="median")


def test_contrastive_loss_with_several_positives():
    scores = RNG.uniform(-1, 1, (3, 5)).astype(np.float32)
    valid = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    positives = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    expected = []
    for row in range(2):
        weight = np.exp(scores[row].astype(np.float64) / 0.1) * valid[row]
        expected.append(-np.log(weight[positives[row]].sum() / weight.sum()))
    np.testing.assert_allclose(contrastive_loss(scores, positives, valid, 0.1), [*expected, 0], rtol=1e-5)


def test_cosines_and_recall():
    query, documents = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 5, 3, 4))
    documents[1, 4] = 0  # an absent document: a score, not NaN
    flat_q, flat_d = query.reshape(2, 1, -1), documents.reshape(2, 5, -1)
    norms = np.linalg.norm(flat_q, axis=-1) * np.maximum(np.linalg.norm(flat_d, axis=-1), 1e-9)
    np.testing.assert_allclose(relevance_scores(query, documents, FIXED), (flat_q * flat_d).sum(-1) / norms, atol=1e-6)
    positives = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_allclose(recall(jnp.array([[0, 2], [4, 1], [0, 1]]), positives), [0.5, 1.0, 0.0])


def test_late_interaction():
    query, documents = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 5, 3, 4))
    query[0, 2:] = documents[0, 1, 1:] = documents[1, 3, 2:] = 0  # of fewer memories
    documents[0, 4] = query[1] = 0  # none at all

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    expected = np.zeros((2, 5))
    for row, i in np.ndindex(2, 5):
        there = [d for d in documents[row, i] if d.any()]
        best = [max((cosine(q, d) for d in there), default=0) for q in query[row] if q.any()]
        expected[row, i] = np.mean(best) if best else 0
    query, documents = query.astype(np.float32), documents.astype(np.float32)
    np.testing.assert_allclose(relevance_scores(query, documents, PROPORTIONAL), expected, atol=1e-6)
    gradients = jax.grad(lambda *x: jnp.sum(relevance_scores(*x, PROPORTIONAL)), argnums=(0, 1))(query, documents)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.any(gradients[1][(documents == 0).all(-1)]), "what does not exist is not drawn to anything"
    np.testing.assert_allclose(
        relevance_scores(query[:, :1], documents[:, :, :1], PROPORTIONAL),
        relevance_scores(query[:, :1], documents[:, :, :1], FIXED),
        atol=1e-6,
    )
