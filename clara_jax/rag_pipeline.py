"""Retrieval-augmented generation: a model and a document store answer questions, with their sources.

pipeline = RagPipeline.open("runs/first", "stores/first", create=True)
pipeline.add(["The Normans came from ..."])
answer = pipeline.answer("Where did the Normans come from?")
print(answer.text, [(hit.document, hit.score) for hit in answer.context.sources])
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax import distributed
from clara_jax.api import GREEDY, Clara
from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.data.corpus.files import InputFile
from clara_jax.deprecation import renamed_attributes, renamed_method
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.inference.decode import Sampling
from clara_jax.inference.engine import Engine
from clara_jax.inference.generator_server import GeneratorServer
from clara_jax.inference.remote_engine import RemoteEngine
from clara_jax.inference.requests import Request
from clara_jax.input_pipeline import prompts
from clara_jax.inputs import beyond_training, unread
from clara_jax.memory_count import existing
from clara_jax.model.sharding import make_mesh
from clara_jax.results import Hit, RagAnswer, RetrievedContext
from clara_jax.retrieval import ann
from clara_jax.retrieval import documents as chunking
from clara_jax.retrieval.chunk_reader import StoredDocument
from clara_jax.retrieval.compatibility import as_stored, suited
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.documents import ChunkedDocument
from clara_jax.retrieval.encodings import DEFAULT_ENCODING
from clara_jax.retrieval.exact_search import memory_budget
from clara_jax.retrieval.indexing import IndexReport, index, stage
from clara_jax.retrieval.read_report import ReadReport
from clara_jax.retrieval.search import Search
from clara_jax.retrieval.shards import Shard
from clara_jax.text.chunks import chunker_of
from clara_jax.text.documents import CorpusDocument

MOST_TURNS = 32  # earlier messages of a conversation that are considered
CANDIDATES = 20  # of a question by default, as in the paper
_WATCHED = 16  # documents by which `add` sees whether the model can read them


class RagPipeline:
    """A retrieval-augmented generation pipeline; open one with `RagPipeline.open`.

    Its methods are for one thread at a time.

    Attributes:
      clara: the model.
      store: the documents.
      retriever: the search of the store, for encoded questions.
      lock: threads that share the pipeline hold it while they call a method (`clara_jax.integrations`).
    """

    def __init__(self, clara: Clara, store: DocumentStore, budget: int | None = None):
        """Join a model and a store of its memories.

        Args:
          clara: the model.
          store: made with the same compressor.
          budget: bytes that the store's memories may take on the devices; default a half of an accelerator's memory, a
            quarter of a CPU's.

        Raises:
          ClaraError: the store was made with another compressor.
        """
        store.check(clara.bundle.compressor_fingerprint())
        self.clara, self.store, self.lock = clara, store, threading.RLock()
        self._chunker = chunker_of(clara.bundle.tokenizer)
        self.retriever = Search(store, clara.bundle.mesh, budget or memory_budget(clara.bundle.mesh))

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        store: str | os.PathLike,
        *,
        create: bool = False,
        encoding: str | None = None,
        base: str | None = None,
        precision: str | None = None,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int = 16,
        weights: str | None = None,
        rows: int | None = None,
        budget: int | None = None,
        rate: int | None = None,
        memory_count: str | None = None,
        generator: str | GeneratorServer | None = None,
    ) -> RagPipeline:
        """Open a model and a store of its memories.

        Args:
          checkpoint: see `Clara.load`.
          store: a directory, or the URL of a bucket.
          create: make the store where there is none.
          encoding: of memories in a new store, one of `clara_jax.retrieval.encodings.ENCODINGS`; default "int8", of a
            store that is there the one that it has.
          precision: see `Clara.load`; default as trained, but of a model that was trained in "float32" or "mixed", on a
            CPU, the one of the two in which the store's memories are, and for a new store the processor's faster one.
          base: see `Clara.load`.
          mesh: see `Clara.load`.
          batch_size: see `Clara.load`.
          weights: see `Clara.load`.
          rows: see `Clara.load`.
          budget: see `RagPipeline`.
          rate: see `Clara.load`; default the store's, for a new one as it was trained last.
          memory_count: see `Clara.load`; default likewise.
          generator: see `Clara.load`: documents are searched here, and the answers written there.

        Raises:
          ClaraError: see `Clara.load`, `DocumentStore.open`; a store of another compressor or encoding.
        """
        server, mesh = GeneratorServer.connect(generator), mesh or make_mesh()
        there = DocumentStore.open(store) if DocumentStore.exists(store) else None

        def load(precision: str) -> Bundle:
            return as_stored(opening.load(checkpoint, mesh, base, precision), there, rate, memory_count)

        bundle = load(precision) if precision else suited(load, opening.trained_precision(checkpoint), mesh, there)
        clara = Clara(bundle, batch_size, weights, rows, server)
        if not create:
            # Where there is no store, opening raises the error that names it.
            return cls(clara, DocumentStore.open(store) if there is None else there, budget)
        chosen = encoding or (DEFAULT_ENCODING if there is None else there.encoding.name)
        made = DocumentStore.open_or_make(store, bundle.compressor_fingerprint(), chosen, *bundle.memory_sizes)
        return cls(clara, made, budget)

    def __repr__(self) -> str:
        """Return the store with its size, and the model."""
        return f"RagPipeline({self.store.location}, {len(self.store):,} chunks, {self.clara!r})"

    # --- documents ---

    def read(
        self,
        inputs: Sequence[str],
        follow_links: bool = False,
        report: ReadReport | None = None,
        wanted: chunking.Wanted = chunking.every,
    ) -> Iterable[ChunkedDocument]:
        """Read files, folders and data sets, in chunks for this model; see `clara_jax.retrieval.documents.read`."""
        return chunking.read(inputs, self._chunker, follow_links, report, wanted)

    def read_files(
        self, files: Sequence[InputFile], report: ReadReport, longest: int | None = None
    ) -> Iterable[ChunkedDocument]:
        """Read files, in chunks for this model; see `clara_jax.retrieval.documents.read_files`.

        Unlike the other methods it may run in any thread, beside them.
        """
        return chunking.read_files(files, self._chunker, report, longest)

    def add(
        self,
        documents: Iterable[str | CorpusDocument | ChunkedDocument],
        done: Callable[[IndexReport], None] = lambda part: None,
    ) -> IndexReport:
        """Index documents: compress what is new or changed, and replace documents whose ids are in the store.

        Args:
          documents: texts, whole documents, or chunked ones (`read`). The id of a text is a hash of it.
          done: called with a report of each part after it has been committed.

        Raises:
          ClaraError: a document without text or with a bad id, or two with one id; the store refuses.
        """
        chunked = self._watched(self.chunk(documents))
        return index(self.store, self.clara.bundle, chunked, self.clara.batch_size, done)

    def stage(
        self,
        documents: Iterable[ChunkedDocument],
        shard: Shard,
        done: Callable[[IndexReport], None] = lambda part: None,
    ) -> IndexReport:
        """Compress a shard's documents beside the store (`indexing.stage`); a stopped publication is ended first."""
        from clara_jax.retrieval.publishing import go_on  # of pylance, which only workers of a shard need

        distributed.on_main(go_on, self.store)
        return stage(self.store, shard, self.clara.bundle, self._watched(documents), self.clara.batch_size, done)

    def _watched(self, documents: Iterable[ChunkedDocument]) -> Iterator[ChunkedDocument]:
        """Pass documents on, after a warning where the model cannot read the first of them."""
        first = list(itertools.islice(documents, _WATCHED))
        if distributed.is_main():
            self.clara.warn_of_unread(chunk.text for document in first for chunk in document.chunks)
        yield from itertools.chain(first, documents)

    def unread(self, documents: Iterable[ChunkedDocument]) -> str | None:
        """Return a warning where the model cannot read documents, else None; see `clara_jax.inputs.unread`."""
        return unread(self.clara.bundle, (chunk.text for document in documents for chunk in document.chunks))

    def chunk(self, documents: Iterable[str | CorpusDocument | ChunkedDocument]) -> Iterator[ChunkedDocument]:
        """Split documents into chunks for this model; of equal texts the first one counts.

        Raises:
          ClaraError: as `add`.
        """
        return chunking.chunk_all([documents] if isinstance(documents, str) else documents, self._chunker)

    cut = renamed_method("RagPipeline.cut", chunk)

    def finish(self, vectors: bool | None = None) -> None:
        """Bring the indexes up to date where they lag (`DocumentStore.tidy`), after documents have been added.

        Args:
          vectors: whether to recompute search vectors; None: where there are none yet and the store is large.
        """
        ann.finish(self.store, vectors)

    def delete(self, documents: Sequence[str]) -> int:
        """Delete documents, and return how many of them were in the store."""
        return self.store.delete(documents)

    def documents(self, offset: int = 0, limit: int = 100, containing: str = "") -> tuple[list[StoredDocument], int]:
        """Return documents in the order of their ids, and their number; see `ChunkReader.documents`."""
        return self.store.documents(offset, limit, containing)

    def stats(self) -> dict[str, Any]:
        """Return the store's statistics; see `DocumentStore.stats`."""
        return self.store.stats()

    # --- questions ---

    @property
    def usual_k(self) -> int:
        """The default number of chunks to answer from; see `Clara.usual_k`."""
        return self.clara.usual_k

    @property
    def defaults(self) -> dict[str, Any]:
        """What questions are answered with where nothing else is said: "k" and "how"."""
        return {"k": self.usual_k, "how": self.usual_how}

    @property
    def usual_how(self) -> str:
        """The default search: "memory" where the model was trained to rank, else "words"."""
        return "memory" if self.clara.bundle.ranks else "words"

    def search(
        self, question: str, k: int | None = None, how: str | None = None, where: str | None = None
    ) -> list[Hit]:
        """Return the k best chunks for a question; see `Search`.

        Args:
          question: the query.
          k: the number of chunks; default `usual_k`.
          how: see `Search`; default `usual_how`.
          where: see `Search`.

        Raises:
          ClaraError: no question, an unknown search, a condition that cannot be parsed.
        """
        k = self.usual_k if k is None else k
        return self._found(question, k, how or self.usual_how, where)[0]

    def ask(
        self,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        k: int | None = None,
        how: str | None = None,
        where: str | None = None,
        expand: int = 0,
        abstain_below: float | None = None,
        candidates: int = CANDIDATES,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> RetrievedContext:
        """Retrieve the context of a question, and make the engine's request.

        Args:
          question: the query.
          history: the conversation before, (role, text) each, with the roles "user" and "assistant": the user's
            messages are part of the search's query, and the generator reads as many of the last messages as fit.
          k: the number of chunks that the generator reads; default `usual_k`; more than the model was trained with
            warns, and is a warning of the context.
          how: see `Search`; default `usual_how`.
          where: see `Search`.
          expand: the number of best chunks that are also given as text, for names and numbers that a memory has lost.
          abstain_below: a score; the model abstains where the best chunk's is below it.
          candidates: the number of hits that are returned, k or more.
          sampling: see `Request`.
          seed: see `Request`.

        Raises:
          ClaraError: see `search`; a prompt that is too long for the model.
        """
        k, how = self.usual_k if k is None else k, how or self.usual_how
        if abstain_below is not None and how != "memory":
            raise ClaraError('abstain_below: is a score of memories, and needs how="memory"')
        if k < 1 or expand < 0:
            raise ClaraError(f"k is {k}, expand is {expand}; they must be at least 1 and 0")
        turns = list(history)[-MOST_TURNS:]
        searched = self._searched(question, turns)
        with self.store.reading():
            hits, milliseconds = self._found(searched, max(k, candidates), how, where)
            selected = hits[:k]
            memories = self.store.memories([hit.id for hit in selected])
        ratio = sum(hit.tokens for hit in selected) / max(1, existing(memories, self.store.encoding.memory_count).sum())
        warned = tuple(filter(None, [beyond_training(self.clara.bundle, k)]))
        for message in warned:
            warnings.warn(message, ClaraWarning, stacklevel=2)
        known = question, tuple(hits), len(selected), None, ratio, milliseconds, searched
        found = RetrievedContext(*known, warnings=warned)
        best = hits[0].score if hits else None
        if best is None or (abstain_below is not None and best < abstain_below):
            return found
        beside = [hit.text for hit in selected[:expand]]
        while True:
            prompt = prompts.question(question, len(selected), beside=beside, earlier=turns)
            try:
                request = self.clara.request(prompt, memories, sampling, seed)
            except ClaraError:
                if not turns:
                    raise
                turns = turns[1:]  # a long conversation loses its first messages
            else:
                return dataclasses.replace(found, request=request, turns=len(turns))

    def _searched(self, question: str, turns: Sequence[tuple[str, str]]) -> str:
        """Return the question after as many of the user's earlier messages as fit into the query reasoner's input."""
        parts = [question]
        for role, text in reversed(turns):
            if role == "user" and text.strip():
                if self.clara.bundle.tokenizer.is_cut("\n".join([text, *parts])):
                    break
                parts.insert(0, text)
        return "\n".join(parts)

    def answer(self, question: str, **how: Any) -> RagAnswer:
        """Answer a question from the store; ``how`` are the options of `ask`."""
        return self.answers([self.ask(question, **how)])[0]

    def answers(self, asked: Sequence[RetrievedContext]) -> list[RagAnswer]:
        """Answer questions whose contexts have been retrieved (`ask`), in batches."""
        results = iter(self.engine.generate([context.request for context in asked if context.request is not None]))
        answers = []
        for context in asked:
            if context.request is None:
                answers.append(RagAnswer(None, context, (), 0.0, context.milliseconds))
                continue
            result = next(results)
            times = context.milliseconds | {"answer": result.milliseconds["total"]}
            answers.append(RagAnswer(self.text(result.tokens), context, result.tokens, result.log_probability, times))
        return answers

    @property
    def engine(self) -> Engine | RemoteEngine:
        """The engine that decodes answers; a server calls its `Engine.step` itself."""
        return self.clara.engine

    def text(self, tokens: Sequence[int]) -> str:
        """Decode token ids."""
        return self.clara.bundle.tokenizer.decode(tokens)

    def rank(self, question: str, texts: Sequence[str]) -> list[float]:
        """Return the score of each text for a question; the texts are compressed for this call and not kept.

        Raises:
          ClaraError: no question; an empty text, or none.
        """
        if not question.strip():
            raise ClaraError("the question is empty")
        ranking = self.clara.rank([question], self.clara.compress(texts, long="cut"), k=len(texts))
        scores = np.empty(len(texts))
        scores[ranking.indices[0]] = ranking.scores[0]
        return scores.tolist()

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """Return one vector of each text, float32 [n, E] of length 1: the mean of its memory vectors.

        A long text is read in chunks, all of whose memory vectors are averaged.

        Args:
          texts: documents, or questions.
          query: whether the query reasoner reads them, as questions; else the compressor does, as documents.

        Raises:
          ClaraError: an empty text.
        """
        if query:
            memories = self.clara.encode_questions(texts)
            rows = np.arange(len(memories))
        else:
            compressed = self.clara.compress(texts)
            memories, rows = compressed.array, np.array(compressed.documents, int)
        sums = np.zeros((len(texts), memories.shape[2]), np.float32)
        np.add.at(sums, rows, memories.astype(np.float32).mean(axis=1))
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Return the number of tokens of texts together."""
        return sum(self._chunker.count(texts))

    def warm_up(self, max_new_tokens: int = 64) -> None:
        """Compile the programs of first questions: short and longer ones over `usual_k` chunks, alone and together."""
        k = self.usual_k
        for question in ("What is it?", f"What is it, {'and what else is it, ' * 4}?"):
            prompt = prompts.question(question, k)

            def ask(number: int, prompt: prompts.Prompt = prompt) -> Request:
                memories = np.full((k, *self.store.encoding.shape), 1 + number, self.clara.bundle.model.dtype)
                return self.clara.request(prompt, memories, Sampling(max_new_tokens))

            self.engine.warm_up(ask)
        if len(self.store):
            self.search("What is it?")

    def _found(self, question: str, k: int, how: str, where: str | None) -> tuple[list[Hit], dict[str, float]]:
        if not question.strip():
            raise ClaraError("the question is empty")
        if k < 1:
            raise ClaraError(f"k is {k}; it must be at least 1")
        began = time.perf_counter()
        query = None if how == "words" else self.clara.encode_questions([question])[0]
        read = time.perf_counter()
        with self.store.reading():
            found = self.retriever(question, query, k, how, where)
            chunks = self.store.chunks([best.id for best in found])
        hits = [
            Hit(**dataclasses.asdict(chunk), score=best.score, rank=rank)
            for rank, (best, chunk) in enumerate(zip(found, chunks, strict=True), 1)
        ]
        return hits, {"read": 1000 * (read - began), "search": 1000 * (time.perf_counter() - read)}


__getattr__ = renamed_attributes(
    __name__, {"Asked": "RetrievedContext", "Library": "RagPipeline", "LibraryAnswer": "RagAnswer"}
)
