"""Time a base model on chats that share instructions and demonstrations, with and without its prefix cache.

    python -m benchmarks.demonstrations [--base smollm2] [--rows 4] [--rounds 5] [--max-new-tokens 24]

The requests are those of the synthesis (step "answer") about documents of the embedded demo data. Groups of them are
answered in turns in one run, with the whole prompt prefilled and with the shared beginning out of the cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

from tqdm import tqdm

from clara_jax import command
from clara_jax.base_lm import BaseLM
from clara_jax.inference.decode import Sampling
from clara_jax.input_pipeline.records import read_records
from clara_jax.synthesis.prompts import PromptTemplates


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("demonstrations", __doc__, package="benchmarks")
    add = parser.add_argument
    command.add_option(parser, "--base", "smollm2", default="smollm2")
    add(
        "--data",
        default="clara_jax/configs/demo_data/scp.train.jsonl",
        metavar="FILE",
        help="whose documents are asked about",
    )
    add("--rows", type=int, default=4, metavar="N", help="requests of a group (4)")
    add("--rounds", type=int, default=5, metavar="N", help="groups that are measured (5)")
    command.add_option(parser, "--max-new-tokens", "24", default=24)
    command.add_renamed_option(parser, "--new-tokens", "--max-new-tokens", type=int)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    lm, prompts = BaseLM.open(arguments.base, batch_size=arguments.rows), PromptTemplates.load()
    rows = arguments.rows
    documents = list(dict.fromkeys(record.documents[0] for record in read_records(arguments.data, "scp")))

    def requests(turn: int, new_tokens: int) -> list:
        texts = [documents[(turn * rows + row) % len(documents)] for row in range(rows)]
        asked = (prompts.messages("answer", "en", document=text, question="Who built it?") for text in texts)
        chats = ([{"role": role, "content": text} for role, text in messages] for messages in asked)
        return [lm.request(chat, Sampling(new_tokens)) for chat in chats]

    lengths = (1, arguments.max_new_tokens)
    taken = {(way, length): [] for way in ("whole", "shared") for length in lengths}
    for turn in tqdm(range(-1, arguments.rounds), unit=" rounds"):  # the first one compiles
        for way, length in taken:
            group = requests(turn, length)
            if way == "whole":
                group = [dataclasses.replace(request, shared=0) for request in group]
            elif turn < 0:
                lm.engine.generate(group)  # keeps the beginning
            began = time.perf_counter()
            lm.engine.generate(group)
            if turn >= 0:
                taken[way, length].append(time.perf_counter() - began)
    one = requests(0, 1)[0]
    print(f"{lm.name}, {rows} together; {len(one.ids)} tokens, {one.shared} of them shared; medians")
    for length in lengths:
        whole, shared = (statistics.median(taken[way, length]) for way in ("whole", "shared"))
        print(f"{length:3} tokens answered: whole {whole:.2f} s, shared {shared:.2f} s, {whole / shared:.1f} times")


if __name__ == "__main__":
    command.run(main)
