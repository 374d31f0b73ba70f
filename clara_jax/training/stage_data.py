"""A stage's records, from all kinds of sources, their tokens, and the batches made of them."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.data import synthetic
from clara_jax.data.builders.fingerprint import fingerprint, of_splits
from clara_jax.data.builders.schema import RECORD
from clara_jax.data.builders.source import RecordSource
from clara_jax.errors import ClaraError
from clara_jax.files import user_cache
from clara_jax.formats.jsonl import Rejects, data_files
from clara_jax.input_pipeline.batches import MemoryReader
from clara_jax.input_pipeline.buckets import Shapes, shape_ladder, without_texts
from clara_jax.input_pipeline.distinct import document_numbers, planned_counts
from clara_jax.input_pipeline.drawn import drawn
from clara_jax.input_pipeline.encoding import Encoding, Example, encode_records, sizes_of
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.mixture import ConcatExamples, Mixture
from clara_jax.input_pipeline.packing import RowCapacity, plan_row
from clara_jax.input_pipeline.rates import make_rate
from clara_jax.input_pipeline.records import TEXT_STAGES, Record, read_records
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.token_cache import TokenCache, open_or_make, slices
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.input_pipeline.windows import START, cut_records
from clara_jax.model.sharding import batch_shards, local_parts, local_rows
from clara_jax.training.config import RunConfig
from clara_jax.training.corpus_search import CorpusSearch, DrawnExamples, check_searchable
from clara_jax.training.stage_config import QUESTIONS, StageConfig, entry_kind
from clara_jax.training.stopping import StopSignal
from clara_jax.training.stored_memories import open_memories

SYNTHETIC = "synthetic:"
T = TypeVar("T")
TRAIN, HELD_OUT = "data.train", "evaluation.data"  # the fields that name records
SPLITS = {TRAIN: "train", HELD_OUT: "eval"}  # of a data set that was built, by the field that names it


@dataclasses.dataclass(frozen=True)
class StageRecords:
    """A stage's records; those of a data set that was built stay on disk.

    Attributes:
      train: in parts, one after another: one for each entry of ``data.train`` where these have weights.
      rejected: lines of their files that are no records.
    """

    train: tuple[Sequence[Record], ...]
    held_out: Sequence[Record]
    rejected: int

    @staticmethod
    def read(config: RunConfig, stage: StageConfig, rejects: Rejects | None = None) -> StageRecords:
        """Read the records of a stage.

        Args:
          config: the run's.
          stage: the stage's.
          rejects: takes lines that are no records of the stage; None: the first one is an error.

        Raises:
          ClaraError: a file or data set that cannot be read; a line that is not a record of the stage.
        """
        before = rejects.count if rejects else 0
        data, held = stage.data, stage.evaluation
        groups = [(name,) for name in data.train] if data.weights else [data.train]
        train = [part for names in groups for part in _read(config, stage, TRAIN, names, data.limit, rejects)]
        held_out = _read(config, stage, HELD_OUT, held.data, held.limit, rejects)
        built = [part.rejected for part in (*train, *held_out) if isinstance(part, RecordSource)]
        rejected = sum(built) + (rejects.count - before if rejects else 0)
        return StageRecords(tuple(train), [record for part in held_out for record in part], rejected)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of both splits, of their contents alone."""
        return {"train": _fingerprint(self.train), "eval": _fingerprint([self.held_out])}


def _fingerprint(parts: Sequence[Sequence[Record]]) -> str:
    each = [part.fingerprint if isinstance(part, RecordSource) else fingerprint(part, RECORD) for part in parts]
    return each[0] if len(each) == 1 else of_splits({f"{number:06}": value for number, value in enumerate(each)})


def _read(
    config: RunConfig,
    stage: StageConfig,
    field: str,
    names: Sequence[str],
    limit: int | None,
    rejects: Rejects | None,
) -> list[Sequence[Record]]:
    """Return the records of a field's entries, in as few parts as leave built data sets on disk.

    Of a limited number of training records, the first are taken, and the rest is not read; held-out ones are drawn.
    """
    take, reading = (drawn, None) if field == HELD_OUT else (_first, limit)
    made = [name for name in names if name.startswith(SYNTHETIC)]
    built = [name for name in names if name not in made and os.path.isdir(os.path.expanduser(name))]
    patterns = [name for name in names if name not in (*made, *built) and entry_kind(name)[0] is None]
    sources: list[RecordSource[Record]] = [_open(stage, field, name) for name in built]
    found: list[Record] = []
    for name in made:
        found += synthetic.records(config.synthetic, stage.kind, name.removeprefix(SYNTHETIC))
    if limit is not None:
        for source in sources:
            found += source.__getitems__(take(range(len(source)), limit))
        sources = []
    if patterns:
        found += read_records(data_files(patterns, f"config.{stage.name}.{field}"), stage.kind, reading, rejects)
    found = take(found, limit)
    for kind, pattern in map(entry_kind, names):
        if kind is None:
            continue
        files = data_files([pattern], f"config.{stage.name}.{field}")
        if kind == QUESTIONS:
            found += take(single_questions(read_records(files, "scp", reading, rejects)), limit)
        else:
            found += take(read_records(files, kind, reading, rejects), limit)
    return [*([found] if found or not sources else []), *sources]


def _first(records: Sequence[T], limit: int | None) -> list[T]:
    return list(records[:limit])


def _open(stage: StageConfig, field: str, name: str) -> RecordSource[Record]:
    """Open a data set that was built, if it is one for the stage."""
    source: RecordSource[Record] = RecordSource(name, SPLITS[field])
    if (source.stage == "scp") != (stage.kind == "scp") or source.stage == "corpus" or stage.kind in TEXT_STAGES:
        raise ClaraError(
            f"config.{stage.name}.{field}: {source.directory} was built for {source.stage}; build one for {stage.kind}"
        )
    if stage.kind == "retrieval" and not source.with_positives:
        raise ClaraError(
            f"config.{stage.name}.{field}: no record of {source.directory} names a positive document; retrieval learns "
            "from documents that are marked as positive"
        )
    return source


@dataclasses.dataclass(frozen=True)
class StageData:
    """A stage's records, tokenized.

    Attributes:
      sizes: of the training examples, see `clara_jax.input_pipeline.buckets`.
      ladder: the shapes of their batches; the step is compiled for each.
      row: the packed rows that several of them share; None where each example is one row.
      encoding: how records became tokens.
      mixture: of the parts that they come from; None where all are one set.
      rejected: lines that are no records.
    """

    encoding: Encoding
    examples: Sequence[Example]
    sizes: np.ndarray
    ladder: tuple[Shapes, ...]
    row: RowCapacity | None
    mixture: Mixture | None
    held_out: Sequence[Example]
    held_out_records: Sequence[Record]
    rejected: int

    @property
    def documents(self) -> list[np.ndarray]:
        """The documents of all examples, held-out ones among them, as token ids; equal ones of a file once."""
        return [ids for examples in (self.examples, self.held_out) for ids in _documents(examples)]

    @staticmethod
    def encode(config: RunConfig, stage: StageConfig, bundle: Bundle, records: StageRecords) -> StageData:
        """Tokenize a stage's records, and plan the shapes of its batches."""
        # Held-out records are formed as the training records are, positives kept among the candidates: the loss on
        # them is the training objective on what was not trained on.
        encoding = Encoding(
            stage.kind, stage.topk.k, stage.topk.candidates, config.seed, documents=stage.data.documents
        )
        # Each section of a run draws other windows from the passages that they share.
        seed = zlib.crc32(f"{config.seed} {stage.name}".encode())
        held_out_records = cut_records(records.held_out, bundle.tokenizer, stage.data.crop, config.seed)
        held_out = encode_records(held_out_records, bundle.tokenizer, encoding)
        train = [_cut(stage, bundle.tokenizer, part, seed) for part in records.train]
        parts = [_encode(config, stage, bundle.tokenizer, encoding, part) for part in train]
        examples = parts[0] if len(parts) == 1 else ConcatExamples(parts)
        sizes = np.concatenate([part.sizes if isinstance(part, TokenCache) else sizes_of(part) for part in parts])
        mixture = Mixture(tuple(map(len, parts)), stage.data.weights) if stage.data.weights else None
        if stage.data.memories:
            sizes = without_texts(sizes)
        if stage.topk.search_every:  # which fills each record's candidates up
            check_searchable(stage, examples)
            sizes[:, 0] = stage.topk.candidates
        ladder = shape_ladder(sizes, bundle.tokenizer, stage.data.buckets)
        row = plan_row(sizes, bundle.tokenizer.memory_tokens, stage.data.pack) if stage.data.pack else None
        if config.reporting.progress:
            counted = f"{len(examples)} training records, {len(held_out)} held-out ones"
            print(f"{stage.name}: {counted}; {row or ', '.join(map(str, ladder))}", file=sys.stderr, flush=True)
        facts = (sizes, ladder, row, mixture, held_out, held_out_records, records.rejected)
        return StageData(encoding, examples, *facts)


@dataclasses.dataclass(frozen=True)
class StageBatches:
    """The batches of a stage.

    Attributes:
      loader: makes the batch of a step.
      at_rates: the model at each rate that a batch may have, by the loader's numbers of them.
      memories: of the stage's documents, where they were compressed before.
      processes: rows of a batch over those of this process. What it counts in its rows is taken to be as much in those
        of every other process.
      search: of the candidates, where they come from the whole corpus.
    """

    loader: BatchLoader
    at_rates: tuple[Bundle, ...]
    memories: MemoryReader | None
    processes: float
    search: CorpusSearch | None

    @staticmethod
    def plan(
        config: RunConfig,
        workdir: Path,
        number: int,
        bundle: Bundle,
        data: StageData,
        steps: int,
        stop: StopSignal,
    ) -> StageBatches:
        """Plan the batches of a run's stage; where it has stored memories, documents without one are compressed first.

        Raises:
          ClaraError: memories of another compressor, or that cannot be read or written.
          Stopped: ``stop`` was set meanwhile; the memories of the finished documents are kept.
        """
        stage, mesh, tokenizer = config.stages[number], bundle.mesh, bundle.tokenizer
        seed = config.seed + number
        plan = BatchPlan(data.sizes, data.ladder, stage.optimizer.batch_size, steps, seed, data.mixture)
        multiple = stage.optimizer.accumulate * batch_shards(mesh)
        memories = distinct = search = None
        examples = data.examples
        if stage.data.memories:
            memories = open_memories(stage, bundle, data.documents, stop, config.reporting.progress, workdir)
            if stage.topk.search_every:
                examples = DrawnExamples(examples)
                search = CorpusSearch(stage, bundle, examples, data.held_out, memories)
        elif stage.ranks:
            distinct = planned_counts(plan, document_numbers(data.examples), multiple)
        length = bundle.model.clara.doc_max_length
        further = tuple(bundle.with_memories(length, rate) for rate in stage.data.further_rates)
        rates = [make_rate(data.sizes, data.ladder, tokenizer, at_rate.tokenizer) for at_rate in further]
        loader = BatchLoader(
            plan,
            examples,
            data.sizes,
            tokenizer,
            data.row,
            multiple,
            functools.partial(local_rows, mesh=mesh),
            memories,
            distinct,
            rates,
        )
        processes = batch_shards(mesh) / len(local_parts(mesh))
        return StageBatches(loader, (bundle, *further), memories, processes, search)


def _cut(stage: StageConfig, tokenizer: ClaraTokenizer, records: Sequence[Record], seed: int) -> Sequence[Record]:
    """Return the records with passages and, where the stage has a ``data.crop``, documents cut to windows."""
    if not isinstance(records, RecordSource):
        return cut_records(records, tokenizer, stage.data.crop, seed)
    if stage.data.crop != START:
        raise ClaraError(
            f"config.{stage.name}.data.crop is {stage.data.crop!r}, but {records.directory} is a data set that was "
            "built, whose tokens are kept on disk; name the JSONL files that it was built from"
        )
    return records


def single_questions(records: Sequence[Record]) -> list[Record]:
    """Return a record for each question of scp records, with the document as its positive one."""
    return [
        Record("question", record.documents, (question,), (answer,), (answer,), (0,), record.where, record.qid)
        for record in records
        for question, answer in zip(record.questions, record.answers, strict=False)
    ]


def _encode(
    config: RunConfig, stage: StageConfig, tokenizer: ClaraTokenizer, encoding: Encoding, records: Sequence[Record]
) -> Sequence[Example]:
    """Return the tokens of a part; those of a data set that was built are kept on disk."""
    if not isinstance(records, RecordSource):
        return encode_records(records, tokenizer, encoding)
    folder = Path(config.token_cache or user_cache() / "tokens").expanduser()
    progress = _progress(stage.name, len(records)) if config.reporting.progress else None
    return open_or_make(folder, slices(records), records.fingerprint, tokenizer, encoding, progress)


def _documents(examples: Sequence[Example]) -> Iterable[np.ndarray]:
    if isinstance(examples, ConcatExamples):
        return chain.from_iterable(map(_documents, examples.parts))
    if isinstance(examples, TokenCache):
        return examples.documents()
    return {id(ids): ids for example in examples for ids in example.documents}.values()


def _progress(name: str, total: int) -> Callable[[int], None]:
    """Make a function that prints the progress of tokenization every few seconds."""
    began = printed = time.monotonic()

    def report(done: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed > 5 or done == total:
            printed, left = now, (now - began) / done * (total - done)
            print(f"{name}: {done:,} of {total:,} records tokenized, {left:.0f} s left", file=sys.stderr, flush=True)

    return report
