"""People look at some of the records, and say whether they are good."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator

from clara_jax.synthesis.journal import Journal

HELP = "y good, n bad (words behind it are a note: n wrong year), Enter skips, q ends"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A pair, or a paraphrase, as it is shown.

    Attributes:
      item, kind, number: which one; paraphrases have the number 0.
      question: "" for a paraphrase.
    """

    item: str
    kind: str
    number: int
    document: str
    question: str
    answer: str


def sample(journal: Journal, count: int, seed: int, reviewer: str, kind: str | None = None) -> list[Shown]:
    """Pairs that the reviewer has not judged, drawn alike from all that are there; of one kind, or of all."""
    judged = {(item, own, number) for item, own, number, who, _, _ in journal.verdicts() if who == reviewer}
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


def review(journal: Journal, shown: list[Shown], reviewer: str, read: Callable[[str], str], say: Callable) -> int:
    """Shows each and stores what is said of it.

    Args:
      read: gives a line for a prompt; EOFError ends, as "q" does.

    Returns:
      how many were judged.
    """
    judged = 0
    say(HELP)
    for place, own in enumerate(shown, 1):
        say(f"\n--- {place} of {len(shown)}: {own.item}, {own.kind} ---\n{own.document}\n")
        say(f"Q: {own.question}\nA: {own.answer}" if own.question else f"Paraphrase: {own.answer}")
        while True:
            try:
                word, _, note = read("good? ").strip().partition(" ")
            except EOFError:
                word, note = "q", ""
            if word in ("y", "n"):
                journal.judge(own.item, own.kind, own.number, reviewer, word == "y", note.strip())
                judged += 1
            if word in ("y", "n", "", "q"):
                break
            say(HELP)
        if word == "q":
            break
    return judged


def summary(journal: Journal) -> str:
    """The share of good ones by kind, with Wilson's 95% interval."""
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
    """Wilson's interval of a share (Wilson 1927)."""
    share, spread = good / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half


def _all(journal: Journal) -> Iterator[Shown]:
    for item, outcome in journal.outcomes():
        record = outcome.record
        if record is None:
            continue
        for number, answer in enumerate(record["answers"]):
            question = record["question"][number] if record["question"] else ""
            yield Shown(item.id, outcome.kind, number, "\n\n".join(record["docs"]), question, answer)
