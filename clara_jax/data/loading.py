"""A stage's batches by step, made ahead of time in threads while the device computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from clara_jax.data.batches import Batch, Memories, collate
from clara_jax.data.encoding import Example
from clara_jax.data.packing import Row, collate_packed, needs, pack, row_count
from clara_jax.data.plan import BatchPlan
from clara_jax.data.tokenization import ClaraTokenizer

AHEAD = 2  # batches made before they are asked for


class BatchLoader:
    """Makes the batch of any step from what the plan says; it has no position of its own.

    Each of several processes plans the whole batch, which costs little, and makes its own part of the rows.

    Args:
      examples: of the stage, by the plan's indices.
      sizes: of the examples, see `clara_jax.data.shapes`.
      row: pack the examples of a step into such rows; None gives each a row of its own.
      row_multiple: what the rows of a packed batch must divide by: microbatches times devices of the data axis.
      process_index, process_count: this process, of how many.
      memories: of documents that were compressed before; the batches hold them instead of tokens.
    """

    def __init__(
        self,
        plan: BatchPlan,
        examples: Sequence[Example],
        sizes: np.ndarray,
        tokenizer: ClaraTokenizer,
        row: Row | None = None,
        row_multiple: int = 1,
        process_index: int = 0,
        process_count: int = 1,
        memories: Memories | None = None,
    ):
        self.plan, self._examples, self._sizes, self._tokenizer = plan, examples, sizes, tokenizer
        self._row, self._multiple = row, math.lcm(row_multiple, process_count)
        self._process_index, self._process_count, self._memories = process_index, process_count, memories
        if row is not None:
            need = needs(sizes, tokenizer.memory_tokens).mean(axis=0) * plan.batch_size
            self._expected_rows = max(float(need[0]) / row.documents, float(need[1]) / row.prompts)

    def examples(self, step: int) -> list[Example]:
        """What the step's batch holds, over all processes."""
        return [self._examples[place] for place in self.plan.rows(step)]

    def batch(self, step: int) -> Batch:
        """This process's rows of the step's batch."""
        if self._row is None:
            own = self.plan.process_rows(step, self._process_index, self._process_count)
            examples = [self._examples[place] for place in own]
            return collate(examples, self.plan.shapes(step), self._tokenizer, memories=self._memories)
        planned = self.plan.rows(step)
        rows = pack(self._sizes[planned], self._tokenizer.memory_tokens, self._row)
        share = row_count(len(rows), self._expected_rows, self._multiple) // self._process_count
        own = rows[self._process_index * share : (self._process_index + 1) * share]
        chosen = [[self._examples[planned[place]] for place in places] for places in own]
        return collate_packed(chosen, share, self._row, self._tokenizer)

    def ahead(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps from ``start`` up to ``stop``, some made before they are asked for."""
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        return iter(grain.MapDataset.range(start, stop).map(self.batch).to_iter_dataset(options))
