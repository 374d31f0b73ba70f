"""Beginnings of prompts that were read before: questions about the same documents read them once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from clara_jax.model.cache import Past


class Prefixes:
    """Keys and values by what they were made of; those that have not been used for longest go first.

    Attributes:
      found, missed: requests for which there was one, and those for which there was none.
    """

    def __init__(self, budget: int):
        """
        Args:
          budget: bytes that they may take on the devices.
        """
        self._budget, self._taken = budget, 0
        self._known: OrderedDict[bytes, Past] = OrderedDict()
        self.found = self.missed = 0

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: bytes | None) -> bool:
        return key in self._known

    def __getitem__(self, key: bytes) -> Past:
        self._known.move_to_end(key)
        return self._known[key]

    def count(self, found: bool, requests: int) -> None:
        if found:
            self.found += requests
        else:
            self.missed += requests

    def clear(self) -> None:
        """Forgets all of them: who measures wants prompts to be read."""
        self._known.clear()
        self._taken = 0

    def add(self, key: bytes, past: Past) -> None:
        size = _size(past)
        if size > self._budget or key in self._known:
            return
        self._known[key] = past
        self._taken += size
        while self._taken > self._budget:
            _, oldest = self._known.popitem(last=False)
            self._taken -= _size(oldest)


def split_at(memory_index: Sequence[int]) -> int:
    """How many tokens of a prompt belong to its beginning: those up to the last memory vector, if another follows."""
    last = max((place for place, index in enumerate(memory_index) if index >= 0), default=-1)
    return last + 1 if last + 1 < len(memory_index) else 0


def key(ids: Sequence[int], memory_index: Sequence[int], memories: np.ndarray, beyond: bool) -> bytes:
    """What tells the beginnings of two prompts apart: tokens, where memories stand among them, and the memories.

    Args:
      beyond: the whole prompt is longer than LongRoPE's first table is for, so that its keys are turned by the second.
    """
    digest = hashlib.sha256(np.asarray([len(ids), *ids, *memory_index, beyond], np.int64).tobytes())
    digest.update(str((memories.shape, memories.dtype)).encode())
    digest.update(np.ascontiguousarray(memories).view(np.uint8).tobytes())
    return digest.digest()


def _size(past: Past) -> int:
    return past.k.nbytes + past.v.nbytes
