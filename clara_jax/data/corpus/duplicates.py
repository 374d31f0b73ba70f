"""Near-duplicates: chunks whose sets of word shingles are nearly the same by Jaccard similarity.

MinHash LSH (datasketch; Broder 1997, Indyk and Motwani 1998) finds candidates; the sets themselves decide, so that
nothing is dropped because of hashes that were alike by chance. LSH overlooks some pairs, which are kept: of those at
the threshold `MISSED` at most, of more similar ones fewer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import re
from typing import Any, NamedTuple

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.text.counting import UNSPACED

SHINGLE = 5  # words
PERMUTATIONS = 64
MISSED = 0.01

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


class Signature(NamedTuple):
    """The features by which chunks are compared.

    Attributes:
      digest: of the text, white space aside.
      shingles: sorted 64-bit hashes of the sets' members; empty for a text without words.
      minhash: a datasketch LeanMinHash; None without shingles.
    """

    digest: bytes
    shingles: np.ndarray
    minhash: object | None


class Match(NamedTuple):
    """A chunk that repeats another.

    Attributes:
      id: of the first chunk that it repeats.
      similarity: Jaccard similarity; 1.0 where the texts are equal, and where only the sets are.
      exact: the texts are equal but for white space.
    """

    id: str
    similarity: float
    exact: bool


def signature(text: str) -> Signature:
    """Return the signature of a text; it does not depend on process or platform."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
    words = _WORD.findall(text.casefold())
    spans = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))} if words else set()
    hashes = b"".join(hashlib.blake2b(span.encode(), digest_size=8).digest() for span in spans)
    shingles = np.sort(np.frombuffer(hashes, "<u8"))
    return Signature(digest, shingles, _minhash(shingles) if len(shingles) else None)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the members in both sets over the members in either, of two sorted arrays without repeats."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


@dataclasses.dataclass
class Duplicates:
    """The chunks kept so far; the first of several that are alike is kept.

    Attributes:
      threshold: Jaccard similarity from which on a chunk is a duplicate, above 0 and up to 1.
    """

    threshold: float

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ClaraError(f"--near-duplicates: {self.threshold} must be above 0 and at most 1, or off")
        self._index = _lsh(*bands(self.threshold))
        self._ids: list[str] = []
        self._shingles: list[np.ndarray] = []
        self._digests: dict[bytes, int] = {}

    def add(self, id: str, of: Signature) -> Match | None:
        """Keep a chunk, or return the one it repeats: the most similar, of equally similar ones the first."""
        equal = self._digests.get(of.digest)
        if equal is not None:
            return Match(self._ids[equal], 1.0, True)
        if of.minhash is not None:
            near = [(-jaccard(of.shingles, self._shingles[i]), i) for i in self._index.query(of.minhash)]
            similarity, place = min(near, default=(0.0, -1))
            if -similarity >= self.threshold:
                return Match(self._ids[place], -similarity, False)
            self._index.insert(len(self._ids), of.minhash, check_duplication=False)
        self._digests[of.digest] = len(self._ids)
        self._ids.append(id)
        self._shingles.append(of.shingles)
        return None


def bands(threshold: float) -> tuple[int, int]:
    """Return (bands, rows of a band): as many rows as leave at most ``MISSED`` of the pairs at the threshold unseen."""
    for rows in range(PERMUTATIONS // 2, 1, -1):
        count = PERMUTATIONS // rows
        if (1 - threshold**rows) ** count <= MISSED:
            return count, rows
    return PERMUTATIONS, 1


def require_datasketch() -> None:
    """Refuse, before any work, to go on without datasketch."""
    if importlib.util.find_spec("datasketch") is None:
        raise ClaraError(
            "near-duplicates are found with the package datasketch: pip install datasketch, or --near-duplicates off"
        )


def _lsh(count: int, rows: int) -> Any:  # datasketch's keys are any hashable; these are numbers
    require_datasketch()
    from datasketch import MinHashLSH

    return MinHashLSH(num_perm=PERMUTATIONS, params=(count, rows))


@functools.cache
def _empty():
    require_datasketch()
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, seed=1, hashfunc=int)  # given numbers that are hashes already


def _minhash(shingles: np.ndarray):
    from datasketch import LeanMinHash

    minhash = _empty().copy()
    minhash.update_batch((shingles & 0xFFFFFFFF).tolist())
    return LeanMinHash(minhash)
