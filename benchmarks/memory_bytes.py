"""Measure what the storage formats of memories cost in answers and ranking: quality against bytes a passage.

    python -m benchmarks.memory_bytes --data ../shared/data/squad/stage2_end_to_end.dev.jsonl --limit 64

Each question is answered from the memory of its right passage alone, as it was stored; and its candidates are ranked by
their stored memories. Passages are compressed once, and every format stores the same memories. Differences are paired,
to the memories as they were computed, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax import command
from clara_jax.api import Clara
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import Record, read_records
from clara_jax.metrics.answers import exact_match, token_f1
from clara_jax.metrics.bootstrap import Bootstrap
from clara_jax.metrics.ranking import recall_at
from clara_jax.results import Memories
from clara_jax.retrieval.encodings import ENCODINGS, MemoryEncoding
from clara_jax.shipped import DEFAULT

DEPTH = 5  # of the recall


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("memory_bytes", __doc__, package="benchmarks")
    command.add_checkpoint_option(parser, DEFAULT)
    parser.add_argument("--data", required=True, metavar="FILE", help="records of end_to_end that name their positives")
    command.add_option(parser, "--limit", "64", default=64)
    command.add_option(parser, "--max-new-tokens", "16", default=16)
    command.add_option(parser, "--output", "all figures, as JSON")
    return parser


def measure(clara: Clara, records: Sequence[Record], new_tokens: int) -> list[dict[str, Any]]:
    """Return a row of figures for the memories as they are computed, and one for each of `ENCODINGS`.

    Args:
      clara: the model.
      records: questions with candidates, positives and references.
      new_tokens: longest answer.
    """
    texts = list(dict.fromkeys(text for record in records for text in record.documents))
    memories = clara.compress(texts, long="cut")
    place = {text: row for row, text in enumerate(texts)}
    questions = [record.questions[0] for record in records]
    queries = clara.encode_questions(questions).astype(np.float32).reshape(len(questions), -1)
    mean_bytes = float(np.mean([len(text.encode()) for text in texts]))
    bootstrap, rows, first = Bootstrap(len(records)), [], {}
    for name in ("as computed", *ENCODINGS):
        encoding = None if name == "as computed" else MemoryEncoding(name, *memories.array.shape[1:])
        array = memories.array if encoding is None else encoding.decode(encoding.encode(memories.array))
        stored = dataclasses.replace(memories, array=array.astype(memories.array.dtype))
        answers = _answers(clara, questions, [place[r.documents[r.positives[0]]] for r in records], stored, new_tokens)
        values = {
            "F1": np.array([token_f1(a, r.gold_answers) for a, r in zip(answers, records, strict=True)]),
            "EM": np.array([exact_match(a, r.gold_answers) for a, r in zip(answers, records, strict=True)]),
            f"Recall@{DEPTH}": _recall(queries, records, place, array.astype(np.float32)),
        }
        first = first or values
        row: dict[str, Any] = {"encoding": name, "bytes": None if encoding is None else encoding.size}
        row["times its text"] = None if encoding is None else encoding.size / mean_bytes
        for metric, found in values.items():
            difference = bootstrap.difference(found, first[metric])
            row[metric] = 100 * float(np.mean(found))
            row[f"{metric} difference"] = [100 * x for x in (difference.mean, difference.low, difference.high)]
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _answers(
    clara: Clara, questions: Sequence[str], right: Sequence[int], memories: Memories, new_tokens: int
) -> list[str]:
    read = [memories.take([row]) for row in right]
    return [one.text for one in clara.answer(questions, memories=read, k=None, max_new_tokens=new_tokens)]


def _recall(queries: np.ndarray, records: Sequence[Record], place: dict[str, int], array: np.ndarray) -> np.ndarray:
    flat = array.reshape(len(array), -1)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-8)
    found = []
    for query, record in zip(queries, records, strict=True):
        scores = flat[[place[text] for text in record.documents]] @ query
        positives = np.isin(np.arange(len(scores)), record.positives)
        found.append(recall_at(scores[None], np.ones((1, len(scores)), bool), positives[None], DEPTH)[0])
    return np.array(found)


def _line(row: dict[str, Any]) -> str:
    size = "" if row["bytes"] is None else f"{row['bytes']:,} | {row['times its text']:.1f}"
    cells = [row["encoding"], size or " | "]
    for metric in ("F1", "EM", f"Recall@{DEPTH}"):
        mean, low, high = row[f"{metric} difference"]
        cells.append(f"{row[metric]:.1f} | {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    records = read_records(arguments.data, "end_to_end", arguments.limit)
    if not all(record.positives and record.gold_answers for record in records):
        raise ClaraError(f"--data: {arguments.data}: every record must name its positives (pos_index) and an answer")
    clara = Clara.load(arguments.checkpoint)
    names = ("F1", "EM", f"Recall@{DEPTH}")
    print("| stored as | bytes a passage | × its text | " + " | ".join(f"{x} | difference" for x in names) + " |")
    print("|---" * 9 + "|")
    rows = measure(clara, records, arguments.max_new_tokens)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
