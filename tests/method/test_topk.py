"""The straight-through top-k against the golden file and against the paper's loop."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.method.topk import EPSILON, straight_through_topk
from tests.locations import golden_folders

FOLDERS = golden_folders()


@partial(jax.jit, static_argnums=(0, 2, 3))
def value_and_gradient(select, scores, k, temperature, cotangent, *rest):
    """Z, the indices, and the gradient of <Z, cotangent> with respect to the scores."""
    selection, indices = select(scores, k, temperature, *rest)
    return selection, indices, jax.grad(lambda s: jnp.sum(select(s, k, temperature, *rest)[0] * cotangent))(scores)


@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda folder: folder.name if folder else "absent")
def test_golden_topk(folder):
    if folder is None:
        pytest.skip("no golden files: set CLARA_GOLDEN_DIR")
    arrays = np.load(folder / "topk.npz")
    cases = json.loads((folder / "topk.json").read_text())
    assert cases
    for case in cases:
        n, k, temperature = case["case"], case["k"], case["temperature"]
        scores, cotangent = jnp.asarray(arrays[f"{n}_logits"]), arrays[f"{n}_cotangent"]
        selection, indices, gradient = value_and_gradient(straight_through_topk, scores, k, temperature, cotangent)
        np.testing.assert_array_equal(indices, arrays[f"{n}_idx"])
        np.testing.assert_allclose(selection, arrays[f"{n}_W"], atol=1e-5)
        expected = arrays[f"{n}_grad"]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def paper_loop(scores, k, temperature):
    """Algorithm 1 as written: one rank after the other."""
    scaled = scores / temperature
    taken = jnp.zeros_like(scores)
    rows, indices = [], []
    for _ in range(k):
        best = jnp.argmax(jnp.where(taken > 0, -jnp.inf, scaled), axis=-1)
        hard = jax.nn.one_hot(best, scores.shape[-1])
        left = jnp.where(taken > 0, jnp.log(EPSILON), 0)
        soft = jax.nn.softmax(scaled + left, axis=-1)
        rows.append(hard + soft - jax.lax.stop_gradient(soft))
        indices.append(best)
        taken = jnp.minimum(taken + hard, 1)
    return jnp.stack(rows, 1), jnp.stack(indices, 1)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([0.02, 0.1, 0.5, 1.0]), st.integers(0, 2**31 - 1))
def test_one_batched_softmax_is_the_papers_loop(batch, documents, temperature, seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, documents + 1))
    scores = jnp.asarray(rng.uniform(-1, 1, (batch, documents)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(batch, k, documents)), jnp.float32)
    ours = value_and_gradient(straight_through_topk, scores, k, temperature, cotangent)
    theirs = value_and_gradient(paper_loop, scores, k, temperature, cotangent)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 / temperature)


def test_forward_is_exactly_one_hot_and_ties_take_the_first():
    selection, indices = straight_through_topk(jnp.array([[0.3, 0.7, 0.7, 0.1]]), 3, 0.02)
    np.testing.assert_array_equal(indices, [[1, 2, 0]])
    np.testing.assert_array_equal(selection, np.eye(4)[[1, 2, 0]][None])


def test_absent_candidates_rank_last_and_carry_no_gradient():
    scores = jnp.array([[0.1, 0.9, 0.5, 0.8]])
    valid = jnp.array([[True, False, True, True]])
    cotangent = jnp.ones((1, 3, 4)) * jnp.arange(4)
    _, indices, gradient = value_and_gradient(straight_through_topk, scores, 3, 0.5, cotangent, valid)
    np.testing.assert_array_equal(indices, [[3, 2, 0]])
    assert gradient[0, 1] == 0 and np.all(np.asarray(gradient)[0, [0, 2, 3]] != 0)
