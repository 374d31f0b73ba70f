"""``python -m clara_jax.data documents``: the documents of records as a corpus, each once."""

from __future__ import annotations

import argparse

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import check_output, data_files, parse_lines, write_json_lines
from clara_jax.input_pipeline.records import parse_documents
from clara_jax.text.documents import text_id


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``documents``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSONL of records with documents; .gz, .zst, globs")
    command.add_option(parser, "--output", "passages", required=True, metavar="FILE.jsonl")
    command.add_option(parser, "--limit", "of the records of each file; default: all")


def run(arguments: argparse.Namespace) -> None:
    """Write each document once, under an id that is a hash of it."""
    if arguments.limit is not None and arguments.limit < 1:
        raise ClaraError(f"--limit: {arguments.limit} must be at least 1")
    texts: dict[str, None] = {}
    records, files = 0, data_files(arguments.files, "documents")
    check_output(arguments.output, files)
    for path in files:
        for number, documents in enumerate(parse_lines(path, _documents), 1):
            texts |= dict.fromkeys(documents)
            records += 1
            if number == arguments.limit:
                break
    if not texts:
        raise ClaraError(f"{', '.join(arguments.files)}: no record is there; write one JSON object on each line")
    with write_json_lines(arguments.output) as write:
        for text in texts:
            write({"id": text_id(text), "text": text})
    print(f"{arguments.output}: {len(texts):,} passages of {records:,} records")


def _documents(fields: object, where: str) -> tuple[str, ...]:
    if not isinstance(fields, dict):
        raise ClaraError(f"{where}: a record is a JSON object")
    return parse_documents(fields, where)
