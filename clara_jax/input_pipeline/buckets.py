"""The few static shapes of a stage's batches: each is compiled once, and examples are padded to it.

Sizes are int32 [N, 5], a row for each example, in the order of `Shapes`' fields. The index of sizes is all that is
needed to choose shapes and to plan batches; no example is read for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.document_tokenizer import FRAME
from clara_jax.input_pipeline.tokenization import ClaraTokenizer

MULTIPLE = 16
# A TPU keeps eight rows of an array together. Where texts with their memory tokens are a multiple of it, the rows and
# tokens of a batch become one axis, as they do before every product, without a copy.
TILE = 8
_LEVELS = 16  # quantiles among which the shapes are chosen


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes of a batch besides its rows.

    Attributes:
      documents: D.
      encoder_width: tokens of a document, without memory tokens; 0 where a batch has memories in their place.
      query_width: tokens of a question, without memory tokens; 0 where a batch has none.
      prompt_length: T.
      target_length: A; below T, since the position before a target predicts it.
    """

    documents: int
    encoder_width: int
    query_width: int
    prompt_length: int
    target_length: int

    def positions(self, memory_tokens: int) -> int:
        """Return how many positions a model computes in a row: documents and question with memory tokens, prompt."""
        document, query = (width + memory_tokens if width else 0 for width in (self.encoder_width, self.query_width))
        return self.documents * document + query + self.prompt_length

    def as_sizes(self) -> np.ndarray:
        """Return the sizes of the largest example that fits, int32 [5]."""
        return np.array(dataclasses.astuple(self), np.int32)


_ENCODER_WIDTH = [field.name for field in dataclasses.fields(Shapes)].index("encoder_width")


def shapes_for(sizes: np.ndarray, tokenizer: ClaraTokenizer, multiple: int = MULTIPLE, documents: int = 0) -> Shapes:
    """Return the smallest shapes that hold all of the sizes.

    Lengths with their memory tokens are rounded up to multiples, but not above the tokenizer's limits, which are
    rounded up to multiples of `TILE`.

    Args:
      sizes: int32 [N, 5].
      tokenizer: gives the limits and the number of memory tokens.
      multiple: of Te, Tq, T and A.
      documents: D is at least this. With ``candidates`` given, batches of several files agree.
    """
    if not len(sizes):
        raise ClaraError("there are no examples to plan batches for")
    most, document, query, prompt, target = (int(size) for size in np.max(sizes, axis=0))

    def width(length: int, limit: int) -> int:
        rounded = text_width(length, tokenizer.memory_tokens, multiple)
        return max(length, min(rounded, text_width(limit, tokenizer.memory_tokens)))

    prompt_length = max(prompt, min(_up(prompt, multiple), tokenizer.max_length))
    return Shapes(
        documents=max(most, documents),
        encoder_width=width(document, tokenizer.document_width) if document else 0,
        query_width=width(query, tokenizer.max_length + FRAME) if query else 0,
        prompt_length=prompt_length,
        target_length=min(max(_up(target, multiple), 1), prompt_length - 1),
    )


def text_width(length: int, memory_tokens: int, multiple: int = TILE) -> int:
    """Return a text's length, rounded up such that with its memory tokens it is a multiple."""
    return _up(length + memory_tokens, multiple) - memory_tokens


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def without_texts(sizes: np.ndarray) -> np.ndarray:
    """Return the sizes of examples whose documents are memories already: their texts take no room."""
    sizes = sizes.copy()
    sizes[:, _ENCODER_WIDTH] = 0
    return sizes


def shape_ladder(
    sizes: np.ndarray, tokenizer: ClaraTokenizer, count: int, multiple: int = MULTIPLE
) -> tuple[Shapes, ...]:
    """Return at most ``count`` shapes for which examples take the fewest positions together.

    Each shape lies within the next, the last one holds everything, and an example takes the first that holds it. It is
    the best choice among the shapes of the examples' quantiles (sixteenths), by dynamic programming.
    """
    # A size of a quantile is the size of an example, so nothing is invented between sizes that occur.
    quantiles = np.quantile(sizes, np.arange(1, _LEVELS + 1) / _LEVELS, axis=0, method="higher")
    candidates = list(dict.fromkeys(shapes_for(row[None], tokenizer, multiple) for row in quantiles.astype(np.int32)))
    held = np.bincount(levels(sizes, candidates), minlength=len(candidates))
    costs = [shapes.positions(tokenizer.memory_tokens) for shapes in candidates]
    # best[j]: (positions, chain) of the examples up to candidate j, with j as the last shape.
    best = [(int(held[: j + 1].sum()) * costs[j], (j,)) for j in range(len(candidates))]
    for _ in range(count - 1):
        longer = []
        for j in range(len(candidates)):
            joined = ((best[i][0] + int(held[i + 1 : j + 1].sum()) * costs[j], (*best[i][1], j)) for i in range(j))
            longer.append(min(best[j], *joined, key=lambda choice: (choice[0], len(choice[1]))) if j else best[j])
        best = longer
    return tuple(candidates[j] for j in best[-1][1])


def levels(sizes: np.ndarray, ladder: Sequence[Shapes]) -> np.ndarray:
    """Return the first shape of the ladder that holds each example; int64 [N].

    Raises:
      ClaraError: an example that the last one does not hold.
    """
    fits = np.stack([np.all(sizes <= shapes.as_sizes(), axis=1) for shapes in ladder])
    if not fits[-1].all():
        raise ClaraError(f"example {int(np.argmin(fits[-1]))} does not fit the largest shape, {ladder[-1]}")
    return np.argmax(fits, axis=0)
