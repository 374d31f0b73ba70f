"""A cache of prompt prefixes: questions about the same documents share the prefill of their beginnings."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clara_jax.model.cache import KVCache


class PrefixCache:
    """Keys and values of prefixes by `key`, evicted in least-recently-used order.

    Attributes:
      hits, misses: requests whose prefix was cached, and those whose prefix was not.
    """

    def __init__(self, budget: int):
        """Make an empty cache.

        Args:
          budget: bytes that the keys and values may take on the devices.
        """
        self._budget, self._taken = budget, 0
        self._known: OrderedDict[bytes, KVCache] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: bytes | None) -> bool:
        return key in self._known

    def __getitem__(self, key: bytes) -> KVCache:
        self._known.move_to_end(key)
        return self._known[key]

    def count(self, hit: bool, requests: int) -> None:
        """Count requests as hits or misses."""
        if hit:
            self.hits += requests
        else:
            self.misses += requests

    def clear(self) -> None:
        """Remove all prefixes, so that a measurement includes the prefill."""
        self._known.clear()
        self._taken = 0

    def add(self, key: bytes, prefix: KVCache) -> None:
        """Add a prefix, and evict others where the budget is exceeded; one larger than the budget is not added."""
        size = _size(prefix)
        if size > self._budget or key in self._known:
            return
        self._known[key] = prefix
        self._taken += size
        while self._taken > self._budget:
            _, oldest = self._known.popitem(last=False)
            self._taken -= _size(oldest)


def split_at(memory_index: Sequence[int]) -> int:
    """Return the length of a prompt's prefix: up to the last memory vector, or 0 where that ends the prompt."""
    last = max((place for place, index in enumerate(memory_index) if index >= 0), default=-1)
    return last + 1 if last + 1 < len(memory_index) else 0


def key(ids: Sequence[int], memory_index: Sequence[int], memories: Float[np.ndarray, "K M E"], beyond: bool) -> bytes:
    """Return a digest of a prefix: of its tokens, the positions of memories among them, and the memories.

    Args:
      ids: the prefix's token ids.
      memory_index: which memory vector stands at a token, -1 for text.
      memories: [K, M, E].
      beyond: the whole prompt is longer than the range of LongRoPE's first table, so that its keys are rotated by the
        second.
    """
    digest = hashlib.sha256(np.asarray([len(ids), *ids, *memory_index, beyond], np.int64).tobytes())
    digest.update(str((memories.shape, memories.dtype)).encode())
    digest.update(np.ascontiguousarray(memories).view(np.uint8).tobytes())
    return digest.digest()


def _size(prefix: KVCache) -> int:
    return prefix.k.nbytes + prefix.v.nbytes
