"""Batches of several compress rates in one stage: which rate a step has, and its examples with as many memory tokens.

One memory token stands at all places, so a model can make any number of memories of a document. Examples are tokenized
once, at the stage's lowest rate; at a higher one the last memory tokens of each slot are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clara_jax.input_pipeline.buckets import Shapes, levels, shapes_for
from clara_jax.input_pipeline.drawn import generator
from clara_jax.input_pipeline.encoding import Example
from clara_jax.input_pipeline.tokenization import ClaraTokenizer

_RATES = 2**62  # where the random numbers of rates begin


class Rate(NamedTuple):
    """A tokenizer with the rate's number of memory tokens, and the shapes of its batches, level by level."""

    tokenizer: ClaraTokenizer
    ladder: tuple[Shapes, ...]


def make_rate(sizes: np.ndarray, ladder: Sequence[Shapes], lowest: ClaraTokenizer, tokenizer: ClaraTokenizer) -> Rate:
    """Return how a stage's batches look with fewer memory tokens.

    Args:
      sizes: of its examples, tokenized with the ``lowest`` rate's tokenizer; every document has a slot in the prompt.
      ladder: their shapes. A batch keeps its level, whatever its rate.
      lowest: tokenizer of the lowest rate.
      tokenizer: of the higher rate.
    """
    fields = [field.name for field in dataclasses.fields(Shapes)]
    fewer = sizes.copy()
    slots = sizes[:, fields.index("documents")]
    fewer[:, fields.index("prompt_length")] -= slots * (lowest.memory_tokens - tokenizer.memory_tokens)
    held = levels(sizes, ladder)
    # Levels that no example has take the shape of those below: no batch asks for them.
    return Rate(
        tokenizer,
        tuple(shapes_for(fewer[held <= max(level, held.min())], tokenizer) for level in range(len(ladder))),
    )


def rate_of(step: int, count: int, seed: int) -> int:
    """Return a step's rate, of ``count``: each comes once in every ``count`` steps, in an order drawn from the seed."""
    window, within = divmod(step, count)
    order = generator(seed, _RATES + window).permutation(count)
    return int(order[within])


def with_fewer(example: Example, memory_tokens: int, fewer: int) -> Example:
    """Return an example whose slots have ``fewer`` memory tokens each instead of ``memory_tokens``, the first ones."""
    index = example.memory_index
    slot, place = index // memory_tokens, index % memory_tokens
    kept = (index < 0) | (place < fewer)
    renumbered = np.where(index < 0, -1, slot * fewer + place).astype(np.int32)
    return dataclasses.replace(
        example,
        prompt_ids=example.prompt_ids[kept],
        memory_index=renumbered[kept],
        labels=example.labels[kept],
    )
