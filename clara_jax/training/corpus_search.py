"""Candidates from a search over the whole corpus, drawn again while the query reasoner is trained.

The corpus are the distinct documents of a stage's training records, whose memories are stored. Every so many steps the
questions of the steps to come are encoded with the query reasoner as it is then, and the best documents of the corpus
for each, beside its positive ones, are its candidates: hard negatives that move with it. A draw is a pure function of
parameters, seed and step; a checkpoint between two draws holds the one that it is in the middle of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.checkpoints.run import load_arrays
from clara_jax.errors import ClaraError
from clara_jax.inference.encode import encode_texts
from clara_jax.inference.memory_store import document_key
from clara_jax.inference.ranking import best_rows, norms_of, trimmed
from clara_jax.input_pipeline.batches import Batch, MemoryReader
from clara_jax.input_pipeline.encoding import Example
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.method.reranker import score_vectors
from clara_jax.metrics.ranking import DEPTHS
from clara_jax.model.sharding import batch_shards, divisible, put_batch, put_whole
from clara_jax.training.stage_config import StageConfig

DRAW = "candidates"  # of a checkpoint's arrays: the draw that is being used
BLOCK_BYTES = 2**26  # of float32 memories that are scored at a time
QUESTIONS = 64  # of a device call


class DrawnExamples(Sequence[Example]):
    """A stage's examples, of which some have the candidates of the newest draw."""

    def __init__(self, examples: Sequence[Example]):
        self.given = examples
        self.drawn: Mapping[int, Example] = {}

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.given)

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...

    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        """Return an example, with the documents that were drawn for it, if any were."""
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return self.drawn.get(place) or self.given[place]


def check_searchable(stage: StageConfig, examples: Sequence[Example]) -> None:
    """Check that a stage's training examples can be joined by what a search of their documents finds.

    Args:
      stage: its configuration, with ``topk.search_every``.
      examples: of its training records.

    Raises:
      ClaraError: a record without a positive document, or with fewer documents than are read; a corpus with fewer
        documents than a question has candidates.
    """
    where, keys = f"config.{stage.name}.topk", set()
    for example in examples:
        if not example.positives:
            raise ClaraError(
                f"{where}.search_every: {example.where} marks no document as positive; what is drawn is joined by "
                "the positive ones: mark one, or leave search_every out"
            )
        if len(example.documents) < stage.topk.k:
            raise ClaraError(
                f"{where}.search_every: {example.where} has {len(example.documents)} documents, and a prompt of k "
                f"{stage.topk.k} places for memories; give each record as many documents, or lower {where}.k"
            )
        keys.update(map(document_key, example.documents))
    if len(keys) < stage.topk.candidates:
        raise ClaraError(
            f"{where}.candidates is {stage.topk.candidates}, but the training records have {len(keys)} different "
            "documents to search; lower it"
        )


class CorpusSearch:
    """The draws of a stage with ``topk.search_every``.

    Args:
      stage: the stage's configuration.
      bundle: the model at the stage's start.
      examples: the stage's, as its batches read them.
      held_out: held-out ones, for `recall`.
      memories: of all documents.
    """

    def __init__(
        self,
        stage: StageConfig,
        bundle: Bundle,
        examples: DrawnExamples,
        held_out: Sequence[Example],
        memories: MemoryReader,
    ):
        assert stage.topk.search_every is not None  # such a stage alone has one
        self._stage, self._bundle, self._examples, self._memories = stage, bundle, examples, memories
        self._every, self._candidates = stage.topk.search_every, stage.topk.candidates
        # By a key of their tokens: records may repeat a document, and files may.
        self._numbers: dict[bytes, int] = {}
        self._documents: list[np.ndarray] = []
        for example in examples.given:
            self._number(example.documents)
        self._train = len(self._documents)
        # Measured over all documents, and drawn from those of training alone.
        self._held_out = [example for example in held_out if example.positives]
        self._golds = [self._gold(example) for example in self._held_out]
        self._drawn: dict[int, np.ndarray] = {}

    def _number(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Return the numbers of documents, int64, after adding those that are new."""
        numbers = []
        for ids in documents:
            key = document_key(ids)
            if key not in self._numbers:
                self._numbers[key] = len(self._documents)
                self._documents.append(ids)
            numbers.append(self._numbers[key])
        return np.array(numbers, np.int64)

    def _gold(self, example: Example) -> np.ndarray:
        """Return the numbers of an example's positive documents, int64, each once."""
        return np.unique(self._number(example.documents)[list(example.positives or ())])

    def due(self, step: int) -> bool:
        """Return whether candidates are drawn before a step."""
        return step % self._every == 0

    def draw(self, step: int, params: Any, loader: BatchLoader) -> None:
        """Draw the candidates of the steps up to the next draw.

        Args:
          step: the next one.
          params: the model's parameters after the steps before it.
          loader: whose plan says which questions these steps have.
        """
        places = np.unique(np.concatenate([loader.plan.rows(s) for s in range(step, self._end(step, loader))]))
        given = [self._examples.given[int(place)] for place in places]
        golds = [self._gold(example) for example in given]
        width = self._candidates + max(map(len, golds))
        found, _ = self._search(params, given, width, self._train)
        drawn = {}
        for place, gold, best in zip(places.tolist(), golds, found, strict=True):
            others = best[(best >= 0) & ~np.isin(best, gold)]
            # In the corpus's order: a place must say nothing about which is right.
            drawn[place] = np.sort(np.concatenate([gold, others])[: self._candidates])
        self._use(drawn)

    def batches(self, step: int, loader: BatchLoader) -> Iterator[Batch]:
        """Yield the batches of the steps from ``step`` up to the next draw, some made ahead of time."""
        return loader.ahead(step, self._end(step, loader))

    def _end(self, step: int, loader: BatchLoader) -> int:
        return min(loader.plan.steps, (step // self._every + 1) * self._every)

    def arrays(self) -> dict[str, Any]:
        """Return the draw that is being used, for a checkpoint: int32 "places" [P] and "documents" [P, D]."""
        places = np.array(list(self._drawn), np.int32)
        documents = np.array(list(self._drawn.values()), np.int32)
        mesh = self._bundle.mesh
        return {DRAW: {"places": put_whole(places, mesh), "documents": put_whole(documents, mesh)}}

    def restore(self, checkpoint: Path) -> None:
        """Use the draw of a checkpoint.

        Raises:
          ClaraError: the checkpoint is damaged, or holds none.
        """
        found = jax.device_get(load_arrays(checkpoint, only=(DRAW,))[DRAW])
        self._use(dict(zip(found["places"].tolist(), found["documents"].astype(np.int64), strict=True)))

    def _use(self, drawn: dict[int, np.ndarray]) -> None:
        examples = {}
        for place, numbers in drawn.items():
            example = self._examples.given[place]
            right = np.isin(numbers, self._gold(example))
            examples[place] = dataclasses.replace(
                example,
                documents=tuple(self._documents[number] for number in numbers),
                positives=tuple(np.flatnonzero(right).tolist()),
            )
        self._drawn, self._examples.drawn = drawn, examples

    def recall(self, params: Any) -> dict[str, float]:
        """Return "corpus_recall@1", "@3" and "@5" of the held-out questions over all documents; {} without any."""
        if not self._held_out:
            return {}
        found, _ = self._search(params, self._held_out, max(DEPTHS), len(self._documents))
        shares = {
            k: [np.isin(gold, best[:k]).mean() for gold, best in zip(self._golds, found, strict=True)] for k in DEPTHS
        }
        return {f"corpus_recall@{k}": float(np.mean(share)) for k, share in shares.items()}

    def _search(
        self, params: Any, questions: Sequence[Example], width: int, documents: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the best of the first so many documents for each question, and their scores.

        Returns:
          int64 [P, width], best first, those of equal scores in their order, -1 where there are no more; float32
          [P, width].
        """
        bundle = self._bundle
        model, mesh = bundle.model, bundle.mesh
        queries = [example.query for example in questions]
        assert all(query is not None for query in queries)  # of a stage that ranks
        size = divisible(self._stage.optimizer.microbatch, mesh)
        vectors = partial(score_vectors, memory_count=model.clara.memory_count)
        nothing = np.zeros((1, model.clara.memory_tokens, model.config.embed_dim), np.float32)
        encoded = np.zeros((len(queries), *vectors(nothing).shape[1:]), np.float32)
        texts = [query for query in queries if query is not None]
        for places, rows in encode_texts(model, params, "query_reasoner", texts, bundle.tokenizer, mesh, size):
            encoded[places] = vectors(np.asarray(rows, np.float32))
        encoded = trimmed(encoded)
        numbers = np.full((len(queries), 0), -1, np.int64)
        scores = np.zeros((len(queries), 0), np.float32)
        shards = batch_shards(mesh)
        rows = max(shards, BLOCK_BYTES // nothing.nbytes // shards * shards)
        rows = min(rows, -(-documents // shards) * shards)
        for start in range(0, documents, rows):
            part = self._documents[start : min(start + rows, documents)]
            block = np.zeros((rows, *vectors(nothing).shape[1:]), np.float32)
            block[: len(part)] = vectors(self._memories(part).astype(np.float32))
            found = _best_of_block(encoded, block, len(part), width, mesh)
            numbers = np.concatenate([numbers, np.where(np.isfinite(found[0]), found[1] + start, -1)], axis=1)
            scores = np.concatenate([scores, found[0]], axis=1)
            order = np.lexsort((numbers, -scores), axis=1)[:, :width]
            numbers, scores = (np.take_along_axis(x, order, axis=1) for x in (numbers, scores))
        return numbers, scores


def _best_of_block(
    queries: np.ndarray, block: np.ndarray, count: int, width: int, mesh: jax.sharding.Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and rows [Q, shards · width] of the best of a block's first ``count`` rows; else -inf."""
    placed = put_batch((block, norms_of(block), np.arange(len(block)) < count), mesh)
    parts = []
    for start in range(0, len(queries), QUESTIONS):
        some = np.zeros((QUESTIONS, *queries.shape[1:]), np.float32)
        some[: len(queries[start : start + QUESTIONS])] = queries[start : start + QUESTIONS]
        with jax.set_mesh(mesh):
            parts.append(jax.device_get(best_rows(some, *placed, min(width, len(block) // batch_shards(mesh)), mesh)))
    scores, places = (np.concatenate(part)[: len(queries)] for part in zip(*parts, strict=True))
    return scores, places.astype(np.int64)
