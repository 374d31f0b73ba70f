"""The journal of a synthesis: requests, replies and outcomes in one SQLite file, from which the output is written.

It survives a kill at any moment:

    settings   what every outcome depends on; another run with others is refused
    items      documents or records to work on, and which worker has each
    replies    every answered request by its content, so that it is sent only once
    outcomes   the result of an item, by kind: a record, or the reason why there is none
    verdicts   judgements of reviewers (`clara_jax.synthesis.quality`)

An item that was not finished is started again and replayed from its replies, without requests. So a killed process
loses only the requests in flight. A worker holds a lock on a file beside the journal for as long as it lives: the
kernel releases it when the worker dies, and its items are free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import write_json_lines
from clara_jax.locks import locked
from clara_jax.synthesis.completion import Completion

FORMAT = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
  id TEXT PRIMARY KEY, place INTEGER, digest TEXT NOT NULL, content TEXT NOT NULL, worker INTEGER,
  done INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting ON items (place) WHERE done = 0 AND worker IS NULL;
CREATE TABLE IF NOT EXISTS replies (
  key TEXT PRIMARY KEY, item TEXT NOT NULL, step TEXT NOT NULL, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, cut INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
  item TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, record TEXT, reason TEXT, detail TEXT NOT NULL,
  rounds INTEGER NOT NULL, dropped TEXT NOT NULL, PRIMARY KEY (item, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (
  item TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, reviewer TEXT NOT NULL, good INTEGER NOT NULL,
  note TEXT NOT NULL, PRIMARY KEY (item, kind, number, reviewer)) WITHOUT ROWID;
"""


@dataclasses.dataclass(frozen=True)
class Item:
    """A document or a record to work on.

    Attributes:
      id: unique.
      digest: of the content: an item that has changed is another one.
      content: all data needed to work on it, JSON values.
    """

    id: str
    digest: str
    content: Mapping[str, Any]

    @classmethod
    def of(cls, id: str, content: Mapping[str, Any]) -> Item:
        """Return the item of a content, with its digest."""
        return cls(id, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32], content)


class Dropped(NamedTuple):
    """A pair, or a paraphrase, that did not pass.

    Attributes:
      reason: a short name, for statistics.
      detail: one line.
      question: "" for a paraphrase.
      answer: the answer, or the paraphrase.
    """

    reason: str
    detail: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class ItemOutcome:
    """The result of an item for one kind of record.

    Attributes:
      kind: e.g. "simple", "complex", "paraphrase".
      record: fields of the training record; None where the item was rejected.
      reason: why it was rejected, a short name.
      detail: one line about the reason.
      rounds: number of rounds of questions, or of paraphrases.
      dropped: pairs or paraphrases that did not pass.
    """

    kind: str
    record: Mapping[str, Any] | None
    reason: str | None = None
    detail: str = ""
    rounds: int = 1
    dropped: Sequence[Dropped] = ()


class TokenUsage(NamedTuple):
    """The number of answered requests, and their tokens."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


class Journal:
    """An open journal, see the module's docstring. For one thread; coroutines of that thread may share it."""

    def __init__(self, path: Path):
        """Open a journal, and create it where it is missing.

        Raises:
          ClaraError: it cannot be opened, or is no journal.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            # Where two processes turn a new file to WAL at once, SQLite refuses one of them without waiting.
            with locked(path.with_name(f"{path.name}.opening"), None):
                # Commits survive a kill of the process; a power cut may cost the last ones.
                self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + _TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ClaraError(f"{path}: cannot be opened as a journal: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- settings ---

    def bind(self, settings: Mapping[str, Any]) -> None:
        """Store the settings that outcomes depend on, or compare them with the stored ones.

        Raises:
          ClaraError: this journal was begun with other settings.
        """
        given = {"format": FORMAT} | {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        with self._transaction():
            noted = dict(self._db.execute("SELECT name, value FROM settings"))
            if not noted:
                self._db.executemany("INSERT INTO settings VALUES (?, ?)", given.items())
                return
        for name in sorted(noted.keys() | given.keys()):
            if noted.get(name) != given.get(name):
                raise ClaraError(
                    f"{self.path}: was begun with {name} {noted.get(name, 'not set')} and is now given "
                    f"{given.get(name, 'none')}; give the same, or name another --journal"
                )

    # --- items ---

    def want(self, items: Iterable[Item]) -> int:
        """Set the items to work on, in this order; other items in the journal stay, but are not worked on.

        Returns:
          The number of items.

        Raises:
          ClaraError: two have the same id; one is in the journal with another content. Nothing is changed then.
        """
        count = 0
        with self._transaction():
            self._db.execute("UPDATE items SET place = NULL")
            for count, item in enumerate(items, 1):
                known = self._db.execute("SELECT place, digest FROM items WHERE id = ?", (item.id,)).fetchone()
                if known is None:
                    row = (item.id, count, item.digest, json.dumps(item.content, ensure_ascii=False))
                    self._db.execute("INSERT INTO items (id, place, digest, content) VALUES (?, ?, ?, ?)", row)
                elif known[0] is not None:
                    raise ClaraError(f"two items have the id {item.id!r}; each needs one of its own")
                elif known[1] != item.digest:
                    raise ClaraError(
                        f"{item.id}: the journal {self.path} has it with another content; give it another id, or name "
                        "another --journal"
                    )
                else:
                    self._db.execute("UPDATE items SET place = ? WHERE id = ?", (count, item.id))
        return count

    def claim(self, worker: int, count: int) -> list[Item]:
        """Assign the next free items to a worker and return them."""
        if count < 1:
            return []
        with self._transaction():
            rows = self._db.execute(
                "SELECT id, digest, content FROM items WHERE done = 0 AND worker IS NULL AND place IS NOT NULL "
                "ORDER BY place LIMIT ?",
                (count,),
            ).fetchall()
            self._db.executemany("UPDATE items SET worker = ? WHERE id = ?", ((worker, row[0]) for row in rows))
        return [Item(id, digest, json.loads(content)) for id, digest, content in rows]

    def release(self, worker: int) -> None:
        """Free the items that a worker has claimed and not finished."""
        self._db.execute("UPDATE items SET worker = NULL WHERE worker = ? AND done = 0", (worker,))

    def release_dead(self) -> None:
        """Free the unfinished items of workers that are dead."""
        rows = self._db.execute("SELECT DISTINCT worker FROM items WHERE worker IS NOT NULL AND done = 0").fetchall()
        for (worker,) in rows:
            with contextlib.suppress(ClaraError), locked(self._lock(worker), "it lives"):
                self.release(worker)

    @contextlib.contextmanager
    def worker(self) -> Iterator[int]:
        """Register a worker for the block: a number that no living worker has; items of its dead holder are freed."""
        for number in range(1, 1000):
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(self._lock(number), "it lives"))
                except ClaraError:
                    continue
                self.release(number)
                yield number
                return
        raise ClaraError(f"{self.path}: 999 workers are on it already")

    def again(self, reason: str) -> None:
        """Free the items that were rejected for a reason, and forget their outcomes."""
        with self._transaction():
            self._db.execute(
                "UPDATE items SET done = 0, worker = NULL WHERE id IN (SELECT item FROM outcomes WHERE reason = ?)",
                (reason,),
            )
            self._db.execute("DELETE FROM outcomes WHERE reason = ?", (reason,))

    def left(self) -> int:
        """Return the number of wanted items that are not finished."""
        query = "SELECT COUNT(*) FROM items WHERE done = 0 AND place IS NOT NULL"
        return self._db.execute(query).fetchone()[0]

    # --- replies ---

    def reply(self, key: str) -> Completion | None:
        """Return the stored reply to a request, None where there is none."""
        query = "SELECT text, prompt_tokens, completion_tokens, cut FROM replies WHERE key = ?"
        row = self._db.execute(query, (key,)).fetchone()
        return None if row is None else Completion(row[0], row[1], row[2], bool(row[3]))

    def remember(self, key: str, item: str, step: str, reply: Completion) -> Completion:
        """Store a reply at once and return the one that counts: an earlier reply to the same request stays."""
        row = (key, item, step, reply.text, reply.prompt_tokens, reply.completion_tokens, int(reply.cut))
        self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        stored = self.reply(key)
        assert stored is not None, "it was just inserted"
        return stored

    def spent(self) -> TokenUsage:
        """Return the usage of all replies together."""
        query = "SELECT COUNT(*), TOTAL(prompt_tokens), TOTAL(completion_tokens) FROM replies"
        return TokenUsage(*map(int, self._db.execute(query).fetchone()))

    def spent_by_step(self) -> dict[str, TokenUsage]:
        """Return the usage of each step's replies."""
        query = (
            "SELECT step, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens) FROM replies GROUP BY step ORDER BY step"
        )
        return {step: TokenUsage(*numbers) for step, *numbers in self._db.execute(query)}

    # --- outcomes ---

    def finish(self, item: Item, outcomes: Sequence[ItemOutcome]) -> None:
        """Store an item's outcomes and mark it as done."""
        rows = [
            (
                item.id,
                number,
                outcome.kind,
                None if outcome.record is None else json.dumps(outcome.record, ensure_ascii=False),
                outcome.reason,
                outcome.detail,
                outcome.rounds,
                json.dumps(outcome.dropped, ensure_ascii=False),
            )
            for number, outcome in enumerate(outcomes)
        ]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("UPDATE items SET done = 1, worker = NULL WHERE id = ?", (item.id,))

    def outcomes(self) -> Iterator[tuple[Item, ItemOutcome]]:
        """Yield the outcomes of all items that are wanted and finished, in the order of the items."""
        query = (
            "SELECT id, digest, content, kind, record, reason, detail, rounds, dropped FROM items "
            "JOIN outcomes ON item = id WHERE place IS NOT NULL AND done = 1 ORDER BY place, number"
        )
        for id, digest, content, kind, record, reason, detail, rounds, dropped in self._db.execute(query):
            fields = None if record is None else json.loads(record)
            lost = tuple(Dropped(*one) for one in json.loads(dropped))
            yield Item(id, digest, json.loads(content)), ItemOutcome(kind, fields, reason, detail, rounds, lost)

    # --- verdicts ---

    def judge(self, item: str, kind: str, number: int, reviewer: str, good: bool, note: str) -> None:
        """Store a reviewer's verdict on a record's pair (or its paraphrase, number 0); the last one counts."""
        row = (item, kind, number, reviewer, int(good), note)
        self._db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", row)

    def verdicts(self) -> list[tuple[str, str, int, str, bool, str]]:
        """Return all verdicts as (item, kind, number, reviewer, good, note)."""
        rows = self._db.execute("SELECT * FROM verdicts ORDER BY item, kind, number, reviewer").fetchall()
        return [(*row[:4], bool(row[4]), row[5]) for row in rows]

    def _lock(self, worker: int) -> Path:
        return self.path.with_name(f"{self.path.name}.worker{worker}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


@dataclasses.dataclass(frozen=True)
class OutputCounts:
    """The number of records of each kind, and of rejected outcomes for each reason."""

    records: Mapping[str, int]
    rejected: Mapping[str, int]


def rejected_file(output: Path) -> Path:
    """Return the file beside the records that lists what was rejected: ``NAME.aside.jsonl``."""
    name = output.name.partition(".jsonl")
    return output.with_name(f"{name[0]}.aside{name[1]}{name[2]}")


def write_output(
    journal: Journal, output: Path, record_of: Callable[[Item, ItemOutcome], Mapping[str, Any]]
) -> OutputCounts:
    """Write the records of all finished items, in the order of the items, and beside them what was rejected.

    The same outcomes give the same bytes. Where it fails, both files stay as they were.

    Args:
      journal: whose outcomes are written.
      output: the file of the records.
      record_of: makes the line of an outcome that has a record.
    """
    records, rejected = Counter[str](), Counter[str]()
    with contextlib.ExitStack() as stack:
        put = stack.enter_context(write_json_lines(output))
        put_rejected = stack.enter_context(write_json_lines(rejected_file(output)))
        for item, outcome in journal.outcomes():
            if outcome.record is not None:
                put(dict(record_of(item, outcome)))
                records[outcome.kind] += 1
            else:
                put_rejected({"id": item.id, "kind": outcome.kind, "reason": outcome.reason, "detail": outcome.detail})
                rejected[outcome.reason or ""] += 1
    return OutputCounts(records, rejected)
