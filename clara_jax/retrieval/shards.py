"""Shards of a corpus, which workers compress without knowing of each other, and the parts that they write."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from clara_jax.errors import ClaraError


class Seen:
    """Which documents a worker was asked about: of one corpus, those of all shards are the same.

    Attributes:
      documents: their number.
      total: the sum of the hashes of their ids, below 2^64.
    """

    def __init__(self) -> None:
        self.documents = self.total = 0

    def add(self, digest: int) -> None:
        """Note a document, by the hash of its id."""
        self.documents += 1
        self.total = (self.total + digest) % 2**64


@dataclasses.dataclass(frozen=True)
class Shard:
    """The documents whose ids hash to a number: of any two shards, no document is in both, whatever the corpus holds.

    Attributes:
      index: from 0.
      count: into how many the corpus is divided.
      seen: the documents that `holds` was asked about, for one reading of the corpus.

    Raises:
      ClaraError: there is no such shard.
    """

    index: int
    count: int
    seen: Seen = dataclasses.field(default_factory=Seen, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ClaraError(
                f"--shard is {self.index} of --shards {self.count}; shards are numbered from 0 to {self.count - 1}"
            )

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    def holds(self, document: str) -> bool:
        """Return whether a document is in the shard, by its id."""
        digest = int.from_bytes(hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        self.seen.add(digest)
        return digest % self.count == self.index


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
