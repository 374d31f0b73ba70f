"""Which records a measurement is of that is not of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def drawn(records: Sequence[T], limit: int | None) -> list[T]:
    """Return as many records as the limit, drawn from all of them, in the order of the draw; all in theirs without one.

    Files of questions are in the order of the articles that these are about: the first questions are about one. The
    draw depends on nothing but the number of records, and those of a smaller limit are the first of a larger one's.
    """
    if limit is None:
        return list(records)
    order = np.random.Generator(np.random.Philox(key=len(records))).permutation(len(records))
    return [records[number] for number in order[:limit].tolist()]
