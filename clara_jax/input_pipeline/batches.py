"""Examples as fixed-size batches.

Shapes: B rows, S sequences of a row, D documents of a row, M memory tokens, T positions of a prompt, A labels. What
shapes there are, and which examples a batch holds, is planned elsewhere (`buckets`, `sampler`).
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
MemoryReader = Callable[[Sequence[np.ndarray | None]], np.ndarray]


@flax.struct.dataclass
class Sequences:
    """Rows of texts to encode, each text followed by its memory tokens, at most M.

    A row holds S texts one after another, of which none attends to another, or a single one, padded on the left.
    Leading axes (N) may be several: [B, D] for D rows of each example.

    Attributes:
      ids: int32 [N, T], the memory tokens among them.
      segment_ids: int32 [N, T], the number of the text that a token belongs to, from 1; 0 where nothing is attended.
      memory_positions: int32 [N, S, M], where each text's memory tokens stand; -1 beyond its last, and for an absent
        text in a row of several.
    """

    ids: Array
    segment_ids: Array
    memory_positions: Array


@flax.struct.dataclass
class DistinctSequences:
    """The documents of a batch, each distinct one once, because the compressor is frozen.

    Attributes:
      texts: [N, T], rows of one document each.
      index: int32 [B, D], which of the N documents stands at a place, 0 where none does.
    """

    texts: Sequences
    index: Array


@flax.struct.dataclass
class StoredMemories:
    """Documents that were compressed before.

    Attributes:
      vectors: compute dtype [B, D, M, E].
    """

    vectors: Array


@flax.struct.dataclass
class PromptBatch:
    """The generator's prompts with their targets: one in each row, padded on the left, or several (packed).

    Attributes:
      ids: int32 [B, T].
      segment_ids: int32 [B, T], the number of the prompt that a token belongs to, from 1; 0 where nothing is attended.
      memory_index: int32 [B, T], which of the row's memory vectors stands at a position: slot · M + j; -1 at text.
      labels: int32 [B, A], -100 where there is no loss.
      label_positions: int32 [B, A], where the labels stand in ``ids``.
    """

    ids: Array
    segment_ids: Array
    memory_index: Array
    labels: Array
    label_positions: Array


@flax.struct.dataclass
class Batch:
    """A batch of a training step.

    A packed batch (`clara_jax.input_pipeline.packing`) holds up to S examples of one document each in a row; any other
    one, S = 1.

    Attributes:
      documents: tokens, [B, D] rows of one text or [B, 1] rows of S; each distinct document once; memories; or None
        where documents are text in the prompts.
      document_valid: bool [B, D] (packed: [B, S]), which documents are present. D is 0 where they are text.
      query: rows [B] of one question each; None where nothing is ranked.
      prompt: what the generator reads.
      positives: bool [B, D]; None where nothing is ranked.
      example_ids: int32 [B, S], places of the examples in the dataset; -1 for those that only fill the batch. They have
        no label, no document, and nothing attended.
    """

    documents: Sequences | DistinctSequences | StoredMemories | None
    document_valid: Array
    query: Sequences | None
    prompt: PromptBatch
    positives: Array | None
    example_ids: Array

    @property
    def texts(self) -> Sequences | None:
        """The documents as tokens, in whatever order; None where there are none to compress."""
        if isinstance(self.documents, DistinctSequences):
            return self.documents.texts
        return self.documents if isinstance(self.documents, Sequences) else None

    @property
    def tokens(self) -> int:
        """The number of attended positions of all texts and prompts; of host arrays, since reading a device's waits."""
        return sum(int((segment_ids != 0).sum()) for segment_ids in self._segment_ids)

    @property
    def padding(self) -> float:
        """The share of positions that are padding."""
        return 1 - self.tokens / sum(segment_ids.size for segment_ids in self._segment_ids)

    @property
    def _segment_ids(self) -> list[Array]:
        return [part.segment_ids for part in (self.texts, self.query, self.prompt) if part is not None]


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
    memories: MemoryReader | None = None,
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
    documents = query = positives = None
    if memories is not None:
        vectors = memories(texts)
        documents = StoredMemories(vectors.reshape(rows, count, *vectors.shape[1:]))
    elif count and distinct is not None:
        different, index = _distinct(texts, distinct)
        documents = DistinctSequences(
            with_memory(different, shapes.encoder_width, tokenizer), index.reshape(rows, count)
        )
    elif count:
        flat = with_memory(texts, shapes.encoder_width, tokenizer)
        documents = jax.tree.map(lambda lines: lines.reshape(rows, count, *lines.shape[1:]), flat)
    if examples[0].query is not None:
        queries = [example.query for example in examples] + [None] * (rows - len(examples))
        query = with_memory(queries, shapes.query_width, tokenizer)
    if examples[0].positives is not None:
        positives = np.zeros((rows, count), bool)
        for row, example in enumerate(examples):
            assert example.positives is not None  # of a stage all examples rank, or none
            positives[row, list(example.positives)] = True

    def lines(name: str, fill: int) -> np.ndarray:
        return _left_padded([getattr(example, name) for example in examples], rows, shapes.prompt_length, fill)

    lengths = np.array([len(example.prompt_ids) for example in examples] + [0] * (rows - len(examples)))
    places = np.arange(shapes.prompt_length, dtype=np.int32)
    targets = slice(shapes.prompt_length - shapes.target_length, None)
    prompt = PromptBatch(
        ids=lines("prompt_ids", pad),
        segment_ids=(places >= shapes.prompt_length - lengths[:, None]).astype(np.int32),
        memory_index=lines("memory_index", -1),
        labels=np.ascontiguousarray(lines("labels", IGNORED)[:, targets]),
        label_positions=np.tile(places[targets], (rows, 1)),
    )
    return Batch(
        documents=documents,
        document_valid=np.array([text is not None for text in texts], bool).reshape(rows, count),
        query=query,
        prompt=prompt,
        positives=positives,
        example_ids=np.array([[example.index] for example in examples] + [[-1]] * (rows - len(examples)), np.int32),
    )


def with_memory(
    texts: Sequence[np.ndarray | None], width: int, tokenizer: ClaraTokenizer, room: int | None = None
) -> Sequences:
    """Append its memory tokens to each of N texts, padded on the left; nothing of an absent text is attended.

    Args:
      texts: token ids; None for an absent text.
      width: of the longest text.
      tokenizer: gives the memory tokens and the padding.
      room: memory tokens that a row has room for: as many as a text of ``width`` has, or by default M.
    """
    memory = np.array(tokenizer.memory_ids, np.int32)
    room = len(memory) if room is None else room
    counts = np.array([room if text is None else tokenizer.memories_of(len(text)) for text in texts])
    pairs = list(zip(texts, counts, strict=True))
    whole = [memory[:count] if text is None else np.append(text, memory[:count]) for text, count in pairs]
    ids = _left_padded(whole, len(texts), width + room, tokenizer.pad_id)
    lengths = np.array([0 if text is None else len(text) + count for text, count in pairs])
    attended = np.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]
    at = memory_at_end(ids.shape, len(memory)) + (len(memory) - counts[:, None, None])
    return Sequences(ids, attended.astype(np.int32), np.where(at < ids.shape[1], at, -1).astype(np.int32))


def memory_at_end(shape: Sequence[int], memory_tokens: int) -> np.ndarray:
    """Return `Sequences.memory_positions` for ids of a shape [..., T] whose rows hold one text: int32 [..., 1, M]."""
    *rows, length = shape
    return np.tile(np.arange(length - memory_tokens, length, dtype=np.int32), (*rows, 1, 1))


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
