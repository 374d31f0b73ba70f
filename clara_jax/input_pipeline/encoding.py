"""Records as token ids: every distinct document once, nothing padded."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.document_tokenizer import FRAME, SLICE
from clara_jax.input_pipeline.prompts import Prompt, record_prompt
from clara_jax.input_pipeline.records import ALL_STAGES, ONE_DOCUMENT, RANKING_STAGES, Record
from clara_jax.input_pipeline.tokenization import IGNORED, ClaraTokenizer, EncodedPrompt

# How documents reach the generator: as memories, or as the texts they are (the control of equal data).
DOCUMENTS = (MEMORY, TEXT) = ("memory", "text")


@dataclasses.dataclass(frozen=True)
class Example:
    """A tokenized record; nothing padded, memory tokens not appended. Equal documents share one array.

    Attributes:
      index: its place in the dataset.
      where: "file.jsonl:17", for messages.
      documents: int32 arrays, one per document; none where documents are text in the prompt.
      query: int32 array; None where nothing is ranked.
      prompt_ids, memory_index, labels: int32 [T], see `EncodedPrompt`.
      positives: indices into ``documents``; None where nothing is ranked.
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
        """The number of positions from the first label to the right end; 0 without labels."""
        return _target_span(self.labels)


@dataclasses.dataclass(frozen=True)
class EncodedRecord:
    """An `Example` whose documents are numbers, counted in the order in which the encoder met them first."""

    documents: tuple[int, ...]
    query: np.ndarray | None
    prompt_ids: np.ndarray
    memory_index: np.ndarray
    labels: np.ndarray
    positives: tuple[int, ...] | None


def sizes_of(examples: Sequence[Example]) -> np.ndarray:
    """Return the index of sizes, int32 [N, 5], see `clara_jax.input_pipeline.buckets`."""
    sizes = [row_of_sizes(example, [len(ids) for ids in example.documents]) for example in examples]
    return np.array(sizes, np.int32).reshape(-1, 5)


def row_of_sizes(record: Example | EncodedRecord, document_lengths: Sequence[int]) -> tuple[int, ...]:
    """Return a record's row of the index of sizes, see `sizes_of`.

    Args:
      record: a tokenized record.
      document_lengths: of the record's documents, in ids.
    """
    return (
        len(record.documents),
        max(document_lengths, default=0),
        0 if record.query is None else len(record.query),
        len(record.prompt_ids),
        _target_span(record.labels),
    )


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How records become tokens; part of the key under which tokens are cached.

    Attributes:
      stage: "scp", "autoencode" or "continue" (one document, one slot), "instruct" (up to k documents, a slot each),
        "end_to_end" or "retrieval" (up to ``candidates`` documents, min(k, documents) slots). A prompt's form
        depends on the record's kind: a stage may learn from records of several.
      k: documents in the prompt.
      candidates: D of end_to_end and retrieval; None: all documents of each record.
      seed: chooses the instructions of paraphrases.
      query_width: where questions are cut; None: ``tokenizer.max_length + 3``, as in the released training code.
      keep_positives: of too many documents keep the positive ones before others (all in their order). Switched off to
        measure on given candidates: which are left out must not depend on which are right.
      documents: "memory", or "text": up to k documents (of scp one) stand in the prompt as texts, each cut where the
        compressor would cut it; nothing is compressed, and nothing ranked.

    Raises:
      ClaraError: an unknown stage or way of documents, a number that is not positive.
    """

    stage: str
    k: int
    candidates: int | None = None
    seed: int = 0
    query_width: int | None = None
    keep_positives: bool = True
    documents: str = MEMORY

    def __post_init__(self):
        if self.documents not in DOCUMENTS:
            raise ClaraError(f"documents {self.documents!r} must be one of {', '.join(DOCUMENTS)}")
        if self.stage not in ALL_STAGES:
            raise ClaraError(f"stage {self.stage!r} is unknown; it must be one of {', '.join(ALL_STAGES)}")
        if self.k < 1 or (self.candidates is not None and self.candidates < 1):
            raise ClaraError(f"k is {self.k} and candidates is {self.candidates}; both must be at least 1")

    @property
    def limit(self) -> int | None:
        """The most documents of a record; None for all."""
        if self.stage in ONE_DOCUMENT:
            return 1
        return self.candidates if self.ranks else self.k

    @property
    def ranks(self) -> bool:
        """Whether a question ranks the documents."""
        return self.stage in RANKING_STAGES and self.documents == MEMORY


class Encoder:
    """A tokenizer of records, slice by slice; a document that was met before is not tokenized again.

    Attributes:
      cut_documents, cut_queries, cut_targets: how many were too long so far.
    """

    def __init__(self, tokenizer: ClaraTokenizer, encoding: Encoding):
        self.tokenizer, self.encoding = tokenizer, encoding
        self.cut_documents = self.cut_queries = self.cut_targets = 0
        self._numbers: dict[bytes, int] = {}  # of documents, by a hash: the texts need not stay in memory

    @property
    def document_count(self) -> int:
        """The number of distinct documents so far."""
        return len(self._numbers)

    def encode(self, records: Sequence[Record]) -> tuple[list[np.ndarray], list[EncodedRecord]]:
        """Return the documents that are new, in the order of their numbers, and the encoded records.

        Raises:
          ClaraError: a record whose prompt is cut so far that a memory or the whole target is lost.
        """
        encoding = self.encoding
        records = [_select_documents(record, encoding.limit, encoding.keep_positives) for record in records]
        new: list[str] = []
        numbers = [tuple(self._number(text, new) for text in record.documents) for record in records]
        documents, cut = self._texts(new, self.tokenizer.document_width)
        self.cut_documents += cut
        if encoding.documents == TEXT:
            documents, numbers = [], [()] * len(records)
        queries: Sequence[np.ndarray | None] = [None] * len(records)
        if encoding.ranks:
            width = self.tokenizer.max_length + FRAME if encoding.query_width is None else encoding.query_width
            queries, cut = self._texts([record.questions[0] for record in records], width)
            self.cut_queries += cut
        prompts = self.tokenizer.encode_prompts(record_prompts(records, self.tokenizer, encoding))
        results = []
        for record, places, query, prompt in zip(records, numbers, queries, prompts, strict=True):
            if encoding.stage != "retrieval":  # which learns nothing from the prompt
                _check_cut(record, prompt, self.tokenizer.max_length)
            self.cut_targets += prompt.cut
            ids, index, labels = (np.array(x, np.int32) for x in (prompt.ids, prompt.memory_index, prompt.labels))
            positives = record.positives if encoding.ranks else None
            results.append(EncodedRecord(places, query, ids, index, labels, positives))
        return documents, results

    def warn(self) -> None:
        """Warn, once, if documents, questions or targets were cut."""
        notes = []
        if self.cut_documents:
            notes.append(
                f"{self.cut_documents} of {self.document_count} different documents are longer than doc_max_length = "
                f"{self.tokenizer.doc_max_length} tokens and are cut there; split them into chunks to keep their ends"
            )
        if self.cut_queries:
            notes.append(f"{self.cut_queries} questions are cut")
        if self.cut_targets:
            notes.append(
                f"{self.cut_targets} prompts are longer than max_length = {self.tokenizer.max_length} tokens "
                "and lose the end of their answer"
            )
        if notes:
            warnings.warn("; ".join(notes), stacklevel=3)

    def _number(self, text: str, new: list[str]) -> int:
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if (number := self._numbers.get(key)) is None:
            number = self._numbers[key] = len(self._numbers)
            new.append(text)
        return number

    def _texts(self, texts: Sequence[str], width: int) -> tuple[list[np.ndarray], int]:
        """Return the ids of texts, cut at a width, and how many were cut."""
        encoded = self.tokenizer.document_tokens(texts) if texts else []
        return [np.array(ids[:width], np.int32) for ids in encoded], sum(len(ids) > width for ids in encoded)


def record_prompts(records: Sequence[Record], tokenizer: ClaraTokenizer, encoding: Encoding) -> list[Prompt]:
    """Return the training prompts of records."""
    records = [_select_documents(record, encoding.limit, encoding.keep_positives) for record in records]
    texts: Sequence[list[str] | None] = [None] * len(records)
    if encoding.documents == TEXT:
        cut = iter(tokenizer.cut_texts([text for record in records for text in record.documents]))
        texts = [[next(cut) for _ in record.documents] for record in records]
    pairs = zip(records, texts, strict=True)
    return [record_prompt(record, encoding.stage, encoding.k, encoding.seed, cuts) for record, cuts in pairs]


def encode_records(
    records: Sequence[Record],
    tokenizer: ClaraTokenizer,
    encoding: Encoding,
    progress: Callable[[int, int], None] | None = None,
) -> list[Example]:
    """Tokenize all of a dataset into memory, once.

    Args:
      records: the dataset, in order.
      tokenizer: of the model.
      encoding: the stage, and how its records become tokens.
      progress: called with (records done, their total).

    Raises:
      ClaraError: a record whose prompt is cut so far that a memory or the whole target is lost.

    Warns:
      once, if documents, questions or targets are cut.
    """
    encoder = Encoder(tokenizer, encoding)
    documents: list[np.ndarray] = []
    examples: list[Example] = []
    for start in range(0, len(records), SLICE):
        part = records[start : start + SLICE]
        new, encoded = encoder.encode(part)
        documents += new
        for record, one in zip(part, encoded, strict=True):
            texts = tuple(documents[number] for number in one.documents)
            arrays = (one.query, one.prompt_ids, one.memory_index, one.labels)
            examples.append(Example(len(examples), record.where, texts, *arrays, one.positives))
        if progress is not None:
            progress(len(examples), len(records))
    encoder.warn()
    return examples


def _target_span(labels: np.ndarray) -> int:
    labelled = np.flatnonzero(labels != IGNORED)
    return len(labels) - int(labelled[0]) if labelled.size else 0


def _select_documents(record: Record, limit: int | None, keep_positives: bool) -> Record:
    """Return the record with at most ``limit`` documents, in their order."""
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
