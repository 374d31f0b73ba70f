"""The schedule against its formula, and one AdamW step against the arithmetic written out in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.training.optimizer import decays, learning_rate_schedule, make_optimizer
from clara_jax.training.stage_config import OptimizerConfig


def config(**fields):
    return OptimizerConfig(**{"steps": 20, "learning_rate": 0.1, **fields})


def rates(total, **fields):
    schedule = learning_rate_schedule(config(**fields), total)
    return np.array([schedule(step) for step in range(total + 1)])


@pytest.mark.parametrize("schedule, floor", [("cosine", 0.0), ("cosine_with_minimum", 0.02)])
def test_cosine_with_warmup(schedule, floor):
    total, warmup, peak = 20, 4, 0.1
    expected = [peak * (step + 1) / (warmup + 1) for step in range(warmup)]
    for step in range(warmup, total + 1):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        expected.append(floor + (peak - floor) * cosine)
    np.testing.assert_allclose(rates(total, schedule=schedule, warmup=4, minimum_ratio=0.2), expected, atol=1e-7)


def test_constant_and_no_warmup():
    np.testing.assert_allclose(rates(10, schedule="constant", warmup=0.2), [0.1 / 3, 0.2 / 3] + [0.1] * 9, rtol=1e-6)
    assert rates(10, warmup=0)[0] == pytest.approx(0.1)
    assert rates(1, warmup=0.03)[0] == pytest.approx(0.1)


def test_two_steps_against_numpy():
    fields = dict(weight_decay=0.1, clip_norm=0.5, betas=(0.8, 0.95), eps=1e-3, schedule="constant", warmup=1)
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 2)), "scale": rng.normal(size=(2, 4)), "v": rng.normal(size=3)}
    expected = {name: value.copy() for name, value in params.items()}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    optimizer = make_optimizer(config(**fields), 20)
    state = optimizer.init(params)
    m = {name: 0.0 for name in expected}
    v = {name: 0.0 for name in expected}
    for step, rate in enumerate([0.05, 0.1], 1):
        gradients = {name: rng.normal(size=value.shape) for name, value in expected.items()}
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert norm > 0.5
        for name, gradient in gradients.items():
            gradient = gradient * 0.5 / norm
            m[name] = 0.8 * m[name] + 0.2 * gradient
            v[name] = 0.95 * v[name] + 0.05 * gradient**2
            update = (m[name] / (1 - 0.8**step)) / (np.sqrt(v[name] / (1 - 0.95**step)) + 1e-3)
            decay = 0.1 * expected[name] if name == "a" else 0
            expected[name] = expected[name] - rate * (update + decay)
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients)
        updates, state = optimizer.update(wide, state, params)
        params = optax.apply_updates(params, updates)
    for name in expected:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-5, err_msg=name)


def test_decay_skips_vectors_biases_and_stacked_norm_scales():
    leaf = jnp.zeros
    params = {
        "layers": {"attention": {"q": {"kernel": {"q": leaf((2, 3, 3))}, "bias": {"q": leaf((2, 3))}}}},
        "norm": {"scale": leaf((2, 3))},
        "memory": leaf((4, 3)),
        "vector": leaf((3,)),
    }
    assert decays(params) == {
        "layers": {"attention": {"q": {"kernel": {"q": True}, "bias": {"q": False}}}},
        "norm": {"scale": False},
        "memory": True,
        "vector": False,
    }


def test_state_is_float32_for_bfloat16_parameters():
    params = {"a": jnp.ones((2, 2), jnp.bfloat16)}
    optimizer = make_optimizer(config(), 20)
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)({"a": jnp.full((2, 2), 1e-3, jnp.bfloat16)}, state, params)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state, updates)) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {jnp.dtype("float32")}
    assert optax.apply_updates(params, updates)["a"].dtype == jnp.bfloat16
