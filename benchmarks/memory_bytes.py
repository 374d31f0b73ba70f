"""Measure what the storage formats of memories cost in answers and ranking: quality against bytes a passage.

    python -m benchmarks.memory_bytes --data ../shared/data/squad/stage2_end_to_end.dev.jsonl --limit 64
        [--memories FILE] [--picture docs/images/memory_bytes.png] [--output FILE]

Each question is answered from the memory of its right passage alone, as it was stored; and its candidates are ranked by
their stored memories. Passages are compressed once, and every format stores the same memories; they stay in the file
that --memories names, which benchmarks.memory_codes reads, too. Differences are paired, to the memories as they were
computed, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.api import Clara
from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole
from clara_jax.input_pipeline.records import Record, read_records
from clara_jax.method.reranker import relevance_scores
from clara_jax.metrics.answers import exact_match, token_f1
from clara_jax.metrics.bootstrap import Bootstrap
from clara_jax.metrics.ranking import recall_at
from clara_jax.results import Memories
from clara_jax.retrieval.encodings import ENCODINGS, MemoryEncoding
from clara_jax.shipped import DEFAULT

DEPTH = 5  # of the recall
_AT_ONCE = 64  # passages


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("memory_bytes", __doc__, package="benchmarks")
    command.add_checkpoint_option(parser, DEFAULT)
    parser.add_argument("--data", required=True, metavar="FILE", help="records of end_to_end that name their positives")
    command.add_option(parser, "--limit", "64", default=64)
    command.add_option(parser, "--max-new-tokens", "16", default=16)
    parser.add_argument("--memories", metavar="FILE", help="keeps the compressed passages; read where it is there")
    parser.add_argument("--picture", metavar="FILE", help="F1 and recall against bytes, as PNG")
    command.add_option(parser, "--output", "all figures, as JSON")
    return parser


def passages(clara: Clara, records: Sequence[Record], file: str | None = None) -> Memories:
    """Return the memories of all candidates of some records, each once.

    Args:
      clara: the model.
      records: with candidates.
      file: keeps the memories; what it holds is not compressed again.

    Raises:
      ClaraError: the file holds memories of another model, or cannot be written.
    """
    texts = list(dict.fromkeys(text for record in records for text in record.documents))
    kept = Memories.load(file, clara.fingerprint) if file and Path(file).exists() else None
    if kept is not None:
        place = {text: row for row, text in enumerate(kept.texts)}
        if all(text in place for text in texts):
            return kept.take([place[text] for text in texts])
    parts = []
    with tqdm(total=len(texts), unit=" passages", desc="compressing") as bar:
        for start in range(0, len(texts), _AT_ONCE):
            parts.append(clara.compress(texts[start : start + _AT_ONCE], long="cut"))
            bar.update(len(parts[-1]))
    array = np.concatenate([part.array for part in parts])
    memories = Memories(tuple(map(str, range(len(texts)))), array, tuple(texts), parts[0].fingerprint)
    if file:
        memories.save(file)
    return memories


def measure(
    clara: Clara, records: Sequence[Record], new_tokens: int, memories: Memories | None = None
) -> list[dict[str, Any]]:
    """Return a row of figures for the memories as they are computed, and one for each of `ENCODINGS`.

    Args:
      clara: the model.
      records: questions with candidates, positives and references.
      new_tokens: longest answer.
      memories: `passages` of the records; None compresses them.
    """
    memories = memories or passages(clara, records)
    texts = memories.texts
    place = {text: row for row, text in enumerate(texts)}
    questions = [record.questions[0] for record in records]
    count = clara.bundle.model.clara.memory_count
    queries = clara.encode_questions(questions)
    mean_bytes = float(np.mean([len(text.encode()) for text in texts]))
    bootstrap, rows, first = Bootstrap(len(records)), [], {}
    for name in ("as computed", *ENCODINGS):
        array, size = memories.array, None
        if name != "as computed":
            encoding = MemoryEncoding(name, *memories.array.shape[1:], memory_count=count)
            encoded = encoding.encode(memories.array)
            array, size = encoding.decode(encoded), float(np.mean([len(row) for row in encoded]))
        stored = dataclasses.replace(memories, array=array.astype(memories.array.dtype))
        answers = _answers(clara, questions, [place[r.documents[r.positives[0]]] for r in records], stored, new_tokens)
        values = {
            "F1": np.array([token_f1(a, r.gold_answers) for a, r in zip(answers, records, strict=True)]),
            "EM": np.array([exact_match(a, r.gold_answers) for a, r in zip(answers, records, strict=True)]),
            f"Recall@{DEPTH}": _recall(queries, records, place, stored.array, count),
        }
        first = first or values
        row: dict[str, Any] = {"encoding": name, "bytes": size}
        row["times its text"] = None if size is None else size / mean_bytes
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


def _recall(
    queries: np.ndarray, records: Sequence[Record], place: dict[str, int], memories: np.ndarray, memory_count: str
) -> np.ndarray:
    found = []
    for query, record in zip(queries, records, strict=True):
        candidates = memories[[place[text] for text in record.documents]]
        scores = np.asarray(relevance_scores(query[None], candidates[None], memory_count))[0]
        positives = np.isin(np.arange(len(scores)), record.positives)
        found.append(recall_at(scores[None], np.ones((1, len(scores)), bool), positives[None], DEPTH)[0])
    return np.array(found)


def _line(row: dict[str, Any]) -> str:
    size = "" if row["bytes"] is None else f"{row['bytes']:,.0f} | {row['times its text']:.1f}"
    cells = [row["encoding"], size or " | "]
    for metric in ("F1", "EM", f"Recall@{DEPTH}"):
        mean, low, high = row[f"{metric} difference"]
        cells.append(f"{row[metric]:.1f} | {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    return f"| {' | '.join(cells)} |"


def _apart(sizes: Sequence[int], ratio: float = 1.2) -> list[int]:
    """Return the sizes whose labels do not overlap on a logarithmic axis: each above the one before by a ratio."""
    kept: list[int] = []
    for size in sorted(sizes):
        if not kept or size >= ratio * kept[-1]:
            kept.append(size)
    return kept


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw F1 and recall against bytes a passage, with the intervals of their paired differences, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    computed, *stored = rows
    figure = Figure(figsize=(7.4, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, 2), ("F1", f"Recall@{DEPTH}"), strict=True):
        axes.axhline(computed[metric], color="0.6", linestyle="--", linewidth=1, label="as computed")
        for place, row in enumerate(stored):
            _, low, high = row[f"{metric} difference"]
            at, value = row["bytes"], row[metric]
            spread = [[max(value - computed[metric] - low, 0)], [max(high - value + computed[metric], 0)]]
            # float16 and bfloat16 take the same bytes: the second is drawn beside the first.
            at *= 1.06 ** [other["bytes"] for other in stored[:place]].count(at)
            axes.errorbar(at, value, spread, fmt="o", markersize=5, capsize=3, label=row["encoding"])
        axes.set_xscale("log", base=2)
        ticks = _apart([row["bytes"] for row in stored])
        axes.set_xticks(ticks, [f"{size / 1000:.0f}" for size in ticks])
        axes.minorticks_off()
        axes.set_xlabel("kB a passage")
        axes.set_ylabel(metric)
    figure.axes[0].legend(fontsize="small")
    with replaced_when_whole(path, "the picture cannot be written") as temporary:
        figure.savefig(temporary, format="png")


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
    rows = measure(clara, records, arguments.max_new_tokens, passages(clara, records, arguments.memories))
    if arguments.picture:
        draw(rows, Path(arguments.picture))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
