"""The probability path: its gradient is the paper's formula, and its likelihoods are those of one document alone."""

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.method.cross_entropy import language_model_loss, target_log_likelihoods
from clara_jax.method.generator import target_states
from clara_jax.method.marginal import document_log_likelihoods, marginal_loss
from tests.training.test_step import make_batch, make_model, make_params

TEMPERATURE = 0.3


def test_gradient_is_the_formula():
    """∂L/∂s_d = -p(d|x) [p(y|x, d) - p(y|x)] / (τ p(y|x)), appendix A, in float64."""
    rng = np.random.default_rng(0)
    scores, likelihoods = rng.normal(size=(4, 5)), rng.normal(-2, 1, (4, 5))
    valid = np.arange(5) < np.array([[5], [3], [1], [0]])
    prior = np.where(valid, np.exp(scores / TEMPERATURE), 0)
    prior /= np.maximum(prior.sum(axis=1, keepdims=True), 1e-300)
    answer = (prior * np.exp(likelihoods)).sum(axis=1, keepdims=True)
    expected = -prior * (np.exp(likelihoods) - answer) / np.where(answer > 0, answer, 1) / TEMPERATURE

    def total(scores, likelihoods):
        losses = marginal_loss(scores, jnp.asarray(valid), likelihoods, TEMPERATURE)
        return jnp.sum(losses), losses

    arrays = jnp.asarray(scores, jnp.float32), jnp.asarray(likelihoods, jnp.float32)
    (_, losses), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(*arrays)
    np.testing.assert_allclose(losses[:3], -np.log(answer[:3, 0]), rtol=1e-5)
    assert losses[3] == 0
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected[:2]).max() > 0.1
    assert not np.any(gradients[1]), "the generator learns nothing from it"


def test_likelihoods_far_below_what_a_float_holds():
    scores, far = jnp.zeros((1, 2)), jnp.array([[-2000.0, -2100.0]])
    loss = lambda s: marginal_loss(s, jnp.ones((1, 2), bool), far, 1.0)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(scores)
    np.testing.assert_allclose(value, 2000 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5, 0.5]], atol=1e-6)


def test_likelihoods_are_those_of_one_document_alone(mesh):
    model = make_model()
    params, batch = make_params(model, mesh), make_batch(model)
    tokens = model.clara.memory_tokens
    memories = jax.random.normal(jax.random.key(1), (8, 2, tokens, 32))
    with jax.set_mesh(mesh):
        found = document_log_likelihoods(model, params, batch, memories)
        assert found.shape == (8, 2)
        for j in range(2):
            visible = (batch.memory_index < 0) | (batch.memory_index // tokens == j)
            alone = batch.replace(prompt_mask=batch.prompt_mask & visible)
            other = memories.at[:, 1 - j].set(7.0)  # what the other holds does not matter
            states = target_states(model, params, alone, other)
            np.testing.assert_allclose(target_log_likelihoods(model, params, states, batch.labels), found[:, j], 1e-5)
            # And of a row, it is the loss with the sign changed.
            loss, _ = language_model_loss(model, params, states[:1], batch.labels[:1])
            np.testing.assert_allclose(loss, -found[0, j], rtol=1e-5)
        moved = document_log_likelihoods(model, params, batch, memories[:, ::-1])
    assert np.abs(found - moved).max() > 1e-3, "memories matter"
