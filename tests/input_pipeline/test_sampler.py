"""Plans of batches: every epoch holds every example once, in batches of one size, whatever process asks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.buckets import levels, shape_ladder
from clara_jax.input_pipeline.sampler import BatchPlan
from tests.input_pipeline.test_buckets import TOKENIZER, make_sizes


def make_plan(examples, batch_size, steps, seed=0, buckets=3):
    sizes = make_sizes(examples)
    return BatchPlan(sizes, shape_ladder(sizes, TOKENIZER, buckets), batch_size, steps, seed)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(examples, batch_size, seed):
    steps = -(-3 * examples // batch_size)
    plan = make_plan(examples, batch_size, steps, seed, buckets=1)
    order = np.concatenate([plan.rows(step) for step in range(steps)])
    assert all(len(plan.rows(step)) == batch_size for step in range(steps))
    for epoch in range(3):
        assert sorted(order[epoch * examples : (epoch + 1) * examples]) == list(range(examples))


@given(st.integers(1, 300), st.integers(1, 17), st.integers(1, 60), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_with_buckets_the_whole_run_sees_every_example_equally_often(examples, batch_size, steps, seed):
    plan = make_plan(examples, batch_size, steps, seed)
    order = np.concatenate([plan.rows(step) for step in range(steps)])
    seen = np.bincount(order, minlength=examples)
    assert order.shape == (steps * batch_size,) and seen.max() - seen.min() <= 1
    sizes = make_sizes(examples)
    for step in range(steps):
        assert np.all(sizes[plan.rows(step)] <= plan.shapes(step).as_sizes())


def test_buckets_bring_examples_of_one_size_together():
    one, several = (make_plan(3000, 8, 375, buckets=buckets) for buckets in (1, 4))
    memory = TOKENIZER.memory_tokens
    positions = [sum(plan.shapes(step).positions(memory) for step in range(375)) for plan in (one, several)]
    assert positions[1] < 0.85 * positions[0]
    # Nearly all batches have the shape of each of their examples: the windows are large enough.
    level = levels(make_sizes(3000), several.ladder)
    assert np.mean([len(set(level[several.rows(step)])) == 1 for step in range(375)]) > 0.9
    shapes = [several.shapes(step).prompt_length for step in range(375)]
    assert shapes != sorted(shapes) and len(set(shapes[:20])) > 1, "sizes come in random order"


@pytest.mark.parametrize("buckets", [1, 4])
def test_a_plan_depends_on_seed_and_step_alone(buckets):
    plan, twin, other = (make_plan(1000, 8, 500, seed, buckets) for seed in (1, 1, 2))
    late = plan.rows(400)
    np.testing.assert_array_equal(late, twin.rows(400))
    assert not np.array_equal(late, other.rows(400))
    assert not np.array_equal(plan.rows(0), plan.rows(125))  # the second epoch has another order
    with pytest.raises(ValueError, match="step 500 of 500"):
        plan.rows(500)


def test_nothing_to_plan():
    with pytest.raises(ClaraError, match="at least 1"):
        BatchPlan(make_sizes(1)[:0], [], 8, 1)
