"""A readable report of statistics: as text, and as a picture of lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.data.builders.overlap import RUN
from clara_jax.data.builders.statistics import KINDS, OVERLAPPING
from clara_jax.files import replaced_when_whole

# Okabe and Ito's, which people with any kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

_LEAKS = {  # each key of `clara_jax.data.builders.statistics`, in words
    "records": "records that are in train as they are",
    "questions": "records whose question is in train",
    "reworded_questions": "records whose question is in train with its words in another order",
    "gold_documents": "records with a positive document that is in train",
    "documents": "records with a document that is in train",
    "different_documents": "different documents that are in train",
    "overlapping_documents": f"other documents, {OVERLAPPING:.0%} of whose runs of {RUN} words are in train",
}
_DUPLICATES = {
    "records": "records that stood before",
    "questions": "questions that stood before",
    "records_with_a_document_twice": "records with a document twice",
}


def text(statistics: Mapping[str, Any], unit: str) -> str:
    """Return the report as text.

    Args:
      statistics: of `clara_jax.data.builders.statistics.measure`.
      unit: of lengths: "tokens of smollm2", "words".
    """
    lines = [f"lengths in {unit}"]
    for name, split in statistics["splits"].items():
        lines += ["", f"{name}: {split['records']} records", *_table(split), *_memory(split["memory"])]
        documents = split["duplicates"]["documents"]
        lines.append(f"  {documents['all']} documents, {documents['different']} different")
        lines += _findings(split["duplicates"], _DUPLICATES)
    for name, leaks in statistics["leaks"].items():
        lines += ["", f"{name} against train", *_findings(leaks, _LEAKS)]
    return "\n".join(lines)


def draw(statistics: Mapping[str, Any], unit: str, path: Path) -> None:
    """Draw histograms of lengths, one row for each kind of text, the splits over each other.

    Args:
      statistics: of `clara_jax.data.builders.statistics.measure`.
      unit: of lengths.
      path: a .png file; written in one move.

    Raises:
      ClaraError: the file cannot be written.
    """
    # Not pyplot: no window system, no state shared with a program that draws pictures, too.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = statistics["splits"]
    rows = [kind for kind in KINDS if any(split["lengths"][kind]["count"] for split in splits.values())]
    figure = Figure(figsize=(7, 2.6 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(len(rows), squeeze=False).flat, rows, strict=True):
        for colour, (name, split) in zip(COLOURS, splits.items(), strict=False):
            lengths = split["lengths"][kind]
            if lengths["count"]:
                edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
                # A density: splits of other sizes, and bins of other widths, stay comparable.
                heights = np.array(counts) / np.diff(edges) / lengths["count"]
                axes.stairs(heights, edges, fill=True, color=colour, alpha=0.3)
                axes.stairs(heights, edges, color=colour, label=f"{name}: {lengths['count']}, mean {lengths['mean']}")
        if kind == "documents":
            limit = next(iter(splits.values()))["memory"]["doc_max_length"]
            axes.axvline(limit, color="black", linewidth=0.8, linestyle=":", label=f"doc_max_length {limit}")
        axes.set_title(kind, fontweight="bold", loc="left")
        axes.set_xlabel(unit, labelpad=1)
        axes.set_yticks([])
        axes.legend(fontsize="small", frameon=False)
    with replaced_when_whole(path, "the picture cannot be written") as temporary:
        figure.savefig(temporary, format="png")


def _table(split: Mapping[str, Any]) -> list[str]:
    columns = ("count", "min", "mean", "median", "p95", "p99", "max")
    rows = {kind: split["lengths"][kind] for kind in KINDS} | {"documents a record": split["documents_per_record"]}
    lines = [" " * 20 + "".join(f"{column:>9}" for column in columns) + f"{'total':>14}"]
    for name, row in rows.items():
        if row["count"]:
            numbers = "".join(f"{row[column]:>9g}" for column in columns)
            lines.append(f"  {name:<18}{numbers}{row['total']:>14}")
    return lines


def _memory(memory: Mapping[str, Any]) -> list[str]:
    rate = memory["effective_compress_rate"]
    lines = [
        f"  effective compress rate {rate}: {memory['document_tokens_read']} document tokens read, "
        f"{memory['memory_tokens_per_document']} memory tokens a document (nominal rate {memory['compress_rate']})"
    ]
    if memory["cut_documents"]:
        lines.append(
            f"  {memory['cut_documents']} documents are cut at doc_max_length {memory['doc_max_length']} "
            f"and lose {memory['lost_tokens']} tokens"
        )
    return lines


def _findings(found: Mapping[str, Any], descriptions: Mapping[str, str]) -> list[str]:
    lines = []
    for name, words in descriptions.items():
        finding = found[name]
        of = f" of {finding['of']} ({finding['found'] / finding['of']:.2%})" if finding["of"] else ""
        example = next(iter(finding.get("examples", ())), None)
        first = ", first " + ", ".join(f"{key} {value}" for key, value in example.items()) if example else ""
        lines.append(f"  {finding['found']}{of} {words}{first}")
    return lines
