"""How much of a text stands in other texts word for word, counted in runs of eight words."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

RUN = 8  # words; a run of eight is hardly ever met twice by chance, and survives changes around it
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def runs(words: Sequence[str]) -> np.ndarray:
    """Return a hash of every run of `RUN` words, in order; uint64 [max(0, words - RUN + 1)]."""
    count = max(0, len(words) - RUN + 1)
    hashes, result = np.array([zlib.crc32(word.encode()) for word in words], np.uint64), np.zeros(count, np.uint64)
    for place in range(RUN if count else 0):
        result = result * _FACTOR + hashes[place : place + count]  # modulo 2^64
    return result


class Overlap:
    """Texts, and how much of each is met in texts that are read later.

    Args:
      texts: `runs` of each.
    """

    def __init__(self, texts: Sequence[np.ndarray]):
        self._texts = texts
        self._runs = np.unique(np.concatenate([np.zeros(0, np.uint64), *texts]))
        self._met = np.zeros(len(self._runs), bool)

    def meet(self, words: Sequence[str]) -> None:
        """Read one more text."""
        if len(self._runs) and len(found := runs(words)):
            places = np.minimum(np.searchsorted(self._runs, found), len(self._runs) - 1)
            self._met[places[self._runs[places] == found]] = True

    def shares(self) -> np.ndarray:
        """Return, for each text, the share of its runs that were met; 0 for one that is too short to have any."""
        return np.array(
            [self._met[np.searchsorted(self._runs, text)].mean() if len(text) else 0.0 for text in self._texts]
        )
