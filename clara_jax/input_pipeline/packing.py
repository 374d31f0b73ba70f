"""Several scp examples in one row: their documents one after another, and so their prompts, none seeing another.

A row has room for so many tokens of documents (with their memory tokens), of prompts and of targets, and for so many
examples. Examples are put into rows greedily, the largest first, each into the first row where it fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences
from clara_jax.input_pipeline.buckets import MULTIPLE, Shapes
from clara_jax.input_pipeline.encoding import Example
from clara_jax.input_pipeline.tokenization import IGNORED, ClaraTokenizer

_ROW_STEPS = 8  # batches differ by such a fraction of their rows; fewer would waste, more would compile more often


@dataclasses.dataclass(frozen=True)
class RowCapacity:
    """The room of a row.

    Attributes:
      documents: Te, tokens of its documents, memory tokens among them.
      prompts: T, tokens of its prompts.
      targets: A, labels.
      examples: S.
    """

    documents: int
    prompts: int
    targets: int
    examples: int


def needs(sizes: np.ndarray, memory_tokens: int) -> np.ndarray:
    """Return the room that each example takes of a row, int64 [N, 4].

    Args:
      sizes: int32 [N, 5], see `clara_jax.input_pipeline.buckets`.
      memory_tokens: M.
    """
    field = {field.name: sizes[:, i].astype(np.int64) for i, field in enumerate(dataclasses.fields(Shapes))}
    ones = np.ones(len(sizes), np.int64)
    return np.stack(
        [field["encoder_width"] + memory_tokens, field["prompt_length"], field["target_length"], ones], axis=1
    )


def plan_row(sizes: np.ndarray, memory_tokens: int, length: int) -> RowCapacity:
    """Return a row of ``length`` tokens of documents, with room for the prompts that come with as many on average.

    Raises:
      ClaraError: it is shorter than the longest document.
    """
    need = needs(sizes, memory_tokens)
    longest, mean = need.max(axis=0), need.mean(axis=0)
    if length < longest[0]:
        raise ClaraError(
            f"pack: {length} tokens do not hold the longest document, which has {longest[0]} with its memory tokens"
        )

    def up(tokens: float) -> int:
        return int(-(-tokens // MULTIPLE)) * MULTIPLE

    scale = length / mean[0]
    # Examples whose share of one is above average meet others whose share is below: a little more room helps them.
    prompts, targets = (up(max(longest[i], 1.1 * scale * mean[i])) for i in (1, 2))
    # A row's first label has a position before it.
    return RowCapacity(up(length), prompts, min(targets, prompts - 1), int(np.ceil(1.5 * scale)))


def pack(sizes: np.ndarray, memory_tokens: int, row: RowCapacity) -> list[list[int]]:
    """Pack examples into rows; each place in ``sizes`` stands in exactly one row.

    Raises:
      ClaraError: an example that does not fit into an empty row.
    """
    need, room = needs(sizes, memory_tokens), np.array(dataclasses.astuple(row))
    too_large = np.flatnonzero((need > room).any(axis=1))
    if too_large.size:
        raise ClaraError(f"pack: example {too_large[0]} takes {need[too_large[0]].tolist()} of {room.tolist()}")
    rows: list[list[int]] = []
    left = np.empty((len(sizes), 4), np.int64)
    for place in np.argsort(-(need / room).max(axis=1), kind="stable"):
        fits = np.flatnonzero((left[: len(rows)] >= need[place]).all(axis=1))
        if fits.size:
            number = int(fits[0])
        else:
            number = len(rows)
            rows.append([])
            left[number] = room
        rows[number].append(int(place))
        left[number] -= need[place]
    return rows


def row_count(rows: int, expected: float, multiple: int) -> int:
    """Return the number of rows of a packed batch: few different counts, each a multiple.

    Args:
      rows: that are filled.
      expected: the average.
      multiple: the divisor of the number of rows: microbatches times devices.
    """
    unit = multiple * max(1, round(expected / _ROW_STEPS / multiple))
    return -(-rows // unit) * unit


def collate_packed(rows: Sequence[Sequence[Example]], count: int, row: RowCapacity, tokenizer: ClaraTokenizer) -> Batch:
    """Collate rows of examples into a `Batch` of numpy arrays.

    Args:
      rows: the examples of each row, as `pack` chose them.
      count: B; rows that are missing are empty.
      row: the room of a row.
      tokenizer: gives the memory tokens and the padding.
    """
    memory = np.array(tokenizer.memory_ids, np.int32)
    length = len(memory)
    document_ids = np.full((count, row.documents), tokenizer.pad_id, np.int32)
    prompt_ids = np.full((count, row.prompts), tokenizer.pad_id, np.int32)
    texts = Sequences(document_ids, np.zeros_like(document_ids), np.full((count, row.examples, length), -1, np.int32))
    labels = np.full((count, row.targets), IGNORED, np.int32)
    prompts = PromptBatch(
        prompt_ids, np.zeros_like(prompt_ids), np.full_like(prompt_ids, -1), labels, np.zeros_like(labels)
    )
    example_ids = np.full((count, row.examples), -1, np.int32)
    for b, examples in enumerate(rows):
        document, prompt, target = 0, 0, 0  # where the next begins
        for s, example in enumerate(examples):
            (text,) = example.documents
            memories = tokenizer.memories_of(len(text))
            after = document + len(text) + memories
            texts.ids[b, document:after] = np.concatenate([text, memory[:memories]])
            texts.segment_ids[b, document:after] = s + 1
            texts.memory_positions[b, s, :memories] = np.arange(after - memories, after)
            document = after

            after = prompt + len(example.prompt_ids)
            prompts.ids[b, prompt:after] = example.prompt_ids
            prompts.segment_ids[b, prompt:after] = s + 1
            index = example.memory_index
            prompts.memory_index[b, prompt:after] = np.where(index >= 0, s * length + index, -1)
            labelled = np.flatnonzero(example.labels != IGNORED)
            labels[b, target : target + len(labelled)] = example.labels[labelled]
            prompts.label_positions[b, target : target + len(labelled)] = prompt + labelled
            prompt, target = after, target + len(labelled)
            example_ids[b, s] = example.index
    return Batch(
        documents=jax.tree.map(lambda x: x[:, None], texts),
        document_valid=example_ids >= 0,
        query=None,
        prompt=prompts,
        positives=None,
        example_ids=example_ids,
    )
