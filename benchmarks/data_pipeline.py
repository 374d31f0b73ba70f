"""Measure the way from records on disk to batches: build, tokens, iteration, with memory and processor time.

    python -m benchmarks.data_pipeline [--records 1000000] [--stage end_to_end] [--batch-size 128] [--folder DIR]

The records are synthetic, eight documents each in end_to_end; the tokenizer has a token for every word. Files that an
earlier call left in the folder are used again. Rates are per second of one core's processor time: a shared machine's
clock would measure its other work.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from clara_jax import command
from clara_jax.data.builders import RecordSource, build
from clara_jax.data.synthetic import vocabulary, write
from clara_jax.data.synthetic_world import SyntheticConfig, SyntheticRecordsConfig, SyntheticWorldConfig
from clara_jax.input_pipeline.buckets import shape_ladder
from clara_jax.input_pipeline.encoding import Encoding
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.packing import plan_row
from clara_jax.input_pipeline.records import STAGES
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.token_cache import open_or_make, slices
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.input_pipeline.word_level import word_level_tokenizer


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("data_pipeline", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--records", type=int, default=1_000_000, metavar="N", help="that are made (1000000)")
    add("--stage", choices=STAGES, default="end_to_end", help="whose records they are (end_to_end)")
    command.add_option(parser, "--batch-size", "128", default=128)
    add("--batches", type=int, default=500, metavar="N", help="to iterate over (500)")
    add("--buckets", type=int, default=4, metavar="N", help="shapes of batches (4)")
    add("--pack", type=int, default=0, metavar="N", help="tokens of a row (scp)")
    add("--folder", type=Path, metavar="DIR", help="for the files (default: a temporary one)")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    try:
        _measure(arguments, folder)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def _measure(arguments: argparse.Namespace, folder: Path) -> None:
    world = SyntheticConfig(
        world=SyntheticWorldConfig(name_words=200, train_partners=150),
        records=SyntheticRecordsConfig(train=arguments.records, eval=1),
    )
    count, stage = arguments.records, arguments.stage
    print(
        f"{count:,} records of {stage}\n| what | records or batches per second of a core | peak memory |\n|---|---|---|"
    )
    built = folder / f"built-{count}"
    if not built.exists():
        with _Timed("records made and written as JSONL", count):
            write(world, folder / f"jsonl-{count}", [stage])
        with _Timed("data set built from them", count):
            build(stage, {"train": [f"{folder}/jsonl-{count}/{stage}.train.jsonl"]}, built)
    source = RecordSource(built, "train")
    tokenizer = ClaraTokenizer(word_level_tokenizer(vocabulary(world)), doc_max_length=32, memory_tokens=4)
    with _Timed("tokens made", count), tqdm(total=count, unit=" records") as bar:
        found = (slices(source), source.fingerprint, tokenizer, Encoding(stage, 2))

        def show(done: int) -> None:
            bar.update(done - bar.n)

        cache = open_or_make(folder / "tokens", *found, progress=show)
    with _Timed("cache opened and shapes chosen", count):
        cache = open_or_make(folder / "tokens", *found)
        ladder = shape_ladder(cache.sizes, tokenizer, 1 if arguments.pack else arguments.buckets)
        steps = count // arguments.batch_size
        plan = BatchPlan(cache.sizes, ladder, arguments.batch_size, steps)
        row = plan_row(cache.sizes, tokenizer.memory_tokens, arguments.pack) if arguments.pack else None
        loader = BatchLoader(plan, cache, cache.sizes, tokenizer, row)
    first = steps // 2
    with _Timed(f"batches of {arguments.batch_size}, shuffled, {len(ladder)} shapes", arguments.batches) as timed:
        stop = min(first + arguments.batches, steps)
        padding = [batch.padding for batch in loader.ahead(first, stop)]
    rate = len(padding) / timed.seconds
    print(f"padding {sum(padding) / len(padding):.1%}; a step of 50 ms takes {20 / rate:.2f} cores")


class _Timed:
    """A block whose time is printed as a row of the table."""

    def __init__(self, what: str, count: int):
        self._what, self._count = what, count

    def __enter__(self) -> _Timed:
        self._began, self.seconds = time.process_time(), 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {self._what} | {self._count / self.seconds:,.0f} | {peak:.2f} GiB |", flush=True)


if __name__ == "__main__":
    command.run(main)
