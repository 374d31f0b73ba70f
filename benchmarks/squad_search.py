"""Write questions about a part of SQuAD, whose paragraphs are few enough to be compressed and searched on a CPU.

    python -m benchmarks.squad_search --data DIR/squad --paragraphs 1500 --output squad_search

docs/results.md#candidates-from-the-whole-corpus has the training runs that read what is written.

The directory has `corpus.jsonl` and `questions.{train,dev}.idx.jsonl`: paragraphs with an `id`, and questions with
`gold_id` and the ids `bm25` of the paragraphs that BM25 ranks first. Paragraphs of training are the first ones that a
training question is about, so that whole articles are there, with all their questions; of the held-out questions some
are drawn, and all held-out paragraphs may be their candidates. A record has the paragraph that answers and others of
the same side, those of BM25 first, then any, in a random order.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import parse_lines, write_json_lines


def records(
    questions: Iterable[dict[str, Any]], texts: dict[int, str], documents: int, seed: int
) -> list[dict[str, Any]]:
    """Return records of `end_to_end` and `retrieval`, each with as many paragraphs, the one that answers among them.

    Args:
      questions: with "question", "gold_answer", "gold_id" and "bm25".
      texts: of the paragraphs that may be candidates, by id, ``documents`` or more; each "gold_id" is among them.
      documents: candidates of a record.
      seed: of what fills candidates up, and of their order.
    """
    rng, made = random.Random(seed), []
    for question in questions:
        gold = question["gold_id"]
        chosen = [gold, *(number for number in question["bm25"] if number != gold and number in texts)][:documents]
        others = sorted(texts.keys() - set(chosen))
        chosen += rng.sample(others, documents - len(chosen))
        rng.shuffle(chosen)
        answer = question["gold_answer"]
        made.append(
            {
                "question": question["question"],
                "docs": [texts[number] for number in chosen],
                "gold_answer": answer,
                "answer": answer,
                "pos_index": [chosen.index(gold)],
            }
        )
    return made


def objects(path: str | Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file.

    Raises:
      ClaraError: a line is no object, or lacks one of the fields.
    """

    def parse(value: Any, where: str) -> dict[str, Any]:
        missing = [field for field in fields if not isinstance(value, dict) or field not in value]
        if missing:
            raise ClaraError(f"{where}: no {', '.join(missing)}; --help says which files are needed")
        return value

    return list(parse_lines(str(path), parse))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("squad_search", __doc__, package="benchmarks")
    parser.add_argument("--data", required=True, metavar="DIR", help="with corpus.jsonl and questions.*.idx.jsonl")
    command.add_option(parser, "--output", "train.jsonl and dev.jsonl in this folder", required=True, metavar="DIR")
    parser.add_argument("--paragraphs", type=int, default=1500, metavar="N", help="of training (1500)")
    parser.add_argument("--questions", type=int, default=300, metavar="N", help="held-out ones (300)")
    command.add_option(parser, "--candidates", "20", default=20)
    command.add_option(parser, "--seed")
    return parser


def main() -> None:
    """Write the records."""
    arguments = parser().parse_args()
    data, output = Path(arguments.data), Path(arguments.output)
    texts = {row["id"]: row["text"] for row in objects(data / "corpus.jsonl", ("id", "text"))}
    output.mkdir(parents=True, exist_ok=True)
    for side, limit in (("train", arguments.paragraphs), ("dev", None)):
        file = data / f"questions.{side}.idx.jsonl"
        questions = objects(file, ("question", "gold_answer", "gold_id", "bm25"))
        kept = set(sorted({row["gold_id"] for row in questions})[:limit])
        chosen = [row for row in questions if row["gold_id"] in kept]
        if len(kept) < arguments.candidates:
            raise ClaraError(f"{file}: {len(kept)} paragraphs, and --candidates {arguments.candidates}; take fewer")
        if side == "dev":
            chosen = random.Random(arguments.seed).sample(chosen, min(arguments.questions, len(chosen)))
        made = records(chosen, {number: texts[number] for number in kept}, arguments.candidates, arguments.seed)
        with write_json_lines(output / f"{side}.jsonl") as write:
            for record in made:
                write(record)
        print(f"{output / side}.jsonl: {len(made)} questions about {len(kept)} paragraphs")


if __name__ == "__main__":
    command.run(main)
