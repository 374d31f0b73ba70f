"""The differentiable top-k: every method against its paper's formula, written out in float64, and what all have in
common."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.method.estimators.lapsum import laplace_mask
from clara_jax.method.estimators.methods import METHODS, select
from clara_jax.method.topk import EPSILON, algorithm_1, degenerate
from tests.locations import golden_folders

FOLDERS = golden_folders()
SLOTS = ("iterative", "gumbel", "softsort", "neuralsort", "sinkhorn")  # a distribution for each rank
TEMPERATURES = (0.02, 0.1, 0.5, 2.0)


@partial(jax.jit, static_argnames=("k", "method", "hard"))
def weights_and_gradient(scores, cotangent, k, method, temperature, mask=None, key=None, hard=True):
    """Z, the indices, and the gradient of <Z, cotangent> by scores and temperature."""

    def value(scores, temperature):
        weights, indices = select(scores, k, method, temperature, mask, key, hard)
        return jnp.sum(weights * cotangent), (weights, indices)

    gradients, (weights, indices) = jax.grad(value, (0, 1), has_aux=True)(scores, temperature)
    return weights, indices, *gradients


@partial(jax.jit, static_argnames=("k", "method"))
def soft_weights(scores, k, method, temperature):
    """One program for all temperatures."""
    return select(scores, k, method, temperature, hard=False)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_algorithm_1_as_printed_and_as_one_softmax(temperature):
    """The loop over ranks and the batched form have equal choices, values and gradients."""
    scores = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (1, 9)), jnp.float32)
    cotangent = np.random.default_rng(5).normal(size=(1, 4, 9)).astype(np.float32)
    weights, indices, gradient, by_temperature = weights_and_gradient(
        scores, cotangent, 4, "iterative", jnp.float32(temperature)
    )

    def printed(scores, temperature):
        z = algorithm_1(scores, 4, temperature)
        return jnp.sum(z * cotangent[0]), z

    (of_scores, of_temperature), z = jax.grad(printed, (0, 1), has_aux=True)(scores[0], jnp.float32(temperature))
    np.testing.assert_array_equal(np.argmax(z, axis=-1), indices[0])
    np.testing.assert_allclose(z, weights[0], atol=1e-6)
    np.testing.assert_allclose(of_scores, gradient[0], rtol=1e-4, atol=1e-4 * np.abs(gradient).max())
    np.testing.assert_allclose(of_temperature, by_temperature, rtol=1e-3, atol=1e-4)


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
        weights, indices, gradient, _ = weights_and_gradient(scores, cotangent, k, "iterative", temperature)
        np.testing.assert_array_equal(indices, arrays[f"{n}_idx"])
        np.testing.assert_allclose(weights, arrays[f"{n}_W"], atol=1e-5)
        expected = arrays[f"{n}_grad"]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


# The formulas of the papers for one row, in NumPy and float64, without a thought of speed.


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def iterative(s, k, temperature):
    taken, rows = np.zeros(len(s)), []
    for _ in range(k):
        rows.append(softmax(s / temperature + np.log(1 - taken + EPSILON)))
        taken[np.argmax(np.where(taken > 0, -np.inf, s))] = 1
    return np.stack(rows)


def softsort(s, k, temperature):
    return softmax(-np.abs(np.sort(s)[::-1][:k, None] - s[None]) / temperature)


def neuralsort(s, k, temperature):
    distances, n = np.abs(s[:, None] - s[None]), len(s)
    return softmax(np.stack([((n + 1 - 2 * j) * s - distances @ np.ones(n)) / temperature for j in range(1, k + 1)]))


def sinkhorn(s, k, temperature):
    n = len(s)
    y = np.arange(k, -1, -1)
    takes = np.append(np.ones(k), n - k)
    y, takes = y[takes > 0], takes[takes > 0]
    logits, v = s[:, None] * y[None] / temperature, np.zeros(len(y))
    for _ in range(100_000):
        plan = softmax(logits + v)
        reached = plan.sum(axis=0)
        if np.abs(reached - takes).max() < 1e-9:
            break
        v += np.log(takes / reached)
    return plan[:, :k].T


def laplace(s, k, temperature):
    if k >= len(s):
        return np.ones(len(s))

    def of(b):
        x = (s - b) / temperature
        return np.where(x > 0, 1 - np.exp(-np.abs(x)) / 2, np.exp(-np.abs(x)) / 2)

    low, high = s.min() - 50 * temperature, s.max() + 50 * temperature
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle).sum() > k else (low, middle)
    return of(low)


def lapsum(s, k, temperature):
    order = np.argsort(-s, kind="stable")[:k]
    result = np.zeros((k, len(s)))
    result[np.arange(k), order] = laplace(s, k, temperature)[order]
    return result


FORMULAS = {"iterative": iterative, "gumbel": iterative, "softsort": softsort, "neuralsort": neuralsort}
FORMULAS |= {"sinkhorn": sinkhorn, "lapsum": lapsum}


def draw(seed, batch=3, documents=9):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, documents))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("method", METHODS)
def test_soft_weights_are_those_of_the_formula(method, k, temperature):
    if method == "sinkhorn":
        temperature = max(temperature, 0.1)  # below it, the plain iteration of the formula takes forever
    scores = draw(k)
    soft, indices = soft_weights(jnp.asarray(scores), k, method, temperature)
    expected = np.stack([FORMULAS[method](row, k, temperature) for row in scores])
    np.testing.assert_allclose(soft, expected, atol=2e-5)
    np.testing.assert_array_equal(indices, np.argsort(-scores, axis=-1)[:, :k])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_gradients_are_finite_differences_of_the_formula(method, temperature):
    k, step = 3, 1e-6
    scores = draw(7, batch=2, documents=6)
    cotangent = np.random.default_rng(1).normal(size=(2, k, 6))

    def value(scores, temperature):
        soft = np.stack([FORMULAS[method](row, k, temperature) for row in scores])
        return (soft * cotangent).sum()

    _, _, gradient, by_temperature = weights_and_gradient(
        jnp.asarray(scores, jnp.float32), cotangent.astype(np.float32), k, method, temperature, hard=False
    )
    hard_gradient = weights_and_gradient(
        jnp.asarray(scores, jnp.float32), cotangent.astype(np.float32), k, method, temperature
    )[2]
    expected = np.zeros_like(scores)
    for at in np.ndindex(scores.shape):
        moved = np.zeros_like(scores)
        moved[at] = step
        expected[at] = (value(scores + moved, temperature) - value(scores - moved, temperature)) / (2 * step)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, atol=2e-4 * scale)
    np.testing.assert_array_equal(gradient, hard_gradient)
    expected = (value(scores, temperature + step) - value(scores, temperature - step)) / (2 * step)
    np.testing.assert_allclose(by_temperature, expected, atol=1e-3 * scale)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sinkhorn_is_the_plan_of_ott(temperature):
    """Another library, another algorithm; its gradient by implicit differentiation, too."""
    ott = pytest.importorskip("ott", reason="pip install ott-jax")
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as solver

    assert ott
    k, n = 3, 8
    row = draw(5, 1, n)[0]
    cotangent = np.random.default_rng(2).normal(size=(k, n))
    with jax.enable_x64(True):
        y = jnp.arange(k, -1.0, -1.0)
        takes = jnp.append(jnp.ones(k), n - k) / n

        def theirs(s):
            cost = geometry.Geometry((s[:, None] - y[None]) ** 2 / 2, epsilon=temperature)
            problem = linear_problem.LinearProblem(cost, a=jnp.full(n, 1 / n), b=takes)
            plan = n * solver.Sinkhorn(threshold=1e-12, max_iterations=20_000)(problem).matrix[:, :k].T
            return jnp.sum(plan * cotangent), plan

        gradient, plan = jax.jit(jax.grad(theirs, has_aux=True))(jnp.asarray(row))
    ours, _, our_gradient, _ = weights_and_gradient(
        jnp.asarray(row[None], jnp.float32), cotangent[None].astype(np.float32), k, "sinkhorn", temperature, hard=False
    )
    np.testing.assert_allclose(ours[0], plan, atol=1e-5)
    np.testing.assert_allclose(our_gradient[0], gradient, atol=1e-3 * np.abs(gradient).max())


# (rows, documents, k); every one is a program for each method. Among the few: one document, k above their number.
FEW = st.sampled_from([(1, 1, 3), (4, 9, 4), (3, 4, 4), (2, 6, 8)])
ANY = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 11)).filter(lambda sizes: sizes[2] <= sizes[1] + 2)


def cases(sizes):
    return st.tuples(sizes, st.integers(0, 2**31 - 1), st.booleans())


def example(case):
    """Scores, some of them equal, a mask (which may leave nothing), and k."""
    (batch, documents, k), seed, ties = case
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (batch, documents)).astype(np.float32)
    if ties:
        scores = np.round(scores * 2) / 2 + 0.0  # no -0: it ranks behind 0
    return scores, rng.random((batch, documents)) < 0.7, k, rng


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(case=cases(FEW), temperature=st.sampled_from(TEMPERATURES))
def test_what_holds_for_all(method, case, temperature):
    check_what_holds(method, case, temperature)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(case=cases(ANY), temperature=st.sampled_from(TEMPERATURES))
def test_what_holds_for_all_sizes(method, case, temperature):
    check_what_holds(method, case, temperature)


@partial(jax.jit, static_argnums=1)
def whole_mask(scores, k, temperature, mask):
    """The soft mask of the k best over all documents, of which `lapsum` shows the chosen ones."""
    return jax.vmap(laplace_mask, (0, 0, None))(jnp.where(mask, scores / temperature, 0), mask, k)


def check_what_holds(method, case, temperature):
    scores, mask, k, rng = example(case)
    (batch, documents), ranks = scores.shape, min(k, scores.shape[1])
    cotangent = rng.normal(size=(batch, ranks, documents)).astype(np.float32)
    weights, indices, gradient, _ = weights_and_gradient(scores, cotangent, k, method, temperature, mask)
    soft = np.asarray(weights_and_gradient(scores, cotangent, k, method, temperature, mask, hard=False)[0])
    exists = np.arange(ranks) < mask.sum(axis=1, keepdims=True)
    # Values are exactly zeros and ones, in the order of the scores, the lowest index first among equals.
    order = np.argsort(-np.where(mask, scores, -np.inf), axis=-1, kind="stable")[:, :ranks]
    np.testing.assert_array_equal(np.where(exists, indices, 0), np.where(exists, order, 0))
    np.testing.assert_array_equal(weights, np.eye(documents)[order] * exists[..., None])
    # What is masked has no weight and no gradient, and everything is finite.
    assert not np.asarray(gradient)[~mask].any() and not soft[np.broadcast_to(~mask[:, None], soft.shape)].any()
    assert np.isfinite(gradient).all() and np.isfinite(soft).all() and (soft >= 0).all()
    if method in SLOTS:
        np.testing.assert_allclose(soft.sum(axis=-1), exists, atol=1e-4)
    else:
        q = np.asarray(whole_mask(scores, k, temperature, mask))
        np.testing.assert_allclose(q.sum(axis=-1), np.minimum(k, mask.sum(axis=1)), rtol=1e-4, atol=1e-4)
        order = np.argsort(-scores, axis=-1)
        assert (np.diff(np.take_along_axis(np.where(mask, q, np.inf), order, 1)[mask.all(axis=1)]) < 1e-6).all()
    if len(np.unique(scores)) == scores.size:
        moved = rng.permutation(documents)
        again = weights_and_gradient(scores[:, moved], cotangent[..., moved], k, method, temperature, mask[:, moved])
        np.testing.assert_array_equal(again[0], np.asarray(weights)[..., moved])
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(again[2], np.asarray(gradient)[:, moved], atol=2e-3 * scale)


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_is_as_if_the_rest_were_not_there(method):
    scores, k = draw(3, 1, 7).astype(np.float32), 3
    mask = np.array([[True, False, True, True, False, True, True]])
    cotangent = np.random.default_rng(0).normal(size=(1, k, 7)).astype(np.float32)
    masked = weights_and_gradient(scores, cotangent, k, method, 0.3, mask, hard=False)
    rest = weights_and_gradient(scores[mask][None], cotangent[..., mask[0]], k, method, 0.3, hard=False)
    np.testing.assert_allclose(masked[0][..., mask[0]], rest[0], atol=1e-6)
    np.testing.assert_allclose(masked[2][mask][None], rest[2], atol=1e-5)


def test_bfloat16_scores_are_computed_in_float32():
    scores = jnp.asarray(draw(0), jnp.bfloat16)
    for method in METHODS:
        wide = soft_weights(scores.astype(jnp.float32), 3, method, 0.1)
        narrow = soft_weights(scores, 3, method, 0.1)
        assert narrow[0].dtype == jnp.float32
        np.testing.assert_array_equal(narrow[0], wide[0])


def test_noise_explores_where_there_is_a_key():
    scores = jnp.zeros((4, 8)) + jnp.arange(8) / 8
    keys = jax.random.split(jax.random.key(0), 4)
    quiet, noisy = (select(scores, 3, "gumbel", 1.0, key=key)[1] for key in (None, keys))
    np.testing.assert_array_equal(quiet, np.tile([7, 6, 5], (4, 1)))
    assert len(np.unique(noisy, axis=0)) > 1, "each row has other noise"
    np.testing.assert_array_equal(select(scores, 3, "softsort", 1.0, key=keys)[1], quiet)
    many = jax.random.split(jax.random.key(1), 20_000)
    first = select(jnp.broadcast_to(jnp.array([0.0, 1.0]), (20_000, 2)), 1, "gumbel", 1.0, key=many)[1]
    np.testing.assert_allclose(np.mean(first), 1 / (1 + np.exp(-1)), atol=0.01)  # samples of the softmax


@pytest.mark.parametrize("method", METHODS)
def test_many_candidates(method):
    """No D x D anywhere, and the sums along 100,000 scores stay right."""
    documents, k = 100_000, 5
    scores = jnp.asarray(np.random.default_rng(0).normal(0, 0.3, (1, documents)), jnp.float32)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(1, k, documents)), jnp.float32)
    compiled = weights_and_gradient.lower(scores, cotangent, k, method, 0.05).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 400 * documents
    weights, indices, gradient, _ = compiled(scores, cotangent, 0.05)
    np.testing.assert_array_equal(indices[0], np.argsort(-np.asarray(scores[0]))[:k])
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    soft = np.asarray(soft_weights(scores, k, method, 0.05)[0])
    if method != "lapsum":
        loose = 2e-2 if method == "sinkhorn" else 1e-3  # its potentials are sought step by step
        np.testing.assert_allclose(soft.sum(axis=-1), 1, atol=loose)


@pytest.mark.parametrize("method", METHODS)
def test_rows_stay_on_their_devices(method, mesh222):
    rows = jax.P(("replica", "data"))
    scores, cotangent = draw(0, 8, 6).astype(np.float32), draw(1, 8 * 3, 6).reshape(8, 3, 6).astype(np.float32)
    expected = weights_and_gradient(scores, cotangent, 3, method, 0.1)
    with jax.set_mesh(mesh222):
        placed = [jax.device_put(x, jax.NamedSharding(mesh222, rows)) for x in (scores, cotangent)]
        compiled = weights_and_gradient.lower(*placed, 3, method, 0.1).compile()
        found = compiled(*placed, 0.1)
    assert found[0].sharding.spec[0] == ("replica", "data")
    for actual, one in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(actual, one, atol=1e-4)


def test_nothing_loops_over_ranks(usual_code):
    scores, cotangent = jnp.zeros((2, 50)), jnp.zeros((2, 20, 50))
    for method in set(METHODS) - {"sinkhorn"}:
        text = weights_and_gradient.lower(scores, cotangent, 20, method, 0.1).compile(usual_code).as_text()
        assert " while(" not in text, method


def test_what_cannot_be_is_said():
    scores = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="must be one of iterative"):
        select(scores, 1, "best", 0.1)
    with pytest.raises(ValueError, match="there must be a rank"):
        select(scores, 0, "softsort", 0.1)
    with pytest.raises(ValueError, match="there must be a rank"):
        select(jnp.zeros((2, 0)), 1, "softsort", 0.1)
    with pytest.raises(ValueError, match="must have the shape of the scores"):
        select(scores, 1, "softsort", 0.1, jnp.ones((2, 2), bool))


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_known_before_is_counted(method):
    scores = jnp.array([[0.1, jnp.nan, 0.3], [0.2, 0.1, 0.5], [0.3, 0.2, 0.1], [jnp.nan] * 3])
    mask = jnp.array([[True] * 3, [True, True, False], [False] * 3, [True] * 3])
    weights, indices, gradient, _ = weights_and_gradient(scores, jnp.ones((4, 2, 3)), 2, method, 0.1, mask)
    assert np.isfinite(weights).all() and np.isfinite(gradient).all()
    np.testing.assert_array_equal(indices[:2], [[2, 0], [0, 1]])
    np.testing.assert_array_equal(weights.sum((1, 2)), [2, 2, 0, 0])
    found = degenerate(scores, 2, mask)
    np.testing.assert_array_equal(found["nan_scores"], [True, False, False, True])
    np.testing.assert_array_equal(found["too_few"], [False, False, True, True])
