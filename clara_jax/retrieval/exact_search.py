"""Exact search: the score of a question with every chunk of a store, on all devices at once.

The vectors that are compared (`clara_jax.method.reranker.score_vectors`) lie on the devices in the dtype of the store
(on CPUs in float32, as widening them at every search is slow), in blocks of equal shape, the rows of each sharded over
the mesh. A device scores its rows and keeps the k best; only these travel. A store that does not fit the devices
is read for each search.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from clara_jax.inference.ranking import best_rows, norms_of, trimmed
from clara_jax.method.reranker import score_vectors
from clara_jax.model.sharding import BATCH, batch_shards
from clara_jax.retrieval.document_store import DocumentStore

BLOCK_BYTES = 2**28
LEAST_ROWS = 256  # of a block: small stores grow without new shapes
_READ_ROWS = 1024  # chunks of a read
_WIDTH = 8  # k is rounded up to a multiple of it, so that few shapes are compiled
_HOST_SHARE, _DEVICE_SHARE = 1 / 4, 1 / 2  # of memory that the store's memories may take
# Where the kernel says, inside a container, how many bytes it may use: cgroups of version 2, and of version 1.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_budget(mesh: jax.sharding.Mesh) -> int:
    """Return the bytes that a store's memories may take on the devices of a mesh by default."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if all(device and "bytes_limit" in device for device in stats):
        return int(_DEVICE_SHARE * sum(device["bytes_limit"] for device in stats))
    return int(_HOST_SHARE * _host_memory())


def _host_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or the limit of its container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # outside of Linux and of containers; "max" is no limit
            memory = min(memory, int(path.read_text()))
    return memory


@dataclasses.dataclass
class _Block:
    """Rows on the devices, the ids of those in use, and a mask of those still in the store."""

    rows: jax.Array  # [R, S, X], see `score_vectors`
    norms: jax.Array  # float32 [R, S]
    ids: list[str]
    alive: np.ndarray  # bool [R]


class ExactSearch:
    """Exact search over all chunks of a store, which follows its commits.

    Args:
      store: the chunks.
      mesh: of all devices that are to hold memories.
      budget: bytes that memories may take on all devices together.
    """

    def __init__(self, store: DocumentStore, mesh: jax.sharding.Mesh, budget: int):
        self._store, self._mesh = store, mesh
        on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
        self._dtype = np.dtype(np.float32) if on_cpu else store.encoding.dtype
        self._row_bytes, self._budget = math.prod(store.encoding.shape) * self._dtype.itemsize, budget
        self._shards = batch_shards(mesh)
        self._most = max(BLOCK_BYTES // self._row_bytes, 1) // self._shards * self._shards or self._shards
        self._keys: dict[str, bytes] = {}
        self._blocks: list[_Block] = []
        # The last block's rows, as they are stored.
        self._tail = self._vectors(np.zeros((0, *store.encoding.shape), store.encoding.dtype))
        self._version = -1

    @property
    def fits(self) -> bool:
        """Whether the store fits the budget, and memories stay on the devices between searches."""
        return len(self._store) * self._row_bytes <= self._budget

    def __call__(
        self, queries: np.ndarray, k: int, allowed: Collection[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """Return the k best chunks of each question, best first.

        Args:
          queries: encodings of questions, [Q, M, E].
          k: the number of chunks.
          allowed: ids of chunks to choose among; None for all.

        Returns:
          for each question, (id, score) of up to k chunks.
        """
        with self._store.reading():
            if self.fits:
                self._refresh()
                return self._best(queries, k, self._blocks, allowed)
            self._blocks, self._keys, self._version = [], {}, -1
            return self._best(queries, k, self._streamed(), allowed)

    def among(self, queries: np.ndarray, k: int, ids: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Return the k best of the named chunks for each question, as a call returns those of all.

        Their memories are read from the store, and split over the devices.

        Args:
          queries: encodings of questions, [Q, M, E].
          k: the number of chunks.
          ids: of chunks that are in the store.
        """
        if not ids:
            return [[] for _ in queries]
        with self._store.reading():
            vectors = self._vectors(self._store.memories(ids))
            step = _WIDTH * self._shards  # few shapes are compiled
            rows = -(-len(ids) // step) * step
            return self._best(queries, k, [self._block(list(ids), vectors, rows)])

    def _best(
        self, queries: np.ndarray, k: int, blocks: Iterable[_Block], allowed: Collection[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        count = 1 << (len(queries) - 1).bit_length()
        asked = np.zeros((count, *self._tail.shape[1:]), np.float32)
        asked[: len(queries)] = self._vectors(queries)
        asked = trimmed(asked)
        found: list[list[tuple[str, float]]] = [[] for _ in queries]
        for block in blocks:
            usable = block.alive
            if allowed is not None:
                usable = usable.copy()
                usable[: len(block.ids)] &= np.fromiter((name in allowed for name in block.ids), bool, len(block.ids))
            width = min(-(-k // _WIDTH) * _WIDTH, len(usable) // self._shards)
            with jax.set_mesh(self._mesh):
                best = best_rows(asked, block.rows, block.norms, self._place(usable), width, self._mesh)
                scores, places = jax.device_get(best)
            for hits, row_scores, row_places in zip(found, scores, places, strict=False):
                hits += [(block.ids[p], float(s)) for s, p in zip(row_scores, row_places, strict=True) if s > -np.inf]
        # Equal scores are ordered by id, whatever block they lie in.
        return [sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k] for hits in found]

    def _refresh(self) -> None:
        version = self._store.version
        if version == self._version:
            return
        ids, keys = self._store.index()
        now = dict(zip(ids, keys, strict=True))
        gone = {name for name, key in self._keys.items() if now.get(name) != key}
        fresh = [name for name in ids if name not in self._keys or name in gone]
        alive = len(self._keys) - len(gone)
        if alive < sum(len(block.ids) for block in self._blocks) // 2 or not self._keys:
            self._blocks, self._tail = [], self._tail[:0]
            self._append((names, memories) for names, _, memories in self._store.all_memories(_READ_ROWS))
        else:
            for block in self._blocks:
                block.alive[: len(block.ids)] &= np.fromiter((x not in gone for x in block.ids), bool, len(block.ids))
            parts = [fresh[start : start + _READ_ROWS] for start in range(0, len(fresh), _READ_ROWS)]
            self._append((names, self._store.memories(names)) for names in parts)
        self._keys, self._version = now, version

    def _append(self, parts: Iterable[tuple[list[str], np.ndarray]]) -> None:
        """Append rows to the last block, as far as it has room, and to new blocks."""
        ids, waiting = [], []
        if self._blocks and len(self._blocks[-1].alive) < self._most:
            last = self._blocks.pop()
            alive = last.alive[: len(last.ids)]
            ids, waiting = [name for name, there in zip(last.ids, alive, strict=True) if there], [self._tail[alive]]
        for names, memories in parts:
            ids, waiting = ids + names, [*waiting, self._vectors(memories)]
            while len(ids) >= self._most:
                whole = np.concatenate(waiting)
                self._blocks.append(self._block(ids[: self._most], whole[: self._most], self._most))
                ids, waiting = ids[self._most :], [whole[self._most :]]
        if ids:
            self._tail = np.concatenate(waiting)
            self._blocks.append(self._block(ids, self._tail, self._rows(len(ids))))

    def _streamed(self) -> Iterator[_Block]:
        for names, _, memories in self._store.all_memories(self._most):
            yield self._block(names, self._vectors(memories), self._most)

    def _vectors(self, memories: np.ndarray) -> np.ndarray:
        return score_vectors(memories, self._store.encoding.memory_count)

    def _rows(self, chunks: int) -> int:
        """Return the rows of a block for so many chunks: a power of two for a small store."""
        rows = max(LEAST_ROWS, 1 << (chunks - 1).bit_length())
        return min(-(-rows // self._shards) * self._shards, self._most)

    def _block(self, ids: list[str], vectors: np.ndarray, rows: int) -> _Block:
        whole = np.zeros((rows, *self._tail.shape[1:]), self._dtype)
        whole[: len(vectors)] = vectors
        return _Block(self._place(whole), self._place(norms_of(whole)), ids, np.arange(rows) < len(ids))

    def _place(self, array: np.ndarray) -> jax.Array:
        spec = jax.P(BATCH, *(None,) * (array.ndim - 1))
        return jax.device_put(array, jax.NamedSharding(self._mesh, spec))
