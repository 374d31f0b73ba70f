"""A LanceDB table that several processes read and write: one version for all reads that belong together, commits that
are tried again where another came first, and a tidying that takes no reader's files away.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

os.environ.setdefault("LANCEDB_LOG", "error")  # it reads this once; conflicts, which it warns of, are dealt with here

import lancedb  # noqa: E402
import tenacity  # noqa: E402

from clara_jax.errors import ClaraError  # noqa: E402
from clara_jax.files import locked  # noqa: E402

T = TypeVar("T")
INDEX_CACHE, METADATA_CACHE = 128 << 20, 32 << 20  # bytes that a connection keeps of indexes and of files' metadata
COMMITS = 16  # after which a small table is tidied
_ROWS = 1000  # of a large table for each commit more: tidying rewrites it
_KEPT = datetime.timedelta(hours=1)  # longer than anybody reads one version, where it is not known that nobody does
_AT_ONCE = datetime.timedelta(milliseconds=1)
_WAIT, _TRIES = 0.025, 40  # seconds between two looks at whether somebody reads, and how many
_PANICS = ("PanicException", "RustPanic")  # of LanceDB's Rust over a damaged file; no module has these classes
_UNIQUE = b"lance-schema:unenforced-primary-key"
_AGAIN = 60.0  # seconds in which a commit is tried again


class StoreFailed(ClaraError):
    """A store that cannot be read or written, through no fault of who asked: a damaged file, a full disk."""


class Locks:
    """Who reads and who writes a database: files that are locked in its directory; in a bucket there are none.

    Attributes:
      remote: there are none.
    """

    def __init__(self, location: str):
        self._location, location = location, location.removeprefix("file://")
        self.remote = "://" in location
        self._writers, self._readers = os.path.join(location, ".lock"), os.path.join(location, ".readers")
        self._writing = self._reading = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Waits for other writers, and keeps them out.

        Raises:
          StoreFailed: the directory cannot be written.
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
        """Keeps `nobody_reads` from being true."""
        free = self.remote or self._reading
        with contextlib.nullcontext() if free else locked(self._readers, None, shared=True):
            self._reading += 1
            try:
                yield
            finally:
                self._reading -= 1

    @contextlib.contextmanager
    def nobody_reads(self) -> Iterator[bool]:
        """Whether nobody does; it stays so in the block. Waits a second for it to become so."""
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
        return self._table.schema

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """LanceDB's table; all that is read in the block, in blocks within it too, is of the version that is the newest
        when it begins."""
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
        """What ``work(table)`` gives.

        Raises:
          StoreFailed: the file system or the bucket refuses; a file is damaged.
        """
        with self.reading() as table, errors(self.location, what):
            return work(table)

    def commit(self, what: str, work: Callable[[Any], T]) -> T:
        """What ``work(table)`` gives, which commits; done anew where another commit came in between.

        Args:
          what: has become of the store, for messages, e.g. "written".

        Raises:
          StoreFailed: the file system or the bucket refuses.
        """
        # Writers without a lock conflict, and so does one that keeps to none of ours.
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
        """Has LanceDB refuse one of two commits that insert the same value at the same time. It costs 70 kB a commit;
        where writers wait for each other they are never at the same time."""

        def there(table: Any) -> bool:
            return any(key.startswith(_UNIQUE) for key in table.schema.field(column).metadata or {})

        if self._locks.remote and not self.read(there):
            self.commit("made", lambda table: there(table) or table.set_unenforced_primary_key(column))

    def tidy(self, now: bool = False) -> None:
        """Joins small files, brings indexes up to date and removes what only older versions need, every so many
        commits: `COMMITS`, and one more for each thousand rows.

        Versions that somebody may be reading are kept: those of the last hour, where it is not known that nobody reads.

        Args:
          now: whether or not it is time.
        """
        with self._locks.writing():
            due = self.read(lambda table: table.version - self._tidied >= COMMITS + len(table) // _ROWS)
            if not (due or now):
                return
            with errors(self.location, "tidied"):
                self._optimize(_KEPT)
                with self._locks.nobody_reads() as nobody:
                    if nobody:  # joining the small files has left them to the version before
                        self._optimize(_AT_ONCE)
            self._tidied = self._table.version

    def _optimize(self, kept: datetime.timedelta) -> None:
        self._table.checkout_latest()
        try:
            self._table.optimize(cleanup_older_than=kept)
        except RuntimeError as error:
            if not _conflicts(error):
                raise  # else somebody writes to a bucket: at another time, or by that other


def connect(location: str) -> Any:
    """LanceDB's connection; what it keeps in memory is bounded by `INDEX_CACHE` and `METADATA_CACHE`."""
    return lancedb.connect(location, session=lancedb.Session(INDEX_CACHE, METADATA_CACHE))


def names(database: Any) -> list[str]:
    """The tables of a database."""
    return list(database.list_tables().tables)


@contextlib.contextmanager
def errors(location: str, what: str) -> Iterator[None]:
    """Has what the file system or the bucket refuses, and damaged files, be one error.

    Raises:
      StoreFailed: "the store cannot be" ``what``.
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
        raise StoreFailed(f"{location}: the store cannot be {what}: {why}") from error


def _conflicts(error: BaseException) -> bool:
    """Whether LanceDB says that another commit came first, in whichever words; or what it read of an older version has
    been tidied away by another process."""
    words = str(error).lower()
    return any(word in words for word in ("conflict", "retry", "concurrent")) or (
        "not found" in words and ".manifest" in words
    )


def _reason(error: Exception) -> str:
    """The first line of a message, without the place in a library's source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(", /")[0][:300]
