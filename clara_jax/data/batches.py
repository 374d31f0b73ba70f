"""Records as fixed-size batches: tokenized once, padded on the left.

Shapes: B rows, D documents of a row, M memory tokens, T positions of a prompt, A positions at its right end that hold
every target. What shapes there are, and which examples a batch holds, is planned elsewhere (`shapes`, `plan`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import flax.struct
import jax
import numpy as np

from clara_jax.data.prompts import record_prompt
from clara_jax.data.records import STAGES, Record
from clara_jax.data.shapes import MULTIPLE, Shapes, shapes_for
from clara_jax.data.tokenization import FRAME, IGNORED, SLICE, ClaraTokenizer, EncodedPrompt
from clara_jax.errors import ClaraError

RANKING_STAGES = ("end_to_end", "retrieval")  # a question ranks candidates
Array = np.ndarray | jax.Array


@flax.struct.dataclass
class Batch:
    """A batch of a training step; Te = encoder width + M, Tq = query width + M.

    A packed batch (`clara_jax.data.packing`) holds up to S examples in each row, of one document each: one sequence of
    documents, D = 1, and one of prompts. Its masks are int32, the number of the example in the row, from 1, and 0 where
    nothing is attended.

    Attributes:
      document_ids: int32 [B, D, Te], ending with the M memory tokens.
      document_mask: bool [B, D, Te], attended positions, memory tokens among them; False where a document is absent.
      document_valid: bool [B, D] (packed: [B, S]), which documents are present.
      query_ids: int32 [B, Tq], ending with the M memory tokens; None for scp and instruct.
      query_mask: bool [B, Tq]; None for scp and instruct.
      prompt_ids: int32 [B, T].
      prompt_mask: bool [B, T].
      memory_index: int32 [B, T], which of the row's memory vectors stands at a position: slot · M + j; -1 at text.
      labels: int32 [B, A] of the last A positions of ``prompt_ids`` (packed: of ``targets_at``), -100 where there is no
        loss.
      positives: bool [B, D]; None for scp and instruct.
      example_ids: int32 [B] (packed: [B, S]), places of the rows in the dataset; -1 for rows that only fill the batch.
        Those have no label, no document, and nothing attended.
      memory_at: int32 [B, S, M], where each document's memory tokens stand, -1 for absent ones; None unless packed.
      targets_at: int32 [B, A], positions of the labels; None unless packed.
    """

    document_ids: Array
    document_mask: Array
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

    @property
    def tokens(self) -> int:
        """Attended positions of all texts and prompts (of host arrays: reading a device's would wait for it)."""
        return sum(int((mask != 0).sum()) for mask in self._masks)

    @property
    def padding(self) -> float:
        """The share of positions that are computed for nothing."""
        return 1 - self.tokens / sum(mask.size for mask in self._masks)

    @property
    def _masks(self) -> list[Array]:
        masks = (self.document_mask, self.query_mask, self.prompt_mask)
        return [mask for mask in masks if mask is not None]


@dataclasses.dataclass(frozen=True)
class Example:
    """A tokenized record; nothing padded, memory tokens not appended. Equal documents share one array.

    Attributes:
      index: its place in the dataset.
      where: "file.jsonl:17", for messages.
      documents: int32 arrays, one per document.
      query: int32 array; None for scp and instruct.
      prompt_ids, memory_index, labels: int32 [T], see `EncodedPrompt`.
      positives: indices into ``documents``; None for scp and instruct.
    """

    index: int
    where: str
    documents: tuple[np.ndarray, ...]
    query: np.ndarray | None
    prompt_ids: np.ndarray
    memory_index: np.ndarray
    labels: np.ndarray
    positives: tuple[int, ...] | None

    @property
    def target_span(self) -> int:
        """Positions from the first label to the right end; 0 without labels."""
        labelled = np.flatnonzero(self.labels != IGNORED)
        return len(self.labels) - int(labelled[0]) if labelled.size else 0


def sizes_of(examples: Sequence[Example]) -> np.ndarray:
    """The index of sizes, int32 [N, 5], see `clara_jax.data.shapes`."""
    sizes = [
        (
            len(example.documents),
            max((len(ids) for ids in example.documents), default=0),
            0 if example.query is None else len(example.query),
            len(example.prompt_ids),
            example.target_span,
        )
        for example in examples
    ]
    return np.array(sizes, np.int32).reshape(-1, 5)


def encode_records(
    records: Sequence[Record],
    tokenizer: ClaraTokenizer,
    stage: str,
    k: int,
    candidates: int | None = None,
    seed: int = 0,
    query_width: int | None = None,
    keep_positives: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Example]:
    """Tokenizes all of a dataset, once.

    Args:
      stage: "scp" (one document, one slot), "instruct" (up to k documents, a slot each), "end_to_end" or "retrieval"
        (up to ``candidates`` documents, min(k, documents) slots).
      k: documents in the prompt.
      candidates: D of end_to_end and retrieval; default: all documents of each record.
      seed: chooses the instructions of paraphrases.
      query_width: where questions are cut; default ``tokenizer.max_length + 3``, as in the released training code.
      keep_positives: of too many documents keep the positive ones before others (all in their order). Switch it off to
        measure on given candidates: what is left out must not depend on what is right.
      progress: called with (texts and prompts done, their total).

    Raises:
      ClaraError: a record whose prompt is cut so far that a memory or the whole target is lost.

    Warns:
      once, if documents, questions or targets are cut.
    """
    if stage not in STAGES:
        raise ClaraError(f"stage {stage!r} is unknown; it must be one of {', '.join(STAGES)}")
    if k < 1 or (candidates is not None and candidates < 1):
        raise ClaraError(f"k is {k} and candidates is {candidates}; both must be at least 1")
    ranking = stage in RANKING_STAGES
    limit = {"scp": 1, "instruct": k}.get(stage, candidates)
    records = [_select_documents(record, limit, keep_positives) for record in records]
    unique = list(dict.fromkeys(text for record in records for text in record.documents))
    questions = [record.questions[0] for record in records] if ranking else []
    total, done = len(unique) + len(questions) + len(records), 0

    def in_slices(function, items: Sequence) -> list:
        nonlocal done
        results = []
        for start in range(0, len(items), SLICE):
            part = items[start : start + SLICE]
            results += function(part)
            done += len(part)
            if progress is not None:
                progress(done, total)
        return results

    def encode_texts(texts: Sequence[str], width: int) -> tuple[list[np.ndarray], int]:
        def cut(part):
            return [(len(ids) > width, np.array(ids[:width], np.int32)) for ids in tokenizer.document_tokens(part)]

        encoded = in_slices(cut, texts)
        return [ids for _, ids in encoded], sum(is_cut for is_cut, _ in encoded)

    texts, cut_documents = encode_texts(unique, tokenizer.doc_max_length + FRAME)
    documents = dict(zip(unique, texts, strict=True))
    queries, cut_queries = encode_texts(questions, tokenizer.max_length + FRAME if query_width is None else query_width)
    prompts = in_slices(
        lambda part: tokenizer.encode_prompts([record_prompt(record, stage, k, seed) for record in part]), records
    )
    examples, cut_targets = [], 0
    for index, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
        if stage != "retrieval":  # which learns nothing from the prompt
            _check_cut(record, prompt, tokenizer.max_length)
        cut_targets += prompt.cut
        examples.append(
            Example(
                index,
                record.where,
                tuple(documents[text] for text in record.documents),
                queries[index] if ranking else None,
                *(np.array(values, np.int32) for values in (prompt.ids, prompt.memory_index, prompt.labels)),
                record.positives if ranking else None,
            )
        )
    _warn(cut_documents, len(unique), cut_queries, cut_targets, tokenizer)
    return examples


def plan_shapes(
    examples: Sequence[Example], tokenizer: ClaraTokenizer, multiple: int = MULTIPLE, documents: int = 0
) -> Shapes:
    """`shapes_for` examples."""
    return shapes_for(sizes_of(examples), tokenizer, multiple, documents)


def collate(
    examples: Sequence[Example], shapes: Shapes, tokenizer: ClaraTokenizer, batch_size: int | None = None
) -> Batch:
    """Examples of one stage as a `Batch` of numpy arrays.

    Args:
      batch_size: B; rows that are missing are filled in (see `Batch`). Default: the number of examples, at least one.

    Raises:
      ClaraError: an example does not fit the shapes; too many examples.
    """
    rows = len(examples) if batch_size is None else batch_size
    if not examples or len(examples) > rows:
        raise ClaraError(f"{len(examples)} examples do not make a batch of {rows}")
    for example in examples:
        _check_fit(example, shapes)
    pad, memory, count = tokenizer.pad_id, np.array(tokenizer.memory_ids, np.int32), shapes.documents

    # Every document slot of every row is one line of a flat array, and so is every question.
    texts = [ids for example in examples for ids in (*example.documents, *[None] * (count - len(example.documents)))]
    texts += [None] * (rows * count - len(texts))
    document_ids, document_mask = _with_memory(texts, shapes.encoder_width, memory, pad)
    query_ids = query_mask = positives = None
    if examples[0].query is not None:
        queries = [example.query for example in examples] + [None] * (rows - len(examples))
        query_ids, query_mask = _with_memory(queries, shapes.query_width, memory, pad)
    if examples[0].positives is not None:
        positives = np.zeros((rows, count), bool)
        for row, example in enumerate(examples):
            positives[row, list(example.positives)] = True

    def lines(name: str, fill: int) -> np.ndarray:
        return _left_padded([getattr(example, name) for example in examples], rows, shapes.prompt_length, fill)

    lengths = np.array([len(example.prompt_ids) for example in examples] + [0] * (rows - len(examples)))
    return Batch(
        document_ids=document_ids.reshape(rows, count, -1),
        document_mask=document_mask.reshape(rows, count, -1),
        document_valid=np.array([text is not None for text in texts]).reshape(rows, count),
        query_ids=query_ids,
        query_mask=query_mask,
        prompt_ids=lines("prompt_ids", pad),
        prompt_mask=np.arange(shapes.prompt_length) >= shapes.prompt_length - lengths[:, None],
        memory_index=lines("memory_index", -1),
        labels=np.ascontiguousarray(lines("labels", IGNORED)[:, -shapes.target_length :]),
        positives=positives,
        example_ids=np.array([example.index for example in examples] + [-1] * (rows - len(examples)), np.int32),
    )


def _select_documents(record: Record, limit: int | None, keep_positives: bool) -> Record:
    """The record with at most ``limit`` documents, in their order."""
    if limit is None or len(record.documents) <= limit:
        return record
    order = range(len(record.documents))
    if keep_positives:
        order = [*record.positives, *(i for i in order if i not in record.positives)]
    kept = sorted(order[:limit])
    return dataclasses.replace(
        record,
        documents=tuple(record.documents[i] for i in kept),
        positives=tuple(new for new, old in enumerate(kept) if old in record.positives),
    )


def _check_cut(record: Record, prompt: EncodedPrompt, limit: int) -> None:
    if prompt.lost_memories or prompt.target_lost:
        lost = "a document's memory" if prompt.lost_memories else "its whole answer"
        raise ClaraError(
            f"{record.where}: the prompt has {prompt.full_length} tokens and is cut at {limit}: {lost} is lost; "
            f"raise max_length (clara.max_length in a config) to {prompt.full_length}, or shorten the record"
        )


def _warn(cut_documents: int, documents: int, cut_queries: int, cut_targets: int, tokenizer: ClaraTokenizer) -> None:
    notes = []
    if cut_documents:
        notes.append(
            f"{cut_documents} of {documents} different documents are longer than doc_max_length = "
            f"{tokenizer.doc_max_length} tokens and are cut there; split them into chunks to keep their ends"
        )
    if cut_queries:
        notes.append(f"{cut_queries} questions are cut")
    if cut_targets:
        notes.append(
            f"{cut_targets} prompts are longer than max_length = {tokenizer.max_length} tokens "
            "and lose the end of their answer"
        )
    if notes:
        warnings.warn("; ".join(notes), stacklevel=3)


def _check_fit(example: Example, shapes: Shapes) -> None:
    (sizes,) = sizes_of([example])
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


def _with_memory(
    texts: Sequence[np.ndarray | None], width: int, memory: np.ndarray, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Texts padded on the left to ``width``, then the memory tokens; and what is attended: nothing of an absent one."""
    ids = np.concatenate([_left_padded(texts, len(texts), width, pad), np.tile(memory, (len(texts), 1))], axis=1)
    lengths = np.array([0 if text is None else len(text) + len(memory) for text in texts])
    return ids, np.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]
