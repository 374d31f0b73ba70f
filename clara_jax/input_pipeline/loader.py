"""A stage's batches by step, made ahead of time in threads while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import jax
import numpy as np

from clara_jax.input_pipeline.batches import Batch, MemoryReader, collate
from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.input_pipeline.encoding import Example
from clara_jax.input_pipeline.packing import RowCapacity, collate_packed, needs, pack, row_count
from clara_jax.input_pipeline.rates import Rate, rate_of, with_fewer
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.tokenization import ClaraTokenizer

AHEAD = 2  # batches made before they are asked for


class BatchLoader:
    """A maker of the batch of any step from a plan; it has no position.

    Each of several processes plans the whole batch, which costs little, and makes the rows that it needs.

    Args:
      plan: which examples a step has, and in which shape.
      examples: of the stage, by the plan's indices.
      sizes: of the examples, see `clara_jax.input_pipeline.buckets`.
      tokenizer: of the stage, with its number of memory tokens.
      row: pack the examples of a step into such rows; None gives each a row to itself.
      row_multiple: the divisor of a packed batch's number of rows: microbatches times parts that a batch is split into.
      local_rows: number of rows -> which of them this process makes, in order; by default all.
      memories: of documents that were compressed before; the batches hold them instead of tokens.
      distinct: of each shape, how many distinct documents a batch has room for
        (`clara_jax.input_pipeline.distinct`), where each is to be in a batch once; all processes then read all of the
        batch's documents, and each keeps its part of them.
      further_rates: what batches may have besides the tokenizer's number of memory tokens (`rate`).
    """

    def __init__(
        self,
        plan: BatchPlan,
        examples: Sequence[Example],
        sizes: np.ndarray,
        tokenizer: ClaraTokenizer,
        row: RowCapacity | None = None,
        row_multiple: int = 1,
        local_rows: Callable[[int], np.ndarray] = np.arange,
        memories: MemoryReader | None = None,
        distinct: Mapping[Shapes, int] | None = None,
        further_rates: Sequence[Rate] = (),
    ):
        self.plan, self._examples, self._sizes, self._tokenizer = plan, examples, sizes, tokenizer
        self._row, self._multiple, self._local_rows, self._memories = row, row_multiple, local_rows, memories
        self._distinct, self._rates = distinct, (Rate(tokenizer, plan.ladder), *further_rates)
        if row is not None:
            need = needs(sizes, tokenizer.memory_tokens).mean(axis=0) * plan.batch_size
            self._expected_rows = max(float(need[0]) / row.documents, float(need[1]) / row.prompts)

    def examples(self, step: int) -> list[Example]:
        """Return the examples of the step's batch, over all processes."""
        return [self._examples[place] for place in self.plan.rows(step)]

    def rate(self, step: int) -> int:
        """Return the index of the step's compress rate: 0 for the tokenizer's, then the further ones."""
        return 0 if len(self._rates) == 1 else rate_of(step, len(self._rates), self.plan.seed)

    def batch(self, step: int) -> Batch:
        """Make this process's rows of the step's batch."""
        if self._distinct is not None:
            shapes = self.plan.shapes(step)
            whole = collate(self.examples(step), shapes, self._tokenizer, distinct=self._distinct[shapes])
            return jax.tree.map(lambda x: x[self._local_rows(len(x))], whole)
        if self._row is None:
            examples = [self._examples[place] for place in self.plan.rows(step)[self._local_rows(self.plan.batch_size)]]
            tokenizer, ladder = self._rates[self.rate(step)]
            if tokenizer is not self._tokenizer:
                counts = self._tokenizer.memory_tokens, tokenizer.memory_tokens
                examples = [with_fewer(example, *counts) for example in examples]
            return collate(examples, ladder[self.plan.level(step)], tokenizer, memories=self._memories)
        planned = self.plan.rows(step)
        rows = pack(self._sizes[planned], self._tokenizer.memory_tokens, self._row)
        local = self._local_rows(row_count(len(rows), self._expected_rows, self._multiple))
        filled = local[local < len(rows)].tolist()
        chosen = [[self._examples[int(planned[place])] for place in rows[number]] for number in filled]
        return collate_packed(chosen, len(local), self._row, self._tokenizer)

    def ahead(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps from ``start`` up to ``stop``, some made before they are asked for."""
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        return iter(grain.MapDataset.range(start, stop).map(self.batch).to_iter_dataset(options))
