"""The number of memories of a text: that of a full document, or one for each so many of its tokens.

In the paper every document has M memories, however short it is. Where the number is proportional to the length, a short
document has fewer: its tokens per memory are then the compress rate, as they are in a full document. Arrays have room
for M memories of each document in either case; the rows beyond its last are zero, which no memory is.
"""

from __future__ import annotations

from typing import Any

MEMORY_COUNTS = (FIXED, PROPORTIONAL) = ("fixed", "proportional")


def memories_of(tokens: int, memory_tokens: int, doc_max_length: int) -> int:
    """Return ceil(tokens / rate), at least 1 and at most M, with the rate doc_max_length / M.

    Args:
      tokens: of the text.
      memory_tokens: M.
      doc_max_length: tokens of a full document.
    """
    return min(memory_tokens, -(-max(tokens, 1) * memory_tokens // doc_max_length))


def existing(memories: Any, memory_count: str) -> Any:
    """Return which memories exist, bool [..., M] of memories [..., M, E]: all, or where it is proportional no zeros."""
    return (memories != 0).any(axis=-1) | (memory_count == FIXED)
