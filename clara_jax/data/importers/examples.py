"""The output of all importers, `ImportedExample`, and their log of records that are left out, `Log`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.text import titles

SAME_AGAIN = "the same question and answers again"
UNANSWERABLE = "unanswerable"


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedDocument:
    """A passage of a published data set.

    Attributes:
      title: "" where the data set gives none.
      text: without the title.
      id: the data set's name for it, "" where there is none.
    """

    title: str
    text: str
    id: str = ""

    def full(self, titled: bool = True) -> str:
        """Return the document as a record's ``docs`` hold it: the text, below its title if ``titled``."""
        return titles.titled(self.title, self.text) if titled else self.text


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedExample:
    """A question of a data set, before its candidates are chosen.

    Attributes:
      id: unique within an import; that of the data set where it has one.
      question: as published.
      answers: every accepted answer, the first is the one to learn; none where the data set only judges documents.
      documents: those that the data set gives the question, in its order; may be none.
      gold: for each of them, whether it holds (a part of) the answer.
      where: "file:line", for messages.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    documents: tuple[ImportedDocument, ...]
    gold: tuple[bool, ...]
    where: str


class Log:
    """The records that an import leaves out, and why.

    Attributes:
      skipped: records left out because they are of no use here, by reason.
      noted: oddities of the published files that cost no record, by kind.
      rejected: records that are not in the published format.
      first_rejected: the message about the first of them.
    """

    def __init__(self, reject: Callable[[str, str, Any], None] | None = None):
        """Begin an empty log.

        Args:
          reject: is given place, reason and content of a record that departs from the format, and the import goes on.
            Default: the first one ends the import.
        """
        self.skipped: collections.Counter[str] = collections.Counter()
        self.noted: collections.Counter[str] = collections.Counter()
        self.rejected = 0
        self.first_rejected: str | None = None
        self._reject = reject
        self._ids: dict[str, str] = {}

    def skip(self, reason: str, count: int = 1) -> None:
        """Count records that are left out because they are of no use here."""
        if count:
            self.skipped[reason] += count

    def note(self, what: str, count: int = 1) -> None:
        """Count oddities that cost no record."""
        if count:
            self.noted[what] += count

    @contextlib.contextmanager
    def record(self, where: str, content: Any) -> Iterator[None]:
        """Read one record in this block: a `ClaraError` in it rejects this record alone.

        Args:
          where: "file:line".
          content: the record as it stands in the file, bytes of a line or a JSON value.
        """
        try:
            yield
        except ClaraError as error:
            if self._reject is None:
                raise
            self.rejected += 1
            self.first_rejected = self.first_rejected or str(error)
            self._reject(where, str(error), content)

    def claim(self, id: str, where: str) -> None:
        """Take an id for the record at a place.

        Raises:
          ClaraError: another record has it.
        """
        if id in self._ids:
            raise ClaraError(f"{where}: the id {id!r} is that of {self._ids[id]} already; each id must be unique")
        self._ids[id] = where

    def is_new(self, id: str, where: str) -> bool:
        """Take an id that was made of a record's content; return False, and skip it, for an equal record."""
        if id in self._ids:
            self.skip(SAME_AGAIN)
            return False
        self._ids[id] = where
        return True


def content_id(prefix: str, *texts: str) -> str:
    """Return an id for content that has none, the same wherever it stands: ``<prefix>_<16 hexadecimal digits>``."""
    return f"{prefix}_{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:16]}"


def distinct(texts: list[str]) -> tuple[str, ...]:
    """Return the texts, each once, in their order."""
    return tuple(dict.fromkeys(texts))
