"""Statistics of a journal: pairs per document, rounds, dropped and rejected outcomes, lengths, tokens, cost."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clara_jax import pages
from clara_jax.files import replaced_when_whole
from clara_jax.synthesis.journal import ItemOutcome, Journal
from clara_jax.synthesis.steps import Budget
from clara_jax.text.words import words


@dataclasses.dataclass(frozen=True)
class ReportTable:
    """A table of texts.

    Attributes:
      title: its heading.
      columns: names; the first one is that of the rows' names.
      rows: one text for each column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(journal: Journal, budget: Budget) -> list[ReportTable]:
    """Return all non-empty tables of a journal.

    Args:
      journal: the journal.
      budget: for its prices.
    """
    kinds: dict[str, _Kind] = defaultdict(_Kind)
    for _, outcome in journal.outcomes():
        kinds[outcome.kind].add(outcome)
    made = [
        ReportTable(
            "Records",
            ("kind", "items", "records", "rejected", "pairs a record", "rounds", "pairs dropped"),
            tuple((name, *kind.counts()) for name, kind in kinds.items()),
        ),
        ReportTable(
            "Words (mean, median, 95th percentile)",
            ("kind", "documents", "questions", "answers"),
            tuple((name, *map(_spread, kind.lengths())) for name, kind in kinds.items()),
        ),
        _reasons("Rounds until the end", "rounds", {name: kind.rounds for name, kind in kinds.items()}, by_number=True),
        _reasons("Rejected", "reason", {name: kind.rejected for name, kind in kinds.items()}),
        _reasons("Dropped", "reason", {name: kind.dropped for name, kind in kinds.items()}),
        _spent(journal, budget),
        _verdicts(journal),
    ]
    return [table for table in made if table.rows]


def text(report: Sequence[ReportTable]) -> str:
    """Format tables for a terminal."""
    parts = []
    for table in report:
        lines = [table.columns, *table.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        parts.append("\n".join([table.title, *(f"  {row.rstrip()}" for row in rows)]))
    return "\n\n".join(parts)


def write_page(report: Sequence[ReportTable], title: str, path: Path) -> None:
    """Write tables as an HTML page.

    Raises:
      ClaraError: the file system refuses.
    """
    page = pages.render("clara_jax.synthesis", "statistics.html", title=title, tables=report)
    with replaced_when_whole(path) as temporary:
        temporary.write_text(page, "utf-8")


class _Kind:
    """Counts of the outcomes of one kind."""

    def __init__(self):
        self.rounds, self.rejected, self.dropped = Counter[int](), Counter[str](), Counter[str]()
        self._pairs: list[int] = []
        self._words: tuple[list[int], list[int], list[int]] = ([], [], [])

    def add(self, outcome: ItemOutcome) -> None:
        self.rounds[outcome.rounds] += 1
        self.dropped.update(one.reason for one in outcome.dropped)
        if outcome.record is None:
            self.rejected[outcome.reason or ""] += 1
            return
        record = outcome.record
        self._pairs.append(len(record["answers"]))
        # A paraphrase has no questions but "".
        texts = (record["docs"], record["question"] or [], record["answers"])
        for lengths, group in zip(self._words, texts, strict=True):
            lengths += [len(words(text)) for text in group]

    def counts(self) -> tuple[str, ...]:
        records, rejected = len(self._pairs), sum(self.rejected.values())
        rounds = sum(number * count for number, count in self.rounds.items()) / (records + rejected)
        pairs = f"{np.mean(self._pairs):.2f}" if records else "–"
        return (
            f"{records + rejected:,}",
            f"{records:,}",
            f"{rejected:,}",
            pairs,
            f"{rounds:.2f}",
            f"{self.dropped.total():,}",
        )

    def lengths(self) -> tuple[list[int], ...]:
        return self._words


def _spread(words: Sequence[int]) -> str:
    if not words:
        return "–"
    return f"{np.mean(words):.1f}, {np.median(words):.0f}, {np.percentile(words, 95):.0f}"


def _reasons(title: str, column: str, counted: dict[str, Counter], by_number: bool = False) -> ReportTable:
    total = sum(counted.values(), Counter())
    names = sorted(total) if by_number else sorted(total, key=lambda name: (-total[name], name))
    rows = ((str(name), *(f"{counts[name]:,}" for counts in counted.values())) for name in names)
    return ReportTable(title, (column, *counted), tuple(rows))


def _spent(journal: Journal, budget: Budget) -> ReportTable:
    steps = journal.spent_by_step() | {"all": journal.spent()}
    rows = [
        (step, *(f"{number:,}" for number in usage), f"{budget.price(*usage[1:]):.4f}") for step, usage in steps.items()
    ]
    return ReportTable("Requests", ("step", "answered", "prompt tokens", "reply tokens", "cost"), tuple(rows))


def _verdicts(journal: Journal) -> ReportTable:
    counted: dict[str, Counter[bool]] = defaultdict(Counter)
    for _, kind, _, _, good, _ in journal.verdicts():
        counted[kind][good] += 1
    rows = [(kind, f"{counts[True]:,}", f"{counts[False]:,}") for kind, counts in sorted(counted.items())]
    return ReportTable("Manual review", ("kind", "good", "bad"), tuple(rows))
