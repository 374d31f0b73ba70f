"""Manual review: a sample of the records is shown to a person, whose verdicts are stored in the journal."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator

from clara_jax.synthesis.journal import Journal

HELP = "y good, n bad (words after it are a note: n wrong year), Enter skips, q ends"


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
    for shown in _all(journal):
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


def summary(journal: Journal) -> str:
    """Describe the share of good entries by kind, with Wilson's 95% interval, one line for each."""
    given: defaultdict[str, list[bool]] = defaultdict(list)
    for _, kind, _, _, good, _ in journal.verdicts():
        given[kind].append(good)
    lines = []
    for kind, verdicts in sorted(given.items()):
        low, high = wilson(sum(verdicts), len(verdicts))
        share = sum(verdicts) / len(verdicts)
        lines.append(f"{kind}: {sum(verdicts)} of {len(verdicts)} good, {share:.0%} ({low:.0%} to {high:.0%})")
    return "\n".join(lines) or "nothing has been judged"


def wilson(good: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share (Wilson 1927)."""
    share, spread = good / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half


def _all(journal: Journal) -> Iterator[ReviewEntry]:
    for item, outcome in journal.outcomes():
        record = outcome.record
        if record is None:
            continue
        for number, answer in enumerate(record["answers"]):
            question = record["question"][number] if record["question"] else ""
            yield ReviewEntry(item.id, outcome.kind, number, "\n\n".join(record["docs"]), question, answer)
