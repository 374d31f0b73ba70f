"""Which examples make up the batch of a step, and in which shape: a pure function of seed, step and the index of sizes.

Every process plans the global batch and reads its slice, so the order does not depend on the number of processes, and
the position in the data is the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.buckets import Shapes, levels
from clara_jax.input_pipeline.drawn import generator
from clara_jax.input_pipeline.mixture import Mixture

WINDOW = 64  # batches that are sorted by size together
# Where random numbers begin: of windows; of the epochs of each set after the first, which begin at 0.
_WINDOWS, _SETS = 2**63, 2**40


class BatchPlan:
    """The batches of a stage.

    Epochs follow each other without a gap, each another permutation, so that every batch is full. Of this stream, the
    examples of each window of steps are sorted by size and split into batches, whose order is shuffled again: a batch
    holds examples of about one size, and an epoch every example once.

    Args:
      sizes: of the examples, see `clara_jax.input_pipeline.buckets`.
      ladder: the shapes of batches, each within the next.
      batch_size: B, over all processes.
      steps: of the stage; the last window ends there, so that no example is left for a step that never comes.
      seed: of the order.
      mixture: of sets of examples, in the order of ``sizes``; each set then has separate epochs. Default: one set.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        ladder: Sequence[Shapes],
        batch_size: int,
        steps: int,
        seed: int = 0,
        mixture: Mixture | None = None,
    ):
        if len(sizes) < 1 or batch_size < 1:
            raise ClaraError(f"{len(sizes)} examples in batches of {batch_size}: both must be at least 1")
        if not 0 <= seed < 2**64:
            raise ClaraError(f"seed: {seed!r} must be from 0 to 2^64 - 1")
        self.ladder, self.batch_size, self.steps, self.seed = tuple(ladder), batch_size, steps, seed
        self._mixture = mixture or Mixture((len(sizes),), (1.0,))
        if sum(self._mixture.counts) != len(sizes):
            raise ValueError(f"a mixture of {self._mixture.counts} examples where there are {len(sizes)}")
        self._levels = levels(sizes, self.ladder)
        # Within a level, long with long: few batches then have space left of the level's width.
        self._length = sizes[:, 1:].sum(axis=1, dtype=np.int64)
        # An example should meet others of its epoch, not itself in the next one.
        self._window = 1 if len(self.ladder) == 1 else max(1, min(WINDOW, len(sizes) // batch_size))
        self._batches = lru_cache(maxsize=2)(self._plan_window)

    def rows(self, step: int) -> np.ndarray:
        """Return the indices of the examples of a step, from 0 below ``steps``; int64 [B]."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} of {self.steps}")
        window, within = divmod(step, self._window)
        return self._batches(window)[within]

    def shapes(self, step: int) -> Shapes:
        """Return the shape of the step's batch: the first of the ladder that holds all of its examples."""
        return self.ladder[self.level(step)]

    def level(self, step: int) -> int:
        """Return the place in the ladder of the shape of the step's batch."""
        return int(np.max(self._levels[self.rows(step)]))

    def _plan_window(self, window: int) -> np.ndarray:
        """Return the indices of the examples of a window's steps; int64 [steps of the window, B]."""
        first = window * self._window
        last = min(first + self._window, self.steps)
        stream = self._stream(first * self.batch_size, last * self.batch_size)
        if last - first > 1:
            order = np.lexsort((self._length[stream], self._levels[stream]))
            batches = stream[order].reshape(-1, self.batch_size)
            return generator(self.seed, _WINDOWS + window).permutation(batches)
        return stream[None]

    def _stream(self, start: int, stop: int) -> np.ndarray:
        """Return the examples at places of the endless stream: draws from sets, each set in its epochs."""
        source, drawn = self._mixture.draws(start, stop)
        counts = np.array(self._mixture.counts)
        epochs, within = np.divmod(drawn, counts[source])
        result = np.empty_like(within)
        for number, epoch in set(zip(source.tolist(), epochs.tolist(), strict=True)):
            here = (source == number) & (epochs == epoch)
            before = int(counts[:number].sum())
            result[here] = before + _permutation(int(counts[number]), self.seed, number * _SETS + epoch)[within[here]]
        return result


@lru_cache(maxsize=64)
def _permutation(length: int, seed: int, number: int) -> np.ndarray:
    permutation = generator(seed, number).permutation(length)
    permutation.flags.writeable = False  # the cached array itself is handed out
    return permutation
