"""A LanceDB table that several processes read and write.

Reads that belong together see one version, conflicting commits are retried, and compaction keeps the files of readers.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import tenacity

from clara_jax.errors import ClaraError
from clara_jax.locks import locked
from clara_jax.retrieval.lance import lancedb

T = TypeVar("T")
INDEX_CACHE, METADATA_CACHE = 128 << 20, 32 << 20  # bytes that a connection keeps of indexes and of files' metadata
COMMITS = 16  # after which a small table is compacted
_ROWS = 1000  # of a large table for each further commit, as compaction rewrites the table
KEPT = datetime.timedelta(hours=1)  # longer than any read of one version, where readers have no locks
_AT_ONCE = datetime.timedelta(milliseconds=1)
_WAIT, _TRIES = 0.025, 40  # seconds between two checks for readers, and their number
_PANICS = ("PanicException", "RustPanic")  # of LanceDB's Rust code on a damaged file; no module exports these classes
_UNIQUE = b"lance-schema:unenforced-primary-key"
_AGAIN = 60.0  # seconds in which a commit is retried


class StoreError(ClaraError):
    """A store that cannot be read or written for a reason on its side: a damaged file, a full disk."""


class Locks:
    """Locks of the readers and the writers of a database: lock files in its directory; a bucket has none.

    Attributes:
      remote: whether the database is in a bucket.
    """

    def __init__(self, location: str):
        self._location, location = location, location.removeprefix("file://")
        self.remote = "://" in location
        self._writers, self._readers = os.path.join(location, ".lock"), os.path.join(location, ".readers")
        self._writing = self._reading = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for other writers, and keep them out in the block.

        Raises:
          StoreError: the directory cannot be written.
        """
        with contextlib.ExitStack() as stack:
            if not (self.remote or self._writing):
                with errors(self._location, "written"):
                    stack.enter_context(locked(self._writers, None))
            self._writing += 1
            try:
                yield
            finally:
                self._writing -= 1

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Register a reader in the block, so that `nobody_reads` yields False."""
        free = self.remote or self._reading
        with contextlib.nullcontext() if free else locked(self._readers, None, shared=True):
            self._reading += 1
            try:
                yield
            finally:
                self._reading -= 1

    @contextlib.contextmanager
    def nobody_reads(self) -> Iterator[bool]:
        """Wait up to a second for readers to end, keep new ones out in the block, and yield whether it succeeded."""
        with contextlib.ExitStack() as stack:
            for _ in range(0 if self.remote or self._reading else _TRIES):
                try:
                    stack.enter_context(locked(self._readers, "somebody reads"))
                except ClaraError:
                    time.sleep(_WAIT)
                else:
                    yield True
                    return
            yield False


class Table:
    """A table of a database, for one thread at a time.

    Attributes:
      location: of the database, a directory or a URL.
    """

    def __init__(self, location: str, database: Any, name: str, locks: Locks):
        self.location, self._locks = location, locks
        self._table = database.open_table(name)
        self._readers = self._tidied = 0

    @property
    def schema(self) -> Any:
        """The Arrow schema of the table."""
        return self._table.schema

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield LanceDB's table, of which all reads in the block see one version.

        This is the newest version when the outermost block begins.
        """
        if self._readers:
            yield self._table
            return
        with self._locks.reading():
            with errors(self.location, "read"):
                self._table.checkout_latest()
            self._readers += 1
            try:
                yield self._table
            finally:
                self._readers -= 1

    def read(self, work: Callable[[Any], T], what: str = "read") -> T:
        """Return ``work(table)``, a read of one version.

        Args:
          work: reads from LanceDB's table.
          what: the operation for error messages, e.g. "searched".

        Raises:
          StoreError: the table cannot be read; a file is damaged.
        """
        with self.reading() as table, errors(self.location, what):
            return work(table)

    def commit(self, what: str, work: Callable[[Any], T]) -> T:
        """Return ``work(table)``, which commits; it is retried where another commit came in between.

        Args:
          what: the operation for error messages, e.g. "written".
          work: writes to LanceDB's table.

        Raises:
          StoreError: the table cannot be written.
        """
        # Writers of a bucket conflict, as there are no locks, and so do programs that ignore the locks.
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_conflicts),
            wait=tenacity.wait_random_exponential(0.02, 2),
            stop=tenacity.stop_after_delay(_AGAIN),
            reraise=True,
        )

        def attempt() -> T:
            self._table.checkout_latest()
            return work(self._table)

        with self._locks.writing(), errors(self.location, what):
            return again(attempt)

    def have_unique(self, column: str) -> None:
        """Have LanceDB refuse one of two concurrent commits that insert the same value.

        This costs 70 kB a commit, so it is done only where writers have no locks.
        """

        def there(table: Any) -> bool:
            return any(key.startswith(_UNIQUE) for key in table.schema.field(column).metadata or {})

        if self._locks.remote and not self.read(there):
            self.commit("made", lambda table: there(table) or table.set_unenforced_primary_key(column))

    def have_columns(self, columns: pa.Schema) -> None:
        """Add columns that the table does not have yet, with nulls in all rows."""

        def missing(table: Any) -> list[pa.Field]:
            return [field for field in columns if field.name not in table.schema.names]

        if self.read(missing):
            self.commit("written", lambda table: (lacking := missing(table)) and table.add_columns(pa.schema(lacking)))

    def tidy(self, now: bool = False) -> None:
        """Compact the table: merge small files, update indexes, and remove files that only older versions need.

        This is done after `COMMITS` commits, and one more for each thousand rows. Versions that may have readers are
        kept: those of the last hour, unless all readers are known to have ended.

        Args:
          now: do it at once.
        """
        with self._locks.writing():
            due = self.read(lambda table: table.version - self._tidied >= COMMITS + len(table) // _ROWS)
            if not (due or now):
                return
            with errors(self.location, "tidied"):
                self._optimize(KEPT)
                with self._locks.nobody_reads() as nobody:
                    if nobody:  # the merged small files still belong to the version before
                        self._optimize(_AT_ONCE)
            self._tidied = self._table.version

    def _optimize(self, kept: datetime.timedelta) -> None:
        self._table.checkout_latest()
        try:
            self._table.optimize(cleanup_older_than=kept)
        except RuntimeError as error:
            if not _conflicts(error):
                raise  # on a conflict, a concurrent writer to the bucket compacts, or a later call does


def connect(location: str) -> Any:
    """Open a LanceDB connection whose memory is bounded by `INDEX_CACHE` and `METADATA_CACHE`."""
    return lancedb.connect(location, session=lancedb.Session(INDEX_CACHE, METADATA_CACHE))


def names(database: Any) -> list[str]:
    """Return the names of a database's tables."""
    return list(database.list_tables().tables)


@contextlib.contextmanager
def errors(location: str, what: str) -> Iterator[None]:
    """Turn errors of the file system or the bucket, and damaged files, into a `StoreError`.

    Raises:
      StoreError: "the store cannot be" ``what``.
    """
    try:
        yield
    except ClaraError:
        raise
    except BaseException as error:
        if type(error).__name__ in _PANICS:
            why = "a file of it is damaged; restore the store from a copy, or make it again"
        elif isinstance(error, (ValueError, RuntimeError, OSError)):
            why = _reason(error)
        else:
            raise
        raise StoreError(f"{location}: the store cannot be {what}: {why}") from error


def _conflicts(error: BaseException) -> bool:
    """Return whether an error of LanceDB is a conflict with another commit.

    Its messages differ; a missing manifest is one, too: another process has removed an older version that was read.
    """
    words = str(error).lower()
    return any(word in words for word in ("conflict", "retry", "concurrent")) or (
        "not found" in words and ".manifest" in words
    )


def _reason(error: Exception) -> str:
    """Return the first line of a message, without the location in a library's source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(", /")[0][:300]
