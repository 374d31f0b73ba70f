"""What has been asked and what has come of it: one SQLite file, which outlives any process that writes it.

    settings   what every outcome depends on; another run with others is refused
    items      what is worked on (documents, or records), and which worker has it
    replies    every answered request by its content: asked once, never again
    outcomes   what came of an item, by kind: a record, or the reason why there is none
    verdicts   what people said of records (`clara_jax.synthesis.review`)

An item that was not finished is begun anew, and comes as far as it was from its replies, without a request. So a
process that is killed loses the requests in flight alone. A worker holds a lock on a file beside the journal for as
long as it lives: the kernel says which workers are dead, and their items are free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clara_jax.errors import ClaraError
from clara_jax.files import locked
from clara_jax.synthesis.endpoint import Reply

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
      content: whatever is needed to work on it, as JSON has it.
    """

    id: str
    digest: str
    content: Mapping[str, Any]


class Dropped(NamedTuple):
    """A pair, or a paraphrase, that did not pass.

    Attributes:
      reason: a short name, for statistics; detail: one line.
    """

    reason: str
    detail: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of an item.

    Attributes:
      kind: e.g. "simple", "complex", "paraphrase".
      record: fields of the training record; None where the item was set aside.
      reason: why it was set aside, a short name; detail: one line.
      rounds: how often something was asked for.
      dropped: what was thrown away on the way.
    """

    kind: str
    record: Mapping[str, Any] | None
    reason: str | None = None
    detail: str = ""
    rounds: int = 1
    dropped: Sequence[Dropped] = ()


class Spent(NamedTuple):
    """Tokens of all answered requests, and their number."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


class Journal:
    """See the beginning of this module. For one thread; coroutines of that thread may share it."""

    def __init__(self, path: Path):
        """
        Raises:
          ClaraError: it cannot be opened, or is no journal.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            # Nothing that a process has committed is lost when it is killed; a power cut may cost the last commits.
            self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + _TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ClaraError(f"{path}: cannot be opened as a journal: {error}") from error

    def close(self) -> None:
        self._db.close()

    # --- settings ---

    def bind(self, settings: Mapping[str, Any]) -> None:
        """Notes what outcomes depend on, or compares it with what is noted.

        Raises:
          ClaraError: this journal was begun with others.
        """
        told = {"format": FORMAT} | {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        with self._transaction():
            noted = dict(self._db.execute("SELECT name, value FROM settings"))
            if not noted:
                self._db.executemany("INSERT INTO settings VALUES (?, ?)", told.items())
                return
        for name in sorted(noted.keys() | told.keys()):
            if noted.get(name) != told.get(name):
                raise ClaraError(
                    f"{self.path}: was begun with {name} {noted.get(name, 'not set')} and is now given "
                    f"{told.get(name, 'none')}; give the same, or name another --journal"
                )

    # --- items ---

    def want(self, items: Iterable[Item]) -> int:
        """Takes in what is to be worked on, in its order; what the journal has beside stays, but is not worked on.

        Returns:
          how many there are.

        Raises:
          ClaraError: two have one id; one is in the journal with another content. Nothing is changed then.
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
        """The next items that nobody has, which this worker has from now on."""
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
        """Gives back what a worker has claimed and not finished."""
        self._db.execute("UPDATE items SET worker = NULL WHERE worker = ? AND done = 0", (worker,))

    def release_dead(self) -> None:
        """Gives back what workers have claimed that live no more."""
        rows = self._db.execute("SELECT DISTINCT worker FROM items WHERE worker IS NOT NULL AND done = 0").fetchall()
        for (worker,) in rows:
            with contextlib.suppress(ClaraError), locked(self._lock(worker), "it lives"):
                self.release(worker)

    @contextlib.contextmanager
    def worker(self) -> Iterator[int]:
        """A number that no living worker has, for the block; what its former bearer had claimed is free."""
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
        """What was set aside for a reason is worked on once more."""
        with self._transaction():
            self._db.execute(
                "UPDATE items SET done = 0, worker = NULL WHERE id IN (SELECT item FROM outcomes WHERE reason = ?)",
                (reason,),
            )
            self._db.execute("DELETE FROM outcomes WHERE reason = ?", (reason,))

    def left(self) -> int:
        """Items that are not finished."""
        query = "SELECT COUNT(*) FROM items WHERE done = 0 AND place IS NOT NULL"
        return self._db.execute(query).fetchone()[0]

    # --- replies ---

    def reply(self, key: str) -> Reply | None:
        """What was answered to a request."""
        query = "SELECT text, prompt_tokens, completion_tokens, cut FROM replies WHERE key = ?"
        row = self._db.execute(query, (key,)).fetchone()
        return None if row is None else Reply(row[0], row[1], row[2], bool(row[3]))

    def remember(self, key: str, item: str, step: str, reply: Reply) -> Reply:
        """Writes down an answer, at once; returns what counts: an answer that is there already stays."""
        row = (key, item, step, reply.text, reply.prompt_tokens, reply.completion_tokens, int(reply.cut))
        self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return self.reply(key)

    def spent(self) -> Spent:
        """Of all replies."""
        query = "SELECT COUNT(*), TOTAL(prompt_tokens), TOTAL(completion_tokens) FROM replies"
        return Spent(*map(int, self._db.execute(query).fetchone()))

    def spent_by_step(self) -> dict[str, Spent]:
        query = (
            "SELECT step, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens) FROM replies GROUP BY step ORDER BY step"
        )
        return {step: Spent(*numbers) for step, *numbers in self._db.execute(query)}

    # --- outcomes ---

    def finish(self, item: Item, outcomes: Sequence[Outcome]) -> None:
        """The item is done, and this came of it."""
        rows = [
            (
                item.id,
                number,
                own.kind,
                None if own.record is None else json.dumps(own.record, ensure_ascii=False),
                own.reason,
                own.detail,
                own.rounds,
                json.dumps(own.dropped, ensure_ascii=False),
            )
            for number, own in enumerate(outcomes)
        ]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("UPDATE items SET done = 1, worker = NULL WHERE id = ?", (item.id,))

    def outcomes(self) -> Iterator[tuple[Item, Outcome]]:
        """Of all items that are wanted and finished, in their order."""
        query = (
            "SELECT id, digest, content, kind, record, reason, detail, rounds, dropped FROM items "
            "JOIN outcomes ON item = id WHERE place IS NOT NULL AND done = 1 ORDER BY place, number"
        )
        for id, digest, content, kind, record, reason, detail, rounds, dropped in self._db.execute(query):
            own = None if record is None else json.loads(record)
            lost = tuple(Dropped(*one) for one in json.loads(dropped))
            yield Item(id, digest, json.loads(content)), Outcome(kind, own, reason, detail, rounds, lost)

    # --- verdicts ---

    def judge(self, item: str, kind: str, number: int, reviewer: str, good: bool, note: str) -> None:
        """Notes what a person says of a record's pair (or of its paraphrase, number 0); a later word counts."""
        row = (item, kind, number, reviewer, int(good), note)
        self._db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", row)

    def verdicts(self) -> list[tuple[str, str, int, str, bool, str]]:
        """(item, kind, number, reviewer, good, note) of all."""
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
