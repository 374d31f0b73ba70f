"""Examples as fixed-size batches, padded on the left.

Shapes: B rows, D documents of a row, M memory tokens, T positions of a prompt, A positions at its right end that hold
every target. What shapes there are, and which examples a batch holds, is planned elsewhere (`shapes`, `plan`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import flax.struct
import jax
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.buckets import MULTIPLE, Shapes, shapes_for, without_texts
from clara_jax.input_pipeline.encoding import Example, sizes_of
from clara_jax.input_pipeline.tokenization import IGNORED, ClaraTokenizer

Array = np.ndarray | jax.Array
# Token ids of N documents, None for an absent one -> their memories [N, M, E], zero for an absent one.
Memories = Callable[[Sequence[np.ndarray | None]], np.ndarray]


@flax.struct.dataclass
class Batch:
    """A batch of a training step.

    Te = encoder width + M, Tq = query width + M. Where documents are text in the prompt, D is 0.

    A packed batch (`clara_jax.input_pipeline.packing`) holds up to S examples in each row, of one document each: one
    sequence of documents, D = 1, and one of prompts. Its masks are int32, the number of the example in the
    row, from 1, and 0 where nothing is attended.

    Attributes:
      document_ids: int32 [B, D, Te], ending with the M memory tokens; with a ``document_index`` [N, Te], each distinct
        document of the batch once. None where ``memories`` stands in their place, or D is 0.
      document_mask: bool, of the same shape, attended positions, memory tokens among them; False where a document is
        absent. None where ``document_ids`` is.
      document_valid: bool [B, D] (packed: [B, S]), which documents are present.
      query_ids: int32 [B, Tq], ending with the M memory tokens; None where nothing is ranked.
      query_mask: bool [B, Tq]; None where nothing is ranked.
      prompt_ids: int32 [B, T].
      prompt_mask: bool [B, T].
      memory_index: int32 [B, T], which of the row's memory vectors stands at a position: slot · M + j; -1 at text.
      labels: int32 [B, A] of the last A positions of ``prompt_ids`` (packed: of ``targets_at``), -100 where there is no
        loss.
      positives: bool [B, D]; None where nothing is ranked.
      example_ids: int32 [B] (packed: [B, S]), places of the rows in the dataset; -1 for rows that only fill the batch.
        Those have no label, no document, and nothing attended.
      memory_at: int32 [B, S, M], where each document's memory tokens stand, -1 for absent ones; None unless packed.
      targets_at: int32 [B, A], positions of the labels; None unless packed.
      memories: compute dtype [B, D, M, E], of documents that were compressed before; else None.
      document_index: int32 [B, D], which of the N distinct documents stands at a place, 0 where none does; or None.
    """

    document_ids: Array | None
    document_mask: Array | None
    document_valid: Array
    query_ids: Array | None
    query_mask: Array | None
    prompt_ids: Array
    prompt_mask: Array
    memory_index: Array
    labels: Array
    positives: Array | None
    example_ids: Array
    memory_at: Array | None = None
    targets_at: Array | None = None
    memories: Array | None = None
    document_index: Array | None = None

    @property
    def tokens(self) -> int:
        """The number of attended positions of all texts and prompts; of host arrays, since reading a device's waits."""
        return sum(int((mask != 0).sum()) for mask in self._masks)

    @property
    def padding(self) -> float:
        """The share of positions that are padding."""
        return 1 - self.tokens / sum(mask.size for mask in self._masks)

    @property
    def _masks(self) -> list[Array]:
        masks = (self.document_mask, self.query_mask, self.prompt_mask)
        return [mask for mask in masks if mask is not None]


def plan_shapes(
    examples: Sequence[Example], tokenizer: ClaraTokenizer, multiple: int = MULTIPLE, documents: int = 0
) -> Shapes:
    """Return the smallest shapes that hold all examples, see `shapes_for`."""
    return shapes_for(sizes_of(examples), tokenizer, multiple, documents)


def collate(
    examples: Sequence[Example],
    shapes: Shapes,
    tokenizer: ClaraTokenizer,
    batch_size: int | None = None,
    memories: Memories | None = None,
    distinct: int | None = None,
) -> Batch:
    """Collate examples of one stage into a `Batch` of numpy arrays.

    Args:
      examples: at least one, at most ``batch_size``.
      shapes: the sizes of the batch; every example fits.
      tokenizer: gives the memory tokens and the padding.
      batch_size: B; rows that are missing are filled in (see `Batch`). Default: the number of examples, at least one.
      memories: of the documents; the batch then holds them instead of tokens, and the shapes need no room for these.
      distinct: N, for a batch that holds each distinct document once; default each in its place.

    Raises:
      ClaraError: an example does not fit the shapes; too many examples, or distinct documents.
    """
    rows = len(examples) if batch_size is None else batch_size
    if not examples or len(examples) > rows:
        raise ClaraError(f"{len(examples)} examples do not make a batch of {rows}")
    for example in examples:
        _check_fit(example, shapes, texts=memories is None)
    pad, count = tokenizer.pad_id, shapes.documents

    # Every document slot of every row is one line of a flat array, and so is every question.
    texts = [ids for example in examples for ids in (*example.documents, *[None] * (count - len(example.documents)))]
    texts += [None] * (rows * count - len(texts))
    document_ids = document_mask = compressed = index = None
    if memories is None and count and distinct is not None:
        different, index = _distinct(texts, distinct)
        index = index.reshape(rows, count)
        document_ids, document_mask = with_memory(different, shapes.encoder_width, tokenizer)
    elif memories is None and count:
        flat = with_memory(texts, shapes.encoder_width, tokenizer)
        document_ids, document_mask = (lines.reshape(rows, count, -1) for lines in flat)
    elif memories is not None:
        flat_memories = memories(texts)
        compressed = flat_memories.reshape(rows, count, *flat_memories.shape[1:])
    query_ids = query_mask = positives = None
    if examples[0].query is not None:
        queries = [example.query for example in examples] + [None] * (rows - len(examples))
        query_ids, query_mask = with_memory(queries, shapes.query_width, tokenizer)
    if examples[0].positives is not None:
        positives = np.zeros((rows, count), bool)
        for row, example in enumerate(examples):
            assert example.positives is not None  # of a stage all examples rank, or none
            positives[row, list(example.positives)] = True

    def lines(name: str, fill: int) -> np.ndarray:
        return _left_padded([getattr(example, name) for example in examples], rows, shapes.prompt_length, fill)

    lengths = np.array([len(example.prompt_ids) for example in examples] + [0] * (rows - len(examples)))
    return Batch(
        document_ids=document_ids,
        document_mask=document_mask,
        document_valid=np.array([text is not None for text in texts], bool).reshape(rows, count),
        query_ids=query_ids,
        query_mask=query_mask,
        prompt_ids=lines("prompt_ids", pad),
        prompt_mask=np.arange(shapes.prompt_length) >= shapes.prompt_length - lengths[:, None],
        memory_index=lines("memory_index", -1),
        labels=np.ascontiguousarray(lines("labels", IGNORED)[:, -shapes.target_length :]),
        positives=positives,
        example_ids=np.array([example.index for example in examples] + [-1] * (rows - len(examples)), np.int32),
        memories=compressed,
        document_index=index,
    )


def with_memory(
    texts: Sequence[np.ndarray | None], width: int, tokenizer: ClaraTokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Pad texts on the left to ``width`` and append the memory tokens.

    Returns:
      ids, int32 [N, width + M]; the attended positions, bool of the same shape: none of an absent text.
    """
    memory = np.array(tokenizer.memory_ids, np.int32)
    padded = _left_padded(texts, len(texts), width, tokenizer.pad_id)
    ids = np.concatenate([padded, np.tile(memory, (len(texts), 1))], axis=1)
    lengths = np.array([0 if text is None else len(text) + len(memory) for text in texts])
    return ids, np.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]


def _distinct(texts: Sequence[np.ndarray | None], count: int) -> tuple[list[np.ndarray | None], np.ndarray]:
    """Return ``count`` texts, each different one once, then None; and each place's index in them, int32, 0 at None."""
    numbers: dict[bytes, int] = {}
    index = [0 if text is None else numbers.setdefault(text.tobytes(), len(numbers)) for text in texts]
    if len(numbers) > count:
        raise ClaraError(f"{len(numbers)} distinct documents do not fit into a batch of {count}")
    different = [np.frombuffer(text, np.int32) for text in numbers]
    return different + [None] * (count - len(numbers)), np.array(index, np.int32)


def _check_fit(example: Example, shapes: Shapes, texts: bool) -> None:
    (sizes,) = sizes_of([example]) if texts else without_texts(sizes_of([example]))
    for field, size, limit in zip(dataclasses.fields(shapes), sizes, shapes.as_sizes(), strict=True):
        if size > limit:
            raise ClaraError(
                f"{example.where}: needs {field.name} {size}, the batch has {limit}; plan the shapes with this example"
            )


def _left_padded(arrays: Sequence[np.ndarray | None], rows: int, width: int, fill: int) -> np.ndarray:
    result = np.full((rows, width), fill, np.int32)
    for row, array in enumerate(arrays):
        if array is not None and len(array):
            result[row, -len(array) :] = array
    return result
