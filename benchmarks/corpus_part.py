"""Write a part of a corpus that a CPU can compress: what some questions ask for, and other passages beside it.

    python -m benchmarks.corpus_part --data DIR/pool/wiki_leads.jsonl.gz --questions DIR/pool/questions.dev.jsonl.gz
        --limit 300 --others 500 --output part.jsonl

The part has the passages that the first questions name ("gold_passage"), then others that are drawn from the corpus;
their lines stay as they are and in the order of the corpus. docs/results.md#questions-to-a-whole-corpus searches it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

from benchmarks.squad_search import objects
from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import write_json_lines


def part(passages: Sequence[dict[str, Any]], wanted: set[str], others: int, seed: int) -> list[dict[str, Any]]:
    """Return the wanted passages and others, in the order of the corpus.

    Args:
      passages: the corpus, each passage with an "id".
      wanted: ids of passages that must be there.
      others: how many more; all where there are fewer.
      seed: of the draw.

    Raises:
      ClaraError: a wanted passage is not in the corpus.
    """
    missing = wanted - {passage["id"] for passage in passages}
    if missing:
        raise ClaraError(f"the corpus has no passage {min(missing)!r} ({len(missing)} of {len(wanted)} are missing)")
    rest = [number for number, passage in enumerate(passages) if passage["id"] not in wanted]
    drawn = set(random.Random(seed).sample(rest, min(others, len(rest))))
    return [passage for number, passage in enumerate(passages) if passage["id"] in wanted or number in drawn]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("corpus_part", __doc__, package="benchmarks")
    parser.add_argument("--data", required=True, metavar="FILE", help='passages with an "id"')
    parser.add_argument("--questions", required=True, metavar="FILE", help='questions with a "gold_passage"')
    command.add_option(parser, "--limit", "of the questions", default=300)
    parser.add_argument("--others", type=int, default=500, metavar="N", help="passages beside theirs (500)")
    command.add_option(parser, "--output", "the passages", required=True, metavar="FILE")
    command.add_option(parser, "--seed")
    return parser


def main() -> None:
    """Write the passages."""
    arguments = parser().parse_args()
    questions = objects(arguments.questions, ["gold_passage"])[: arguments.limit]
    wanted = {question["gold_passage"] for question in questions}
    chosen = part(objects(arguments.data, ["id"]), wanted, arguments.others, arguments.seed)
    with write_json_lines(arguments.output) as write:
        for passage in chosen:
            write(passage)
    print(f"{arguments.output}: {len(chosen)} passages, {len(wanted)} of which answer a question")


if __name__ == "__main__":
    command.run(main)
