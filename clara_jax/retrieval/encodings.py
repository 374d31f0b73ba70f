"""The storage formats of memories: bytes of one of a few number formats."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from clara_jax.errors import ClaraError

_FLOATS = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_LARGEST = {"int8": 127, "int4": 7}  # magnitude of the whole numbers
ENCODINGS = (*_FLOATS, *_LARGEST)
DEFAULT_ENCODING = "int8"  # of new stores: half the bytes of a float16, and no measurable loss (docs/results.md)
_SCALE = np.dtype("<f4")  # of whole numbers: one for each memory vector, its largest magnitude over theirs


class MemoryEncoding:
    """A codec of memories [n, M, E] as bytes [n, `size`].

    Args:
      name: one of `ENCODINGS`. "int8" and "int4" keep each memory vector as whole numbers with one scale; "int4" two
        of them a byte, the first in its low half.
      memory_tokens: M.
      width: E.

    Raises:
      ClaraError: an unknown name.
    """

    def __init__(self, name: str, memory_tokens: int, width: int):
        if name not in ENCODINGS:
            raise ClaraError(f"memory encoding {name!r} must be one of {', '.join(ENCODINGS)}")
        self.name, self.shape = name, (memory_tokens, width)
        self._vector = -(-width // 2) if name == "int4" else width  # bytes of a vector's whole numbers
        if name in _LARGEST:
            self.size = memory_tokens * (self._vector + _SCALE.itemsize)
        else:
            self.size = memory_tokens * width * _FLOATS[name].itemsize

    @property
    def dtype(self) -> np.dtype:
        """The dtype of `decode`: a float that holds each stored value exactly, or bfloat16 for whole numbers."""
        return _FLOATS.get(self.name, _FLOATS["bfloat16"])

    def encode(self, memories: np.ndarray) -> np.ndarray:
        """Encode memories of a float dtype [n, M, E] as uint8 [n, size].

        Raises:
          ClaraError: a number that the encoding cannot hold.
        """
        memories = memories.astype(np.float32)
        if self.name in _LARGEST:
            largest = np.maximum(np.abs(memories).max(axis=-1, keepdims=True), np.finfo(_SCALE).tiny)
            scales = (largest / _LARGEST[self.name]).astype(_SCALE)
            numbers = np.rint(memories / scales).astype(np.int8)
            parts = _packed(numbers) if self.name == "int4" else numbers, scales
        else:
            with np.errstate(over="ignore"):
                parts = (memories.astype(_FLOATS[self.name]),)
        if not all(np.isfinite(part.astype(np.float32)).all() for part in parts):
            raise ClaraError(f"a memory holds numbers that {self.name} cannot hold; choose another encoding")
        return np.concatenate([_bytes_of_rows(part) for part in parts], axis=1)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """Decode uint8 [n, size] to memories [n, M, E] of `dtype`."""
        tokens, width = self.shape
        if self.name in _FLOATS:
            return np.ascontiguousarray(rows).view(self.dtype).reshape(-1, tokens, width)
        end = tokens * self._vector
        packed = np.ascontiguousarray(rows[:, :end]).view(np.int8).reshape(-1, tokens, self._vector)
        numbers = _unpacked(packed, width) if self.name == "int4" else packed
        scales = np.ascontiguousarray(rows[:, end:]).view(_SCALE).reshape(-1, tokens, 1)
        return (numbers * scales).astype(self.dtype)


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
