"""``python -m clara_jax.data inspect``: a record exactly as the model sees it, read from the batch that it makes."""

from __future__ import annotations

import argparse
import itertools
import os

import jax
import numpy as np

from clara_jax import command
from clara_jax.data.builders.source import RecordSource
from clara_jax.errors import ClaraError
from clara_jax.formats.base import open_base
from clara_jax.formats.jsonl import data_files
from clara_jax.input_pipeline.batches import Batch, Sequences, collate, plan_shapes
from clara_jax.input_pipeline.encoding import Encoding, encode_records
from clara_jax.input_pipeline.records import ALL_STAGES, Record, read_records
from clara_jax.input_pipeline.tokenization import IGNORED, ClaraTokenizer

LEARNED = ("\N{LEFT DOUBLE ANGLE BRACKET}", "\N{RIGHT DOUBLE ANGLE BRACKET}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``inspect``."""
    option = command.add_option
    parser.add_argument("stage", choices=ALL_STAGES)
    parser.add_argument("data", help="a JSONL file, or a data set's directory (its training records)")
    parser.add_argument("--number", type=int, default=0, metavar="N", help="which record, counted from 0 (default 0)")
    option(parser, "--tokenizer", "smollm2", default="smollm2")
    option(parser, "--doc-max-length", "256", default=256)
    option(parser, "--compress-rate", "16", default=16)
    parser.add_argument("--max-length", type=int, default=1024, metavar="N", help="of a prompt (default 1024)")
    option(parser, "--k", "5", default=5)
    command.add_renamed_option(parser, "--top-k", "--k", type=int)
    option(parser, "--candidates", "of end_to_end and retrieval; default: all")


def run(arguments: argparse.Namespace) -> None:
    """Print the record."""
    if arguments.compress_rate < 1 or arguments.doc_max_length % arguments.compress_rate:
        raise ClaraError(
            f"--compress-rate: {arguments.compress_rate} must divide --doc-max-length {arguments.doc_max_length}"
        )
    memory = arguments.doc_max_length // arguments.compress_rate
    tokenizer = ClaraTokenizer(
        open_base(arguments.tokenizer).load_tokenizer(),
        arguments.doc_max_length,
        memory,
        max_length=arguments.max_length,
    )
    record = _record(arguments.data, arguments.stage, arguments.number)
    encoding = Encoding(arguments.stage, arguments.k, arguments.candidates)
    (example,) = encode_records([record], tokenizer, encoding)
    batch = collate([example], plan_shapes([example], tokenizer, multiple=1), tokenizer)
    named = "" if record.qid == record.where else f" ({record.qid})"
    print(f"{record.where}{named}: {record.kind}")
    print("\n".join(lines(batch, tokenizer)))


def lines(batch: Batch, tokenizer: ClaraTokenizer, row: int = 0) -> list[str]:
    """Return a readable description of a row of a batch, line by line.

    A memory in the prompt is ``[memory of document 1]`` (of the ranked ones, where a question ranks); what carries loss
    stands in double angle brackets.
    """
    result = []
    assert isinstance(batch.documents, Sequences)  # a batch with documents as tokens
    rows = zip(batch.documents.ids[row], batch.documents.segment_ids[row], strict=True)
    for number, (ids, segment_ids) in enumerate(rows, 1):
        mask = segment_ids != 0
        if mask.any():
            positive = " (positive)" if batch.positives is not None and batch.positives[row, number - 1] else ""
            result.append(f"\ndocument {number}{positive}, {mask.sum()} tokens: {_text(ids[mask], tokenizer)}")
    ranks = batch.query is not None
    if batch.query is not None:
        mask = batch.query.segment_ids[row] != 0
        result.append(f"\nquestion, {mask.sum()} tokens: {_text(batch.query.ids[row][mask], tokenizer)}")
    prompt = jax.tree.map(lambda x: x[row], batch.prompt)
    attended, learned = prompt.segment_ids != 0, np.zeros(len(prompt.ids), bool)
    learned[prompt.label_positions[prompt.labels != IGNORED]] = True
    slots = np.where(prompt.memory_index >= 0, prompt.memory_index // tokenizer.memory_tokens, -1)
    runs = itertools.groupby(np.flatnonzero(attended), key=lambda t: (int(slots[t]), bool(learned[t])))
    text = ""
    for (slot, is_learned), places in runs:
        if slot >= 0:
            text += f"[memory of {'the document ranked' if ranks else 'document'} {slot + 1}]"
            continue
        part = tokenizer.decode(prompt.ids[list(places)], special=True)
        text += f"{LEARNED[0]}{part}{LEARNED[1]}" if is_learned else part
    result.append(f"\nprompt, {attended.sum()} tokens, {learned.sum()} with loss: {text}")
    return result


def _text(ids: np.ndarray | jax.Array, tokenizer: ClaraTokenizer) -> str:
    """Return the text of ids that end with the memory tokens."""
    return (
        f"{tokenizer.decode(ids[: -tokenizer.memory_tokens], special=True)} + {tokenizer.memory_tokens} memory tokens"
    )


def _record(data: str, stage: str, number: int) -> Record:
    if number < 0:
        raise ClaraError(f"--number: {number} must be at least 0")
    if os.path.isdir(data):
        found = RecordSource(data, "train")
    else:
        found = read_records(data_files([data], "data"), stage, number + 1)
    if number >= len(found):
        raise ClaraError(f"--number: {data} has {len(found)} records; there is none at {number}")
    return found[number]
