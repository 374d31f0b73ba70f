"""Losses and metrics against their formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import Sequences, memory_at_end
from clara_jax.method.compressor import alignment_loss, pool_states
from clara_jax.method.reranker import contrastive_loss, cosine_scores
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


def test_cosine_scores_and_recall():
    query, documents = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 5, 3, 4))
    documents[1, 4] = 0  # an absent document: a score, not NaN
    flat_q, flat_d = query.reshape(2, 1, -1), documents.reshape(2, 5, -1)
    norms = np.linalg.norm(flat_q, axis=-1) * np.maximum(np.linalg.norm(flat_d, axis=-1), 1e-9)
    np.testing.assert_allclose(cosine_scores(query, documents), (flat_q * flat_d).sum(-1) / norms, atol=1e-6)
    positives = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_allclose(recall(jnp.array([[0, 2], [4, 1], [0, 1]]), positives), [0.5, 1.0, 0.0])
