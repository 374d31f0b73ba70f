"""A stage's records: read, and tokenized into one shape."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from clara_jax.bundle import Bundle
from clara_jax.data import synthetic
from clara_jax.data.batches import Example, encode_records, sizes_of
from clara_jax.data.jsonl import data_files
from clara_jax.data.packing import Row, plan_row
from clara_jax.data.records import Record, read_records
from clara_jax.data.shapes import Shapes, shape_ladder
from clara_jax.training.config import RunConfig, StageConfig

SYNTHETIC = "synthetic:"


@dataclasses.dataclass(frozen=True)
class StageRecords:
    """A stage's records, as they were read."""

    train: Sequence[Record]
    held_out: Sequence[Record]

    @staticmethod
    def read(config: RunConfig, stage: StageConfig) -> StageRecords:
        def records(field: str, limit: int | None) -> list[Record]:
            made = [name for name in getattr(stage, field) if name.startswith(SYNTHETIC)]
            patterns = [name for name in getattr(stage, field) if name not in made]
            found: list[Record] = []
            for name in made:
                found += synthetic.records(config.synthetic, stage.name, name.removeprefix(SYNTHETIC))
            if patterns:
                found += read_records(data_files(patterns, f"config.{stage.name}.{field}"), stage.name, limit)
            return found[:limit]

        return StageRecords(records("train_data", stage.train_limit), records("eval_data", stage.eval_limit))


@dataclasses.dataclass(frozen=True)
class StageData:
    """A stage's records, tokenized.

    Attributes:
      sizes: of the training examples, see `clara_jax.data.shapes`.
      ladder: the shapes of their batches; the step is compiled for each.
      row: the rows that several of them share; None where each has its own.
    """

    examples: Sequence[Example]
    sizes: np.ndarray
    ladder: tuple[Shapes, ...]
    row: Row | None
    held_out: Sequence[Example]
    held_out_records: Sequence[Record]

    @staticmethod
    def encode(config: RunConfig, stage: StageConfig, bundle: Bundle, records: StageRecords) -> StageData:
        def encode(own: Sequence[Record]) -> list[Example]:
            # Held-out records are formed as the training records are, positives kept among the candidates: the loss on
            # them is the training objective on what was not trained on.
            return encode_records(own, bundle.tokenizer, stage.name, stage.top_k, stage.candidates, config.seed)

        examples, held_out = encode(records.train), encode(records.held_out)
        sizes = sizes_of(examples)
        ladder = shape_ladder(sizes, bundle.tokenizer, stage.buckets)
        row = plan_row(sizes, bundle.tokenizer.memory_tokens, stage.pack) if stage.pack else None
        if config.progress:
            counted = f"{len(examples)} training records, {len(held_out)} held-out ones"
            print(f"{stage.name}: {counted}; {row or ', '.join(map(str, ladder))}", file=sys.stderr, flush=True)
        return StageData(examples, sizes, ladder, row, held_out, records.held_out)
