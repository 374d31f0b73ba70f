"""A stage's records, wherever they come from, and their tokens."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from clara_jax.bundle import Bundle
from clara_jax.data import synthetic
from clara_jax.data.builders.fingerprint import fingerprint
from clara_jax.data.builders.schema import RECORD
from clara_jax.data.builders.source import RecordSource
from clara_jax.data.encoding import Encoding, Example, encode_records, sizes_of
from clara_jax.data.jsonl import data_files
from clara_jax.data.packing import Row, plan_row
from clara_jax.data.records import Record, read_records
from clara_jax.data.shapes import Shapes, shape_ladder, without_texts
from clara_jax.data.token_cache import TokenCache, open_or_make, slices
from clara_jax.errors import ClaraError
from clara_jax.training.config import RunConfig, StageConfig

SYNTHETIC = "synthetic:"
SPLITS = {"train_data": "train", "eval_data": "eval"}  # of a data set that was built, by the field that names it


@dataclasses.dataclass(frozen=True)
class StageRecords:
    """A stage's records; those of a data set that was built stay on disk."""

    train: Sequence[Record]
    held_out: Sequence[Record]

    @staticmethod
    def read(config: RunConfig, stage: StageConfig) -> StageRecords:
        """
        Raises:
          ClaraError: a file or data set that cannot be read; a line that is not a record of the stage.
        """
        train = _read(config, stage, "train_data", stage.train_limit)
        return StageRecords(train, list(_read(config, stage, "eval_data", stage.eval_limit)))

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of both splits: what they say, wherever it stands."""
        return {
            split: own.fingerprint if isinstance(own, RecordSource) else fingerprint(own, RECORD)
            for split, own in (("train", self.train), ("eval", self.held_out))
        }


def _read(config: RunConfig, stage: StageConfig, field: str, limit: int | None) -> Sequence[Record]:
    names = getattr(stage, field)
    built = [name for name in names if not name.startswith(SYNTHETIC) and os.path.isdir(os.path.expanduser(name))]
    if len(names) == 1 and built and limit is None:
        return _open(stage, field, names[0])
    made = [name for name in names if name.startswith(SYNTHETIC)]
    patterns = [name for name in names if name not in made and name not in built]
    found: list[Record] = []
    for name in made:
        found += synthetic.records(config.synthetic, stage.name, name.removeprefix(SYNTHETIC))
    for name in built:
        source = _open(stage, field, name)
        found += source.__getitems__(range(len(source))[:limit])
    if patterns:
        found += read_records(data_files(patterns, f"config.{stage.name}.{field}"), stage.name, limit)
    return found[:limit]


def _open(stage: StageConfig, field: str, name: str) -> RecordSource:
    """A data set that was built, if it is one for the stage."""
    source = RecordSource(name, SPLITS[field])
    if (source.stage == "scp") != (stage.name == "scp") or source.stage == "corpus":
        raise ClaraError(
            f"config.{stage.name}.{field}: {source.directory} was built for {source.stage}; build one for {stage.name}"
        )
    if stage.name == "retrieval" and not source.with_positives:
        raise ClaraError(
            f"config.{stage.name}.{field}: no record of {source.directory} names a positive document; retrieval learns "
            "from documents that are marked as positive"
        )
    return source


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

    @property
    def documents(self) -> list[np.ndarray]:
        """The documents of all examples, held-out ones among them, as token ids; equal ones of a file once."""
        return [ids for examples in (self.examples, self.held_out) for ids in _documents(examples)]

    @staticmethod
    def encode(config: RunConfig, stage: StageConfig, bundle: Bundle, records: StageRecords) -> StageData:
        # Held-out records are formed as the training records are, positives kept among the candidates: the loss on
        # them is the training objective on what was not trained on.
        encoding = Encoding(stage.name, stage.top_k, stage.candidates, config.seed)
        held_out = encode_records(records.held_out, bundle.tokenizer, encoding)
        if isinstance(records.train, RecordSource):
            folder = Path(config.token_cache or _cache_folder()).expanduser()
            progress = _progress(stage.name, len(records.train)) if config.progress else None
            found = (slices(records.train), records.train.fingerprint, bundle.tokenizer, encoding, progress)
            examples = open_or_make(folder, *found)
            sizes = examples.sizes
        else:
            examples = encode_records(records.train, bundle.tokenizer, encoding)
            sizes = sizes_of(examples)
        if stage.memories:
            sizes = without_texts(sizes)
        ladder = shape_ladder(sizes, bundle.tokenizer, stage.buckets)
        row = plan_row(sizes, bundle.tokenizer.memory_tokens, stage.pack) if stage.pack else None
        if config.progress:
            counted = f"{len(examples)} training records, {len(held_out)} held-out ones"
            print(f"{stage.name}: {counted}; {row or ', '.join(map(str, ladder))}", file=sys.stderr, flush=True)
        return StageData(examples, sizes, ladder, row, held_out, records.held_out)


def _documents(examples: Sequence[Example]) -> Iterable[np.ndarray]:
    if isinstance(examples, TokenCache):
        return examples.documents()
    return {id(ids): ids for example in examples for ids in example.documents}.values()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clara_jax" / "tokens"


def _progress(name: str, total: int) -> Callable[[int], None]:
    """Says how far the tokens are, every few seconds."""
    began = said = time.monotonic()

    def say(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > 5 or done == total:
            said, left = now, (now - began) / done * (total - done)
            print(f"{name}: {done:,} of {total:,} records tokenized, {left:.0f} s left", file=sys.stderr, flush=True)

    return say
