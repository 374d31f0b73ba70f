"""Draws from seeds: the generator of all of them, and which records a measurement is of that is not of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def generator(seed: int, number: int) -> np.random.Generator:
    """Return the generator of a seed's draw of this number: the same on every machine and in every process."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))


def drawn(records: Sequence[T], limit: int | None) -> list[T]:
    """Return as many records as the limit, drawn from all of them, in the order of the draw; all in theirs without one.

    Files of questions are in the order of the articles that these are about: the first questions are about one. The
    draw depends on nothing but the number of records, and those of a smaller limit are the first of a larger one's.
    """
    if limit is None:
        return list(records)
    order = generator(len(records), 0).permutation(len(records))
    return [records[number] for number in order[:limit].tolist()]
