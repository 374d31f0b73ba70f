"""The two gradients of the scores are those of the formulas: by finite differences in float64, apart from the model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.method.appendix.gradient_paths import gradient_terms, score_gradients
from clara_jax.method.appendix.marginal import document_log_likelihoods
from clara_jax.method.cross_entropy import language_model_loss
from clara_jax.method.generator import target_states
from clara_jax.method.stages import Objective, normalize, rank_documents
from clara_jax.method.topk import EPSILON
from tests.training.test_step import make_batch, make_model, make_params

OBJECTIVE = Objective(top_k=2, temperature=0.1)


def found(mesh, objective=OBJECTIVE):
    """Both gradients, and what the formulas need: scores, validity, choice, memories, likelihoods and dL/dmemories."""
    model, batch = make_model(), make_batch(make_model())
    params = make_params(model, mesh)

    @jax.jit
    def measure(params, batch):
        scores, documents, _ = rank_documents(model, params, batch, None)
        scores = normalize(scores, batch.document_valid, objective.score_normalization)
        order = jnp.argsort(jnp.where(batch.document_valid, -scores, jnp.inf), axis=1)[:, : objective.top_k]
        there = jnp.take_along_axis(batch.document_valid, order, axis=1)[..., None, None]
        selected = jnp.where(there, jnp.take_along_axis(documents, order[..., None, None], axis=1), 0)

        def loss(selected):
            states = target_states(model, params, batch.prompt, selected)
            return language_model_loss(model, params, states, batch.prompt.labels)[0]

        likelihoods = document_log_likelihoods(model, params, batch.prompt, selected)
        facts = (scores, batch.document_valid, order, documents, likelihoods, jax.grad(loss)(selected))
        return score_gradients(model, params, batch, objective), facts

    with jax.set_mesh(mesh):
        gradients, facts = jax.device_get(measure(params, batch))
    return gradients, [np.float64(x) if x.dtype == np.float32 else x for x in facts]


def differences(function, scores):
    """Central differences of a row's value [B] with respect to its scores [B, D]."""
    step, result = 1e-6, np.zeros_like(scores)
    for d in range(scores.shape[1]):
        moved = step * (np.arange(scores.shape[1]) == d)
        result[:, d] = (function(scores + moved) - function(scores - moved)) / (2 * step)
    return result


def softmax(x, there):
    x = np.where(there, x, -np.inf)
    top = np.where(there.any(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True), 0)
    e = np.exp(x - top)
    return e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)


@pytest.mark.parametrize("normalization", ["none", "standard"])
def test_both_paths_are_the_formulas(mesh, normalization):
    objective = dataclasses.replace(OBJECTIVE, score_normalization=normalization)
    (probability, representation), facts = found(mesh, objective)
    scores, valid, order, documents, likelihoods, of_memories = facts
    there = np.take_along_axis(valid, order, axis=1)

    def mixture(scores):
        """-log Σ_d p(d|x) p(y|x, d) over the selected documents."""
        prior = softmax(np.take_along_axis(scores, order, axis=1) / objective.temperature, there)
        return -np.log((prior * np.exp(likelihoods)).sum(axis=1))

    expected = differences(mixture, scores)
    np.testing.assert_allclose(probability, expected, atol=1e-4 * np.abs(expected).max())
    chosen = (order[..., None] == np.arange(3)) & there[..., None]
    assert not probability[~chosen.any(axis=1)].any()

    def read(scores):
        """g · r, with r = Σ_d p_j(d) z_d of each rank j and g = ∂L/∂r where the choice is hard."""
        before = np.cumsum(chosen, axis=1) - chosen
        allowed = valid[:, None, :] & there[..., None]
        soft = softmax(scores[:, None, :] / objective.temperature + np.log(1 - before + EPSILON), allowed)
        return np.einsum("bkd,bdme,bkme->b", soft, documents, of_memories)

    expected = differences(read, scores)
    np.testing.assert_allclose(representation, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(probability).max() > 1e-3 and np.abs(representation).max() > 1e-3


def test_means_are_over_questions_that_have_the_gradient(mesh):
    (probability, representation), (_, valid, *_) = found(mesh)
    batch = make_batch(make_model())
    batch.prompt.labels[2] = -100
    batch.example_ids[3] = -1
    sums, counts = terms(mesh, batch, OBJECTIVE)
    asked = np.delete(np.arange(8), [2, 3])
    first, second = (np.linalg.norm(np.float64(path), axis=1) for path in (probability, representation))
    alone = valid.sum(axis=1) == 1  # there is nothing to choose: both gradients are zero
    np.testing.assert_array_equal(first[alone], 0)
    both = [row for row in asked if not alone[row]]
    assert 0 < len(both) < len(asked)
    assert counts == {"gradient_probability": 6, "gradient_representation": 6, "gradient_cosine": len(both)}
    np.testing.assert_allclose(sums["gradient_probability"], first[asked].sum(), rtol=1e-4)
    np.testing.assert_allclose(sums["gradient_representation"], second[asked].sum(), rtol=1e-4)
    cosine = (probability * representation).sum(axis=1)[both] / (first * second)[both]
    np.testing.assert_allclose(sums["gradient_cosine"], cosine.sum(), rtol=1e-3)
    assert np.ptp(cosine) > 1  # they need not agree


def test_one_document_has_no_probability_path(mesh):
    """p(d|x) = 1 whatever its score."""
    batch, tokens = make_batch(make_model()), make_model().clara.memory_tokens
    batch.prompt.memory_index[batch.prompt.memory_index >= tokens] = -1
    sums, counts = terms(mesh, batch, dataclasses.replace(OBJECTIVE, top_k=1))
    assert sums["gradient_probability"] == 0 and counts["gradient_probability"] == 8
    assert sums["gradient_representation"] > 0 and counts["gradient_cosine"] == 0


def terms(mesh, batch, objective):
    model = make_model()
    with jax.set_mesh(mesh):
        return jax.device_get(step(model, objective)(make_params(model, mesh), batch))


@functools.cache
def step(model, objective):
    return jax.jit(lambda params, batch: gradient_terms(model, params, batch, objective))
