"""``python -m clara_jax.data passages``: windows of passages as records of the stages that learn from text alone."""

from __future__ import annotations

import argparse

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import check_output, data_files, write_json_lines
from clara_jax.input_pipeline.records import TEXT_STAGES, read_records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``passages``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help='JSONL with a passage in "text"; .gz, .zst, globs')
    command.add_option(parser, "--output", "records", required=True, metavar="FILE.jsonl")
    parser.add_argument("--kind", choices=TEXT_STAGES, default=TEXT_STAGES[0], help="(default %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="of a window (default 64)")
    command.add_option(parser, "--seed")
    command.add_option(parser, "--limit", "of the passages; default: all")
    command.add_option(parser, "--tokenizer", "smollm2", default="smollm2")


def run(arguments: argparse.Namespace) -> None:
    """Write one window of each passage."""
    for name in ("tokens", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ClaraError(f"--{name}: {value} must be at least 1")
    if not 0 <= arguments.seed < 2**64:
        raise ClaraError(f"--seed: {arguments.seed} must be from 0 to 2^64 - 1")
    from clara_jax.formats.base import open_base
    from clara_jax.input_pipeline.tokenization import ClaraTokenizer
    from clara_jax.input_pipeline.windows import START, cut_records

    files = data_files(arguments.files, "passages")
    check_output(arguments.output, files)
    records = read_records(files, arguments.kind, arguments.limit)
    tokenizer = ClaraTokenizer(open_base(arguments.tokenizer).load_tokenizer(), arguments.tokens, memory_tokens=1)
    windows = cut_records(records, tokenizer, START, arguments.seed)
    with write_json_lines(arguments.output) as write:
        for record in windows:
            fields: dict[str, object] = {"docs": list(record.documents)}
            if arguments.kind == "continue":
                fields["answer"] = record.answers[0]
            write(fields)
    left_out = f"; {len(records) - len(windows)} were too short" if len(windows) < len(records) else ""
    print(f"{arguments.output}: {len(windows)} windows of {len(records)} passages{left_out}")
