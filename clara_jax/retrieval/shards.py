"""Shards of a corpus, which workers compress without knowing of each other, and the parts that they write."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from clara_jax.errors import ClaraError


@dataclasses.dataclass(frozen=True)
class Shard:
    """The documents whose ids hash to a number: of any two shards, no document is in both, whatever the corpus holds.

    Raises:
      ClaraError: there is no such shard.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ClaraError(
                f"--shard is {self.index} of --shards {self.count}; shards are numbered from 0 to {self.count - 1}"
            )

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    def holds(self, document: str) -> bool:
        """Return whether a document is in the shard, by its id."""
        digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) % self.count == self.index


@dataclasses.dataclass(frozen=True)
class Part:
    """Documents of a shard that are written together: what is known of their rows, which no version of the table has.

    Attributes:
      start: number of the documents of the shard before them.
      documents: their number.
      identity: a hash of them, of their chunks, and of what they are compressed by.
      report: the fields of an `clara_jax.retrieval.indexing.IndexReport`.
      outdated: ids of documents whose rows in the table go when the part is published.
      kept: a hash of the chunks that are in the table already, unchanged; "" where there are none.
      fragments: metadata of Lance's fragments.
      projection: version of the projection that the rows' search vectors are of; 0 where they have none.
    """

    start: int
    documents: int
    identity: str
    report: Sequence[int]
    outdated: Sequence[str]
    kept: str
    fragments: Sequence[dict] = ()
    projection: int = 0

    @property
    def name(self) -> str:
        """The name of the file that holds it."""
        return f"{self.start}-{self.documents}-{self.identity}.json"

    @property
    def files(self) -> list[str]:
        """The names of its data files."""
        return [file["path"] for fragment in self.fragments for file in fragment["files"]]
