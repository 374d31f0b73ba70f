"""Several sets of examples as one, each drawn from in proportion to its weight."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.encoding import Example


@dataclasses.dataclass(frozen=True)
class Mixture:
    """An endless stream of draws from sets of examples; a pure function of the place in it.

    Draws are spread evenly: among the first n, a set with the share w of all weights has n w of them, give or take one
    for each set.

    Attributes:
      counts: examples of each set.
      weights: of each set, relative to one another.

    Raises:
      ClaraError: an empty set, a weight that is not positive, not as many weights as sets.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if len(self.counts) != len(self.weights) or not self.counts:
            raise ClaraError(f"{len(self.counts)} sets of examples with {len(self.weights)} weights; give each one")
        if min(self.counts) < 1 or not 0 < min(self.weights) <= max(self.weights) < np.inf:
            raise ClaraError(f"sets of {self.counts} examples with weights {self.weights}: all must be positive")

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the draws at places ``start`` to ``stop``.

        Returns:
          the set of each draw, and how often that set was drawn from before; int64 [N].
        """
        shares = np.array(self.weights) / np.sum(self.weights)
        sets = len(shares)
        # The j-th draw from a set of share w is due at the time (j + 1/2) / w. Until a time t, t draws are due, give or
        # take half of one for each set: those looked for lie between these two times.
        first, last = (self._due_before(shares, time) for time in (start - sets, stop + sets))
        source = np.repeat(np.arange(sets), last - first)
        number = np.concatenate([np.arange(*ends) for ends in zip(first, last, strict=True)])
        order = np.lexsort((source, _due(number, shares[source])))
        here = order[start - first.sum() : stop - first.sum()]
        return source[here], number[here]

    @staticmethod
    def _due_before(shares: np.ndarray, time: int) -> np.ndarray:
        """Return the number of draws from each set that are due before a time; int64."""
        count = np.maximum(np.ceil(shares * time - 0.5), 0).astype(np.int64)
        # The product and the quotient may round to different sides of a whole number.
        count += _due(count, shares) < time
        return count - ((count > 0) & (_due(count - 1, shares) >= time))


def _due(number: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return (number + 0.5) / shares


class ConcatExamples(Sequence[Example]):
    """Sets of examples one after another, numbered consecutively."""

    def __init__(self, parts: Sequence[Sequence[Example]]):
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        return dataclasses.replace(self.parts[number][int(index) - start], index=int(index))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))
