"""``python -m clara_jax.data inspect``: a record exactly as the model sees it."""

from __future__ import annotations

import argparse
import os

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import data_files
from clara_jax.input_pipeline.records import ALL_STAGES, Record, read_records


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
    # Not at the top: --help should not wait for JAX.
    from clara_jax.data.inspection import lines
    from clara_jax.formats.base import open_base
    from clara_jax.input_pipeline.batches import collate, plan_shapes
    from clara_jax.input_pipeline.encoding import Encoding, encode_records
    from clara_jax.input_pipeline.tokenization import ClaraTokenizer

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


def _record(data: str, stage: str, number: int) -> Record:
    if number < 0:
        raise ClaraError(f"--number: {number} must be at least 0")
    if os.path.isdir(data):
        from clara_jax.data.builders.source import RecordSource

        found = RecordSource(data, "train")
    else:
        found = read_records(data_files([data], "data"), stage, number + 1)
    if number >= len(found):
        raise ClaraError(f"--number: {data} has {len(found)} records; there is none at {number}")
    return found[number]
