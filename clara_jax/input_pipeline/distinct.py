"""The distinct documents of batches: where the compressor is frozen, each is compressed only once per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.input_pipeline.encoding import Example
from clara_jax.input_pipeline.mixture import ConcatExamples
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.token_cache import TokenCache


class DocumentNumbers(NamedTuple):
    """The documents of examples as numbers; equal numbers are equal documents.

    Attributes:
      flat: int32, those of all examples one after another.
      ends: int64 [N], where each example's end.
    """

    flat: np.ndarray
    ends: np.ndarray

    def distinct(self, rows: np.ndarray) -> int:
        """Return how many different documents these examples have together."""
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        parts = [self.flat[start:end] for start, end in zip(starts, self.ends[rows], strict=True)]
        return len(np.unique(np.concatenate(parts)))


def document_numbers(examples: Sequence[Example]) -> DocumentNumbers:
    """Return the numbers of examples' documents; equal documents of different sets of a mixture count as different."""
    if isinstance(examples, TokenCache):
        return DocumentNumbers(*examples.document_numbers)
    if isinstance(examples, ConcatExamples):
        flat, ends, most, before = [], [], 0, 0
        for numbers in map(document_numbers, examples.parts):
            flat.append(numbers.flat + most)
            ends.append(numbers.ends + before)
            most, before = int(flat[-1].max(initial=most - 1)) + 1, before + len(numbers.flat)
        return DocumentNumbers(np.concatenate(flat), np.concatenate(ends))
    known: dict[int, int] = {}  # equal documents share one array, see `Example`
    flat = [known.setdefault(id(ids), len(known)) for example in examples for ids in example.documents]
    return DocumentNumbers(np.array(flat, np.int32), np.cumsum([len(example.documents) for example in examples]))


def planned_counts(plan: BatchPlan, numbers: DocumentNumbers, multiple: int) -> dict[Shapes, int]:
    """Return, for each shape of a plan's batches, the most distinct documents of a batch, rounded up to a multiple.

    Each shape has one static size, so that steps with different numbers of repeated documents share one program.
    """
    most: dict[Shapes, int] = {}
    for step in range(plan.steps):
        shapes = plan.shapes(step)
        most[shapes] = max(most.get(shapes, 1), numbers.distinct(plan.rows(step)))
    return {shapes: -(-count // multiple) * multiple for shapes, count in most.items()}


def most_distinct(groups: Sequence[Sequence[Example]]) -> int:
    """Return the most distinct documents that one of the groups of examples has; at least 1."""
    return max([1, *(len({ids.tobytes() for example in group for ids in example.documents}) for group in groups)])
