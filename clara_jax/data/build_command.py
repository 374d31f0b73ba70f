"""``python -m clara_jax.data build`` and ``... stats``: their arguments and their output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from clara_jax import command
from clara_jax.data.layout import INFO, STAGES
from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole
from clara_jax.formats.jsonl import ON_ERROR, data_files
from clara_jax.text.counting import WORDS, open_counter

if TYPE_CHECKING:
    from clara_jax.data.builders.schema import Item

SPLITS = ("train", "eval")
STATISTICS, PICTURE = "statistics.json", "lengths.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``build``."""
    parser.add_argument("stage", choices=STAGES, help="as what lines are read; retrieval is stored as clara_end_to_end")
    _add_files(parser, "JSONL files (plain, .gz, .zst; patterns; local or gs://...)")
    command.add_option(parser, "--output", "the data set, in DIR/clara_STAGE/VERSION", required=True, metavar="DIR")
    parser.add_argument(
        "--on-error",
        choices=ON_ERROR,
        default="stop",
        help="at a line that is not a record: stop, or skip it and write it to rejected.jsonl (default stop)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is there already")


def run(arguments: argparse.Namespace) -> None:
    """Build a data set and print a report."""
    from clara_jax.data.builders.build import build

    files = {split: getattr(arguments, split) for split in SPLITS}
    options = {"on_error": arguments.on_error, "overwrite": arguments.overwrite, "progress": True}
    print(build(arguments.stage, files, arguments.output, **options))


def add_statistics_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``stats``."""
    parser.add_argument("stage", nargs="?", choices=STAGES, help="as what lines of JSONL files are read")
    parser.add_argument("--data", metavar="DIR", help="a data set that was built, in place of files and a stage")
    _add_files(parser, "JSONL files")
    option = command.add_option
    note = f'or a checkpoint\'s "tokenizer" folder; default: {WORDS}, which are counted in place of tokens'
    option(parser, "--tokenizer", note, default=WORDS)
    option(parser, "--doc-max-length", "256", default=256)
    option(parser, "--compress-rate", "16", default=16)
    option(parser, "--limit", "of the records of each split; default: all")
    option(parser, "--output", f"{STATISTICS} and {PICTURE} in this folder", metavar="DIR")


def run_statistics(arguments: argparse.Namespace) -> None:
    """Print the report, and write it where that is asked for."""
    if not 1 <= arguments.compress_rate <= arguments.doc_max_length:
        raise ClaraError(
            f"--compress-rate: {arguments.compress_rate} must be from 1 to --doc-max-length {arguments.doc_max_length}"
        )
    if arguments.limit is not None and arguments.limit < 1:
        raise ClaraError(f"--limit: {arguments.limit} must be at least 1")
    from clara_jax.data.builders import report
    from clara_jax.data.builders.statistics import measure

    count = open_counter(arguments.tokenizer, arguments.doc_max_length)
    unit = WORDS if arguments.tokenizer == WORDS else f"tokens of {arguments.tokenizer}"
    splits = {name: _watched(items, name, arguments.limit) for name, items in _splits(arguments).items()}
    statistics = measure(splits, count, arguments.doc_max_length, arguments.compress_rate)
    print(report.text(statistics, unit))
    if arguments.output:
        folder = Path(arguments.output).expanduser()
        _write(statistics | {"unit": unit}, folder)
        report.draw(statistics, unit, folder / PICTURE)


def _add_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--train", nargs="+", default=[], metavar="FILE", help=f"{what} to train on")
    parser.add_argument("--eval", nargs="+", default=[], metavar="FILE", help=f"{what} held out")


def _splits(arguments: argparse.Namespace) -> dict[str, Iterable[Item]]:
    from clara_jax.data.builders.reading import ItemReader
    from clara_jax.data.builders.source import RecordSource, dataset_directory, read_metadata

    files = {split: getattr(arguments, split) for split in SPLITS if getattr(arguments, split)}
    if arguments.data:
        if files or arguments.stage:
            raise ClaraError(
                "--data: a data set brings its stage and files with it; leave out STAGE, --train and --eval"
            )
        directory = dataset_directory(arguments.data)
        return {split: RecordSource(directory, split) for split in read_metadata(directory)["splits"]}
    if not arguments.stage or not files:
        raise ClaraError(f"name a stage and files, or a data set with --data (a directory with {INFO} in it)")
    return {split: ItemReader(data_files(patterns, f"--{split}"), arguments.stage) for split, patterns in files.items()}


def _watched(items: Iterable[Item], name: str, limit: int | None) -> Iterable[Item]:
    from tqdm import tqdm

    total = len(items) if isinstance(items, Sized) else None
    for number, item in enumerate(tqdm(items, desc=name, total=total, unit=" records")):
        if number == limit:
            return
        yield item


def _write(statistics: dict, folder: Path) -> None:
    with replaced_when_whole(folder / STATISTICS) as temporary:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")
