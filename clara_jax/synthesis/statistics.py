"""What a journal has come to: pairs a document, rounds, what was dropped and set aside, lengths, tokens, cost."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clara_jax import pages
from clara_jax.files import replaced_when_whole
from clara_jax.synthesis.asking import Budget
from clara_jax.synthesis.journal import Journal, Outcome
from clara_jax.synthesis.words import words


@dataclasses.dataclass(frozen=True)
class Table:
    """
    Attributes:
      columns: names; the first one is that of the rows' names.
      rows: of texts.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(journal: Journal, budget: Budget) -> list[Table]:
    """All that is told of a journal.

    Args:
      budget: its prices.
    """
    kinds: dict[str, _Kind] = defaultdict(_Kind)
    for _, outcome in journal.outcomes():
        kinds[outcome.kind].add(outcome)
    made = [
        Table(
            "Records",
            ("kind", "items", "records", "set aside", "pairs a record", "rounds", "pairs dropped"),
            tuple((name, *kind.counts()) for name, kind in kinds.items()),
        ),
        Table(
            "Words (mean, median, 95th percentile)",
            ("kind", "documents", "questions", "answers"),
            tuple((name, *map(_spread, kind.lengths())) for name, kind in kinds.items()),
        ),
        _reasons("Rounds until the end", "rounds", {name: kind.rounds for name, kind in kinds.items()}, by_number=True),
        _reasons("Set aside", "reason", {name: kind.aside for name, kind in kinds.items()}),
        _reasons("Dropped", "reason", {name: kind.dropped for name, kind in kinds.items()}),
        _spent(journal, budget),
        _verdicts(journal),
    ]
    return [table for table in made if table.rows]


def text(told: Sequence[Table]) -> str:
    """The tables for a terminal."""
    parts = []
    for table in told:
        lines = [table.columns, *table.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        parts.append("\n".join([table.title, *(f"  {row.rstrip()}" for row in rows)]))
    return "\n\n".join(parts)


def write_page(told: Sequence[Table], title: str, path: Path) -> None:
    """The tables as a page.

    Raises:
      ClaraError: the file system refuses.
    """
    page = pages.render("clara_jax.synthesis", "statistics.html", title=title, tables=told)
    with replaced_when_whole(path) as temporary:
        temporary.write_text(page, "utf-8")


class _Kind:
    """What came of one kind."""

    def __init__(self):
        self.rounds, self.aside, self.dropped = Counter[int](), Counter[str](), Counter[str]()
        self._pairs: list[int] = []
        self._words: tuple[list[int], list[int], list[int]] = ([], [], [])

    def add(self, outcome: Outcome) -> None:
        self.rounds[outcome.rounds] += 1
        self.dropped.update(one.reason for one in outcome.dropped)
        if outcome.record is None:
            self.aside[outcome.reason or ""] += 1
            return
        record = outcome.record
        self._pairs.append(len(record["answers"]))
        # A paraphrase has no questions but "".
        texts = (record["docs"], record["question"] or [], record["answers"])
        for lengths, own in zip(self._words, texts, strict=True):
            lengths += [len(words(text)) for text in own]

    def counts(self) -> tuple[str, ...]:
        records, aside = len(self._pairs), sum(self.aside.values())
        rounds = sum(number * count for number, count in self.rounds.items()) / (records + aside)
        pairs = f"{np.mean(self._pairs):.2f}" if records else "–"
        return (
            f"{records + aside:,}",
            f"{records:,}",
            f"{aside:,}",
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


def _reasons(title: str, column: str, counted: dict[str, Counter], by_number: bool = False) -> Table:
    total = sum(counted.values(), Counter())
    names = (
        sorted(total) if by_number else [name for name, _ in sorted(total.items(), key=lambda own: (-own[1], own[0]))]
    )
    return Table(
        title, (column, *counted), tuple((str(name), *(f"{own[name]:,}" for own in counted.values())) for name in names)
    )


def _spent(journal: Journal, budget: Budget) -> Table:
    steps = journal.spent_by_step() | {"all": journal.spent()}
    rows = [
        (step, *(f"{number:,}" for number in own), f"{budget.price(own.prompt_tokens, own.completion_tokens):.4f}")
        for step, own in steps.items()
    ]
    return Table("Requests", ("step", "answered", "prompt tokens", "reply tokens", "cost"), tuple(rows))


def _verdicts(journal: Journal) -> Table:
    counted: dict[str, Counter[bool]] = defaultdict(Counter)
    for _, kind, _, _, good, _ in journal.verdicts():
        counted[kind][good] += 1
    rows = [(kind, f"{own[True]:,}", f"{own[False]:,}") for kind, own in sorted(counted.items())]
    return Table("Reviewed by people", ("kind", "good", "bad"), tuple(rows))
