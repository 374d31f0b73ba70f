"""The storage formats of memories: bytes of one of a few number formats."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from clara_jax.errors import ClaraError

INT8 = "int8"
_FLOATS = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
ENCODINGS = (*_FLOATS, INT8)
_SCALE = np.dtype("<f4")  # of int8: one for each memory vector, the largest magnitude over 127


class MemoryEncoding:
    """A codec of memories [n, M, E] as bytes [n, `size`].

    Args:
      name: one of `ENCODINGS`. "int8" keeps each memory vector as whole numbers with one scale.
      memory_tokens: M.
      width: E.

    Raises:
      ClaraError: an unknown name.
    """

    def __init__(self, name: str, memory_tokens: int, width: int):
        if name not in ENCODINGS:
            raise ClaraError(f"memory encoding {name!r} must be one of {', '.join(ENCODINGS)}")
        self.name, self.shape = name, (memory_tokens, width)
        numbers = memory_tokens * width
        self.size = numbers + memory_tokens * _SCALE.itemsize if name == INT8 else numbers * _FLOATS[name].itemsize

    @property
    def dtype(self) -> np.dtype:
        """The dtype of `decode`: a float that holds every stored value exactly, or for "int8" within its rounding."""
        return _FLOATS["bfloat16" if self.name == INT8 else self.name]

    def encode(self, memories: np.ndarray) -> np.ndarray:
        """Encode memories of a float dtype [n, M, E] as uint8 [n, size].

        Raises:
          ClaraError: a number that the encoding cannot hold.
        """
        memories = memories.astype(np.float32)
        if self.name == INT8:
            scales = np.maximum(np.abs(memories).max(axis=-1, keepdims=True), np.finfo(_SCALE).tiny) / 127
            parts = np.rint(memories / scales).astype(np.int8), scales.astype(_SCALE)
        else:
            with np.errstate(over="ignore"):
                parts = (memories.astype(_FLOATS[self.name]),)
        if not all(np.isfinite(part.astype(np.float32)).all() for part in parts):
            raise ClaraError(f"a memory holds numbers that {self.name} cannot hold; choose another encoding")
        return np.concatenate([_bytes_of_rows(part) for part in parts], axis=1)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """Decode uint8 [n, size] to memories [n, M, E] of `dtype`."""
        tokens, width = self.shape
        if self.name != INT8:
            return np.ascontiguousarray(rows).view(self.dtype).reshape(-1, tokens, width)
        numbers = np.ascontiguousarray(rows[:, : tokens * width]).view(np.int8).reshape(-1, tokens, width)
        scales = np.ascontiguousarray(rows[:, tokens * width :]).view(_SCALE).reshape(-1, tokens, 1)
        return (numbers * scales).astype(self.dtype)


def _bytes_of_rows(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array's rows, uint8 [n, bytes of a row]."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), math.prod(array.shape[1:]) * array.itemsize)


def closest_float(precision: str) -> str:
    """Return the encoding of two bytes that loses least of memories computed in a precision."""
    return "bfloat16" if precision == "bfloat16" else "float16"
