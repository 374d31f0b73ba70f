"""Measure the padding of a stage's batches over one epoch, by the number of shapes.

    python -m benchmarks.padding instruct DATA.jsonl... [--batch-size 32] [--k 5] [--candidates 20]
    python -m benchmarks.padding scp DATA.jsonl... --pack 1024 2048

"padding" is the share of positions that are computed for nothing; "positions" are those computed, relative to one shape
for all. The tokenizer is SmolLM2's unless --tokenizer names another base.
"""

from __future__ import annotations

import argparse

import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.formats.base import open_base
from clara_jax.formats.jsonl import data_files
from clara_jax.input_pipeline.buckets import shape_ladder
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.packing import plan_row
from clara_jax.input_pipeline.records import STAGES, read_records
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.tokenization import ClaraTokenizer

DOC_MAX_LENGTH, COMPRESS_RATE = 256, 16


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("padding", __doc__, package="benchmarks")
    add, option = parser.add_argument, command.add_option
    add("stage", choices=STAGES)
    add("data", nargs="+", help="JSONL files or patterns")
    option(parser, "--tokenizer", "smollm2", default="smollm2")
    option(parser, "--batch-size", "32", default=32)
    option(parser, "--k", "5", default=5)
    command.add_renamed_option(parser, "--top-k", "--k", type=int)
    option(parser, "--candidates", "20", default=20)
    add("--buckets", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="numbers of shapes (1 2 4 8)")
    add("--pack", type=int, nargs="+", default=[], metavar="N", help="tokens of documents in a row (scp)")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()

    memory = DOC_MAX_LENGTH // COMPRESS_RATE
    tokenizer = ClaraTokenizer(open_base(arguments.tokenizer).load_tokenizer(), DOC_MAX_LENGTH, memory)
    records = read_records(data_files(arguments.data, "data"), arguments.stage)
    with tqdm(unit="text", desc="tokenizing") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        encoding = Encoding(arguments.stage, arguments.k, arguments.candidates)
        examples = encode_records(records, tokenizer, encoding, progress=show)
    sizes = sizes_of(examples)
    used = [
        sum(len(ids) + memory for ids in example.documents)
        + (0 if example.query is None else len(example.query) + memory)
        + len(example.prompt_ids)
        for example in examples
    ]
    steps = max(1, len(examples) // arguments.batch_size)
    print(f"{arguments.stage}: {len(examples)} records, {steps} steps of {arguments.batch_size}")
    print("| shapes | padding | positions | sizes |\n|---|---|---|---|")
    whole = 0  # positions with the first number of shapes
    for count in arguments.buckets:
        plan = BatchPlan(sizes, shape_ladder(sizes, tokenizer, count), arguments.batch_size, steps)
        computed = sum(plan.shapes(step).positions(memory) for step in range(steps)) * arguments.batch_size
        real = sum(int(np.sum(np.take(used, plan.rows(step)))) for step in range(steps))
        whole = whole or computed
        text = "; ".join(f"{s.encoder_width + memory}/{s.prompt_length}" for s in plan.ladder)
        print(f"| {len(plan.ladder)} | {1 - real / computed:.1%} | {computed / whole:.3f} | {text} |")

    plan = BatchPlan(sizes, shape_ladder(sizes, tokenizer, 1), arguments.batch_size, steps)
    for length in arguments.pack:
        row = plan_row(sizes, memory, length)
        loader = BatchLoader(plan, examples, sizes, tokenizer, row)
        rows = [len(loader.batch(step).prompt.ids) for step in range(steps)]
        computed = sum(rows) * (row.documents + row.prompts)
        real = sum(int(np.sum(np.take(used, plan.rows(step)))) for step in range(steps))
        counts = f"{len(set(rows))} ({min(rows)}-{max(rows)} rows)"
        print(
            f"| packed, {counts} | {1 - real / computed:.1%} | {computed / whole:.3f} | {row.documents}/{row.prompts} |"
        )


if __name__ == "__main__":
    command.run(main)
