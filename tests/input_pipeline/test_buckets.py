"""Ladders of shapes: they hold everything, one within the next, and waste as little as they can."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.buckets import Shapes, levels, shape_ladder, shapes_for
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests.data import tiny_tokenizer

TOKENIZER = ClaraTokenizer(tiny_tokenizer(), doc_max_length=60, memory_tokens=4, max_length=400)
M = TOKENIZER.memory_tokens


def make_sizes(count, seed=0, ranking=True):
    rng = np.random.default_rng(seed)
    target = rng.integers(1, 30, count)
    columns = [rng.integers(1, 9, count), rng.integers(1, 64, count), rng.integers(1, 40, count) * ranking]
    return np.stack([*columns, target + rng.integers(1, 300, count), target], axis=1).astype(np.int32)


def cost(sizes, ladder):
    return sum(ladder[level].positions(M) for level in levels(sizes, ladder))


@given(st.integers(1, 200), st.integers(1, 6), st.integers(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_ladder_holds_everything_and_one_shape_is_within_the_next(count, steps, seed, ranking):
    sizes = make_sizes(count, seed, ranking)
    ladder = shape_ladder(sizes, TOKENIZER, steps)
    assert 1 <= len(ladder) <= steps and ladder[-1] == shapes_for(sizes, TOKENIZER)
    for smaller, larger in itertools.pairwise(ladder):
        assert np.all(smaller.as_sizes() <= larger.as_sizes()) and smaller != larger
    found = levels(sizes, ladder)
    for row, level in zip(sizes, found, strict=True):
        fits = [bool(np.all(row <= shapes.as_sizes())) for shapes in ladder]
        assert level == fits.index(True)


@pytest.mark.parametrize("steps", [2, 3])
def test_no_other_choice_among_the_quantiles_is_better(steps):
    sizes = make_sizes(500)
    everything = shape_ladder(sizes, TOKENIZER, 16)
    best = min(
        cost(sizes, chain)
        for some in range(1, steps + 1)
        for chain in itertools.combinations(everything, some)
        if chain[-1] == everything[-1]
    )
    assert cost(sizes, shape_ladder(sizes, TOKENIZER, steps)) == best


def test_more_shapes_waste_less():
    sizes = make_sizes(1000)
    costs = [cost(sizes, shape_ladder(sizes, TOKENIZER, count)) for count in (1, 2, 4, 8)]
    assert costs == sorted(costs, reverse=True) and costs[2] < 0.85 * costs[0]


def test_the_longest_texts_are_whole_tiles():
    """A document at the tokenizer's limit, 60 + 3 tokens: with its four memory tokens 72 positions."""
    sizes = np.array([[1, 63, 20, 50, 7]], np.int32)
    shapes = shapes_for(sizes, TOKENIZER)
    assert (shapes.encoder_width + M, shapes.query_width + M, shapes.prompt_length) == (72, 32, 64)
    assert shapes_for(sizes, TOKENIZER, multiple=1).encoder_width == 63


def test_what_does_not_fit_is_named():
    sizes = make_sizes(10)
    small = Shapes(1, 12, 12, 16, 15)
    with pytest.raises(ClaraError, match="does not fit the largest shape"):
        levels(sizes, [small])
    with pytest.raises(ClaraError, match="no examples"):
        shapes_for(sizes[:0], TOKENIZER)
