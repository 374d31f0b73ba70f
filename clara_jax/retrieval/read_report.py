"""What became of the files of a corpus: which were read, which were not, and why."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

from clara_jax.data.corpus.cleaning import one_line
from clara_jax.data.corpus.files import JSONL
from clara_jax.errors import ClaraError

DATASET = "dataset"  # the kind of documents of a built data set
SHOWN = 100  # lines of one part of the table


class ReadReport:
    """The report of one reading of a corpus; it also decides whether a file that cannot be read ends it.

    Attributes:
      found: number of files that were found.
      at: number of files that were begun.
      files: number of files that were read, by kind.
      documents: number of documents of these, by kind.
      paths: real paths of the files and data sets that were found.
      ids: of the documents.
      skipped: the reason for each place (a file, or "file.jsonl:17") that could not be read.
      failed: real paths of these files and folders.
      same: for each file that was left out since its content is that of another: the other one.
      notes: what is to be known of files that were read.
      ignored: number of files in folders that were passed over, by suffix or reason.

    Args:
      strict: the first place that cannot be read is an error.
      known: reasons for places that may fail all the same, those of an earlier reading.
    """

    def __init__(self, strict: bool = False, known: Mapping[str, str] | None = None):
        self.found = self.at = 0
        self.files: collections.Counter[str] = collections.Counter()
        self.documents: collections.Counter[str] = collections.Counter()
        self.ignored: collections.Counter[str] = collections.Counter()
        self.paths: set[str] = set()
        self.ids: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.failed: set[str] = set()
        self.same: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.known = known or {}
        self._strict = strict

    def skip(self, place: str, error: ClaraError, path: str) -> None:
        """Record a place that cannot be read.

        Args:
          place: "file", or "file:line".
          error: the reason.
          path: the real path of the file.

        Raises:
          ClaraError: ``error``, where the reading is strict.
        """
        if self._strict and place not in self.known:
            raise error
        self.skipped[place] = str(error).removeprefix(f"{' '.join(place.split())}: ")
        self.failed.add(path)

    def join(self, other: ReadReport) -> None:
        """Add the report of another shard of the same corpus, whose documents this one does not have."""
        for kind, count in other.files.items():
            # All shards look at a file of many documents; one that is a document alone belongs to one of them.
            shared = kind in (JSONL, DATASET)
            self.files[kind] = max(self.files[kind], count) if shared else self.files[kind] + count
        self.documents += other.documents
        self.ignored |= other.ignored
        self.skipped |= other.skipped
        self.same |= other.same
        self.notes |= other.notes

    def check_any(self) -> None:
        """Check that there is something to go on with.

        Raises:
          ClaraError: not one document was read.
        """
        if not self.ids:
            place, reason = next(iter(self.skipped.items()), ("the corpus", "holds no document"))
            raise ClaraError(f"nothing could be read; the first of {len(self.skipped):,}: {place}: {reason}")

    def table(self) -> str:
        """Return the table: what was read, by kind, then each file that was not, with the reason."""
        kinds = sorted(self.files)
        wide = max(map(len, ["kind", *kinds]))
        lines = [f"{'kind':<{wide}}  {'files':>7}  {'documents':>9}"]
        lines += [f"{kind:<{wide}}  {self.files[kind]:>7,}  {self.documents[kind]:>9,}" for kind in kinds]
        lines += _part("skipped", _by_reason(self.skipped))
        lines += _part("the same file as another", (f"{path}: as {other}" for path, other in self.same.items()))
        lines += _part("read, but", (f"{path}: {note}" for path, note in self.notes.items()))
        if self.ignored:
            counts = (f"{count:,} {name}" for name, count in sorted(self.ignored.items()))
            lines.append(f"passed over: {', '.join(map(one_line, counts))}")
        return "\n".join(lines)


def _by_reason(reasons: Mapping[str, str]) -> list[str]:
    """Return a line for each place, those of equal reasons one after the other."""
    first = {reason: number for number, reason in reversed(list(enumerate(reasons.values())))}
    return [f"{place}: {reason}" for place, reason in sorted(reasons.items(), key=lambda item: first[item[1]])]


def _part(title: str, lines: Iterable[str]) -> list[str]:
    listed = list(lines)
    if not listed:
        return []
    shown = [f"  {one_line(line)}" for line in listed[:SHOWN]]
    return [f"{title}: {len(listed):,}", *shown, *[f"  and {len(listed) - SHOWN:,} more"] * (len(listed) > SHOWN)]
