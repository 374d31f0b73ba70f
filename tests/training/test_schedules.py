"""Temperature and scaffold change as they are told, and are those that the loss sees; a temperature may be trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES, Objective, normalize
from clara_jax.model.sharding import put_batch
from clara_jax.training.schedules import LOG_TEMPERATURE, scaffold_at, schedules
from clara_jax.training.step import init_state, make_train_step
from tests.configurations import stage
from tests.training.test_step import make_batch, make_model, make_params


def test_schedules():
    def of(**topk):
        return schedules(stage("end_to_end", topk=dict(temperature=0.2) | topk), 11)

    assert of() == {}
    cosine = of(temperature_schedule="cosine", temperature_end=0.02)["temperature"]
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [0.2, 0.11, 0.02], rtol=1e-5)
    steps = of(temperature_schedule="steps", temperature_steps=(2, 5), temperature_values=(0.1, 0.05))
    values = [float(steps["temperature"](jnp.int32(i))) for i in range(7)]
    np.testing.assert_allclose(values, [0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.parametrize("schedule, middle", [("linear", 0.5), ("cosine", 0.5)])
def test_the_scaffold_falls(schedule, middle):
    fields = dict(scaffold=1.0, scaffold_end=0.0, scaffold_schedule=schedule, scaffold_steps=4)
    falling = stage(objective=fields)
    values = [scaffold_at(falling.objective, 10, step) for step in range(11)]
    np.testing.assert_allclose([values[0], values[2], *values[4:]], [1, middle, *[0] * 7], atol=1e-6)
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(schedules(falling, 10)["scaffold"](jnp.int32(1)), values[1], rtol=1e-6)
    constant = stage(objective=dict(scaffold=0.3))
    assert schedules(constant, 10) == {} and scaffold_at(constant.objective, 10, 7) == 0.3


def train(mesh, objective, steps=3, learned=None, **options):
    model = make_model()
    with jax.set_mesh(mesh):
        trained, frozen = split(make_params(model, mesh), STAGES["end_to_end"].trains)
        if learned is not None:
            trained[LOG_TEMPERATURE] = jax.device_put(np.float32(np.log(learned)), jax.NamedSharding(mesh, jax.P()))
        optimizer = optax.adam(1e-2)
        step = make_train_step(model, STAGES["end_to_end"], objective, optimizer, **options)
        state, batch = init_state(trained, optimizer), put_batch(make_batch(model), mesh)
        rows = []
        for _ in range(steps):
            state, metrics = step(state, frozen, batch, jax.random.key(0))
            rows.append({name: float(value) for name, value in metrics.items()})
        assert step._cache_size() == 1
    return rows, state.trained


def test_a_step_sees_its_temperature(mesh):
    """The ranking's gradient is that of a constant temperature of the same value, and nothing is compiled again."""
    taus = jnp.array([0.1, 0.4, 0.2])
    changing = {"temperature": lambda step: taus[step]}
    rows, _ = train(mesh, Objective(top_k=2, temperature=9.0), schedules=changing, accumulate=2)
    np.testing.assert_allclose([row["temperature"] for row in rows], taus)
    norm = "grad_norm/lora/query_reasoner"
    same, _ = train(mesh, Objective(top_k=2, temperature=0.1), steps=1)
    other, _ = train(mesh, Objective(top_k=2, temperature=0.4), steps=1)
    assert "temperature" not in same[0]
    np.testing.assert_allclose(rows[0][norm], same[0][norm], rtol=1e-4)
    assert abs(other[0][norm] - same[0][norm]) > 1e-2 * same[0][norm]


def test_a_temperature_that_is_trained(mesh):
    rows, trained = train(mesh, Objective(top_k=2), learned=0.1)
    assert rows[0]["temperature"] == pytest.approx(0.1)
    assert rows[0]["grad_norm/ranking/log_temperature"] > 0
    assert rows[2]["temperature"] != rows[0]["temperature"] and rows[2]["temperature"] > 0
    fixed, _ = train(mesh, Objective(top_k=2, temperature=0.1), steps=1)
    assert fixed[0]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-6)
    assert np.isfinite(trained[LOG_TEMPERATURE])


@pytest.mark.parametrize("method", ["softsort", "lapsum"])
def test_other_estimators_and_the_marginal_term_train_the_ranking(mesh, method):
    rows, _ = train(mesh, Objective(top_k=2, temperature=0.1, topk_method=method, marginal_weight=0.5), steps=6)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["loss"] == pytest.approx(rows[0]["ce"] + 0.5 * rows[0]["marginal"], rel=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[0]["grad_norm/lora/query_reasoner"] > 0
    assert rows[0]["nan_scores"] == 0 and 0 < rows[0]["too_few"] < 1  # some rows have one document for two ranks


def test_standard_scores():
    scores = jnp.array([[0.1, 0.4, -0.2, 9.0], [0.3, 0.3, 0.3, 0.3], [1.0, 2.0, 3.0, 4.0]])
    valid = jnp.array([[True, True, True, False], [True] * 4, [False] * 4])
    found = normalize(scores, valid, "standard")
    np.testing.assert_allclose([found[0, :3].mean(), found[0, :3].std()], [0, 1], atol=1e-5)
    np.testing.assert_array_equal(found[1:], np.zeros((2, 4)))
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(normalize(x, valid, "standard"))))(scores)
    assert np.isfinite(gradient).all() and gradient[0, 3] == 0
    assert normalize(scores, valid, "none") is scores
