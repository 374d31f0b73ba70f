"""The quality of a journal's records: statistics, and a manual review of a sample, whose verdicts the journal stores.

Statistics are of pairs per document, rounds, dropped and rejected outcomes, lengths, tokens, cost.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from clara_jax import pages
from clara_jax.files import replaced_when_whole
from clara_jax.synthesis.journal import ItemOutcome, Journal
from clara_jax.synthesis.runner import Budget
from clara_jax.text.words import words

HELP = "y good, n bad (words after it are a note: n wrong year), Enter skips, q ends"


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


@dataclasses.dataclass(frozen=True)
class ReviewEntry:
    """A pair, or a paraphrase, to be judged.

    Attributes:
      item: id of the item.
      kind: of the record.
      number: of the pair within the record; 0 for a paraphrase.
      document: the record's documents.
      question: "" for a paraphrase.
      answer: the answer, or the paraphrase.
    """

    item: str
    kind: str
    number: int
    document: str
    question: str
    answer: str


def sample(journal: Journal, count: int, seed: int, reviewer: str, kind: str | None = None) -> list[ReviewEntry]:
    """Draw pairs that the reviewer has not judged, uniformly from all of one kind, or of all kinds."""
    judged = {(item, its_kind, number) for item, its_kind, number, who, _, _ in journal.verdicts() if who == reviewer}
    drawn, rng, seen = [], random.Random(seed), 0
    for shown in _entries(journal):
        if (shown.item, shown.kind, shown.number) in judged or kind not in (None, shown.kind):
            continue
        seen += 1  # reservoir: a journal may have millions
        if len(drawn) < count:
            drawn.append(shown)
        elif (at := rng.randrange(seen)) < count:
            drawn[at] = shown
    rng.shuffle(drawn)
    return drawn


def review(journal: Journal, shown: list[ReviewEntry], reviewer: str, read: Callable[[str], str], say: Callable) -> int:
    """Show each entry and store its verdict.

    Args:
      journal: where verdicts are stored.
      shown: the entries.
      reviewer: name of the person.
      read: reads a line after showing a prompt; EOFError ends the review, as "q" does.
      say: prints a text.

    Returns:
      The number of entries that were judged.
    """
    judged = 0
    say(HELP)
    for place, entry in enumerate(shown, 1):
        say(f"\n--- {place} of {len(shown)}: {entry.item}, {entry.kind} ---\n{entry.document}\n")
        say(f"Q: {entry.question}\nA: {entry.answer}" if entry.question else f"Paraphrase: {entry.answer}")
        while True:
            try:
                word, _, note = read("good? ").strip().partition(" ")
            except EOFError:
                word, note = "q", ""
            if word in ("y", "n"):
                journal.judge(entry.item, entry.kind, entry.number, reviewer, word == "y", note.strip())
                judged += 1
            if word in ("y", "n", "", "q"):
                break
            say(HELP)
        if word == "q":
            break
    return judged


def review_summary(journal: Journal) -> str:
    """Describe the share of good entries by kind, with Wilson's 95% interval, one line for each."""
    lines = []
    for kind, counts in _judged(journal).items():
        good, count = counts[True], counts.total()
        low, high = wilson(good, count)
        lines.append(f"{kind}: {good} of {count} good, {good / count:.0%} ({low:.0%} to {high:.0%})")
    return "\n".join(lines) or "nothing has been judged"


def wilson(good: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share (Wilson 1927)."""
    share, spread = good / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half


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
    rows = [(kind, f"{counts[True]:,}", f"{counts[False]:,}") for kind, counts in _judged(journal).items()]
    return ReportTable("Manual review", ("kind", "good", "bad"), tuple(rows))


def _judged(journal: Journal) -> dict[str, Counter[bool]]:
    """Return how many records reviewers found good and bad, by kind, in the order of the kinds' names."""
    counted: dict[str, Counter[bool]] = defaultdict(Counter)
    for _, kind, _, _, good, _ in journal.verdicts():
        counted[kind][good] += 1
    return dict(sorted(counted.items()))


def _entries(journal: Journal) -> Iterator[ReviewEntry]:
    for item, outcome in journal.outcomes():
        record = outcome.record
        if record is None:
            continue
        for number, answer in enumerate(record["answers"]):
            question = record["question"][number] if record["question"] else ""
            yield ReviewEntry(item.id, outcome.kind, number, "\n\n".join(record["docs"]), question, answer)
