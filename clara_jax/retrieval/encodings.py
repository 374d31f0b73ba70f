"""The storage formats of memories: bytes of one of a few number formats."""

from __future__ import annotations

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.memory_count import FIXED, existing

_FLOATS = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class _WholeNumbers(NamedTuple):
    """Whole numbers with scales: the largest magnitude of a run of numbers over that of the whole ones."""

    largest: int  # magnitude of the whole numbers
    run: int | None  # numbers with one scale; None for all of a memory vector
    scale: np.dtype


# Few numbers of a memory vector are several times as large as the others. Of whole numbers up to 7, little is left of
# those others under one scale; runs keep the damage to one of them (docs/results.md, "Bytes a passage").
_WHOLE = {
    "int8": _WholeNumbers(127, None, np.dtype("<f4")),
    "int4": _WholeNumbers(7, None, np.dtype("<f4")),
    "int4-32": _WholeNumbers(7, 32, np.dtype("<f2")),
}
ByteRows = np.ndarray | list[np.ndarray]  # n rows of bytes: uint8 [n, size], or arrays of different lengths
ENCODINGS = (*_FLOATS, *_WHOLE)
DEFAULT_ENCODING = "int8"  # of new stores: half the bytes of a float16, and no measurable loss (docs/results.md)


class MemoryEncoding:
    """A codec of memories [n, M, E] as bytes, a row of them for each text.

    In "proportional" number a text's row holds those that it has (`clara_jax.memory_count`). All rows of a "fixed"
    number have `size` bytes, which is the most in either case.

    Args:
      name: one of `ENCODINGS`. "int8" and "int4" keep each memory vector as whole numbers with one scale, "int4-32"
        with one for every 32 numbers. Of four bits there are two a byte, the first in its low half.
      memory_tokens: M.
      width: E.
      memory_count: "fixed" or "proportional".

    Raises:
      ClaraError: an unknown name.
    """

    def __init__(self, name: str, memory_tokens: int, width: int, memory_count: str = FIXED):
        if name not in ENCODINGS:
            raise ClaraError(f"memory encoding {name!r} must be one of {', '.join(ENCODINGS)}")
        self.name, self.shape, self.memory_count = name, (memory_tokens, width), memory_count
        self._whole = _WHOLE.get(name)
        if self._whole is None:
            self._parts = (width * _FLOATS[name].itemsize,)  # bytes of a vector, part by part
            self.size = memory_tokens * sum(self._parts)
            return
        self._packs = self._whole.largest < 8
        self._vector = -(-width // 2) if self._packs else width  # bytes of a vector's whole numbers
        self._run = self._whole.run or width
        self._runs = -(-width // self._run)
        self._parts = self._vector, self._runs * self._whole.scale.itemsize
        self.size = memory_tokens * sum(self._parts)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of `decode`: a float that holds each stored value exactly, or bfloat16 for whole numbers."""
        return _FLOATS.get(self.name, _FLOATS["bfloat16"])

    def encode(self, memories: np.ndarray) -> ByteRows:
        """Encode memories of a float dtype [n, M, E] as n rows of bytes: uint8 [n, size], or arrays of other lengths.

        Raises:
          ClaraError: a number that the encoding cannot hold.
        """
        memories = memories.astype(np.float32)
        with np.errstate(over="ignore"):
            if self._whole is None:
                parts = (memories.astype(_FLOATS[self.name]),)
            else:
                runs, (largest, _, dtype) = self._in_runs(memories), self._whole
                needed = np.abs(runs).max(axis=-1, keepdims=True) / largest
                scales = np.maximum(needed, np.finfo(dtype).tiny).astype(dtype)
                numbers = np.rint(runs / scales.astype(np.float32)).astype(np.int8)
                numbers = self._without_runs(numbers)
                parts = _packed(numbers) if self._packs else numbers, scales
        if not all(np.isfinite(part.astype(np.float32)).all() for part in parts):
            raise ClaraError(f"a memory holds numbers that {self.name} cannot hold; choose another encoding")
        encoded = [_bytes_of_rows(part) for part in parts]
        if self.memory_count == FIXED:
            return np.concatenate(encoded, axis=1)
        counts = np.max(existing(memories, self.memory_count) * np.arange(1, 1 + self.shape[0]), axis=1, initial=0)
        lengths = [[count * size for size in self._parts] for count in counts]
        return [
            np.concatenate([part[row, :length] for part, length in zip(encoded, of_row, strict=True)])
            for row, of_row in enumerate(lengths)
        ]

    def decode(self, rows: ByteRows) -> np.ndarray:
        """Decode the rows of `encode` to memories [n, M, E] of `dtype`."""
        tokens, width = self.shape
        rows = self._filled_up(rows)
        if self._whole is None:
            return np.ascontiguousarray(rows).view(self.dtype).reshape(-1, tokens, width)
        end = tokens * self._vector
        packed = np.ascontiguousarray(rows[:, :end]).view(np.int8).reshape(-1, tokens, self._vector)
        numbers = _unpacked(packed, width) if self._packs else packed
        scales = np.ascontiguousarray(rows[:, end:]).view(self._whole.scale).reshape(-1, tokens, self._runs, 1)
        decoded = self._in_runs(numbers) * scales.astype(np.float32)
        return self._without_runs(decoded).astype(self.dtype)

    def _filled_up(self, rows: ByteRows) -> np.ndarray:
        """Return rows with zeros for the memories that do not exist, uint8 [n, size]."""
        if isinstance(rows, np.ndarray):
            return rows
        whole = np.zeros((len(rows), self.size), np.uint8)
        for filled, row in zip(whole, rows, strict=True):
            count, rest = divmod(len(row), sum(self._parts))
            if rest or count > self.shape[0]:
                raise ClaraError(
                    f"a memory has {len(row)} bytes; it must be up to {self.shape[0]} vectors of {sum(self._parts)}; "
                    "make the store again"
                )
            start = place = 0
            for size in self._parts:
                filled[place : place + count * size] = row[start : start + count * size]
                start, place = start + count * size, place + self.shape[0] * size
        return whole

    def _in_runs(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors [..., E] as runs with a scale each [..., R, run], the last one filled with zeros."""
        missing = self._runs * self._run - vectors.shape[-1]
        if missing:
            vectors = np.pad(vectors, [(0, 0)] * (vectors.ndim - 1) + [(0, missing)])
        return vectors.reshape(*vectors.shape[:-1], self._runs, self._run)

    def _without_runs(self, runs: np.ndarray) -> np.ndarray:
        """Return the vectors [..., E] of `_in_runs`."""
        return runs.reshape(*runs.shape[:-2], self._runs * self._run)[..., : self.shape[1]]


def _packed(numbers: np.ndarray) -> np.ndarray:
    """Return whole numbers from -8 to 7, int8 [..., E], two a byte, int8 [..., (E + 1) // 2]."""
    even = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, numbers.shape[-1] % 2)])
    return (even[..., ::2] & 15) | (even[..., 1::2] << 4)


def _unpacked(packed: np.ndarray, width: int) -> np.ndarray:
    """Return the whole numbers of `_packed`, int8 [..., width]."""
    pairs = np.stack([packed << 4 >> 4, packed >> 4], axis=-1)  # shifts of int8 keep the sign
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])[..., :width]


def _bytes_of_rows(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array's rows, uint8 [n, bytes of a row]."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), math.prod(array.shape[1:]) * array.itemsize)
