"""Mixtures draw in their proportions, each set epoch by epoch, from any place of the stream."""

import dataclasses

import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.input_pipeline.encoding import Example
from clara_jax.input_pipeline.mixture import ConcatExamples, Mixture
from clara_jax.input_pipeline.sampler import BatchPlan

CASES = [((7,), (1.0,)), ((5, 9), (1.0, 1.0)), ((3, 50, 8), (0.5, 3.0, 1.25)), ((4, 4, 4), (1.0, 1e-3, 7.0))]


@pytest.mark.parametrize(("counts", "weights"), CASES)
def test_the_stream_is_the_same_from_any_place(counts, weights):
    mixture = Mixture(counts, weights)
    source, number = mixture.draws(0, 3000)
    assert len(source) == 3000
    for start, stop in [(0, 1), (1, 2), (17, 400), (999, 1003), (2500, 3000), (700, 700)]:
        for whole, part in zip((source, number), mixture.draws(start, stop), strict=True):
            np.testing.assert_array_equal(whole[start:stop], part)
    for one_set in range(len(counts)):  # each set's draws follow one another
        np.testing.assert_array_equal(number[source == one_set], np.arange(np.sum(source == one_set)))


@pytest.mark.parametrize(("counts", "weights"), CASES)
def test_draws_are_spread_evenly(counts, weights):
    source, _ = Mixture(counts, weights).draws(0, 2000)
    taken = np.cumsum(source[:, None] == np.arange(len(counts)), axis=0)
    expected = np.arange(1, 2001)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(taken - expected).max() <= len(counts)


def test_far_places_are_as_exact_as_near_ones():
    mixture = Mixture((10, 10, 10), (0.1, 0.2, 0.7))
    far = 10**10
    (source, number), (left, _), (right, _) = (mixture.draws(far + a, far + b) for a, b in ((0, 60), (0, 30), (30, 60)))
    np.testing.assert_array_equal(source, [*left, *right])
    assert all(
        np.array_equal(np.diff(number[source == one_set]), np.ones(np.sum(source == one_set) - 1))
        for one_set in range(3)
    )


def test_mistakes():
    for counts, weights in [((), ()), ((1, 2), (1.0,)), ((0, 2), (1.0, 1.0)), ((1, 2), (1.0, 0.0))]:
        with pytest.raises(ClaraError):
            Mixture(counts, weights)


def test_a_plan_gives_each_set_its_epochs():
    """A set of 6 with a third of the weight beside one of 40: every 18 draws all of the six, in another order."""
    counts, batch, steps = (6, 40), 9, 40
    sizes = np.ones((46, 5), np.int32)
    plan = BatchPlan(sizes, [Shapes(1, 1, 1, 1, 1)], batch, steps, seed=3, mixture=Mixture(counts, (1.0, 2.0)))
    stream = np.concatenate([plan.rows(step) for step in range(steps)])
    small, large = stream[stream < 6], stream[stream >= 6]
    assert len(small) == 120 and len(large) == 240
    for draws, count, first in ((small, 6, 0), (large, 40, 6)):
        epochs = draws.reshape(-1, count)
        assert all(sorted(epoch) == list(range(first, first + count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    again = BatchPlan(sizes, [Shapes(1, 1, 1, 1, 1)], batch, steps, seed=3, mixture=Mixture(counts, (1.0, 2.0)))
    np.testing.assert_array_equal(again.rows(31), plan.rows(31))


def test_joined_sets_are_numbered_through():
    none = np.empty(0, np.int32)

    def make(name, count):
        return [Example(i, f"{name}:{i}", (), None, none, none, none, None) for i in range(count)]

    joined = ConcatExamples([make("a", 3), make("b", 1), make("c", 2)])
    assert [example.where for example in joined] == ["a:0", "a:1", "a:2", "b:0", "c:0", "c:1"]
    assert [example.index for example in joined] == list(range(6)) and len(joined) == 6
    assert dataclasses.replace(joined[3], index=0) == make("b", 1)[0]
    with pytest.raises(IndexError):
        joined[6]
