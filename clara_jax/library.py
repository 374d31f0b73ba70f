"""A model and a store: documents go in once, questions come back answered, with their sources.

library = Library.open("runs/first", "stores/first", create=True)
library.add([Document("normans", "", "The Normans came from ...", "notes.txt")])
answer = library.answer("Where did the Normans come from?")
print(answer.text, [(hit.document, hit.score) for hit in answer.asked.sources])
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax import bundle as bundles
from clara_jax.api import GREEDY, Clara
from clara_jax.bundle import Bundle
from clara_jax.data import prompts
from clara_jax.data.corpus.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.inference.engine import Engine, Request
from clara_jax.model.precision import AUTO, resolve
from clara_jax.model.sharding import make_mesh, platform
from clara_jax.retrieval import documents as cutting
from clara_jax.retrieval import first_pass
from clara_jax.retrieval.document_store import DocumentStore, StoredDocument
from clara_jax.retrieval.documents import CutDocument
from clara_jax.retrieval.encodings import closest_float
from clara_jax.retrieval.filling import Filled, fill
from clara_jax.retrieval.search import Search

MOST_TURNS = 32  # earlier messages of a conversation that are looked at
CANDIDATES = 20  # that are looked at for a question, as in the paper
FEWEST_FOR_VECTORS = 50_000  # chunks from which on `finish` makes search vectors
_ALIKE = {"float32", "mixed"}  # precisions that stand for one another: which is the faster one is the processor's
_HOST_SHARE, _DEVICE_SHARE = 1 / 4, 1 / 2  # of memory that the store's memories may take


@dataclasses.dataclass(frozen=True)
class Hit:
    """A chunk that was found. ``rank`` counts from 1; see `StoredChunk` and `Found` for the rest."""

    id: str
    document: str
    title: str
    text: str
    source: str
    start: int
    end: int
    tokens: int
    score: float
    rank: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, and what it is answered from.

    Attributes:
      hits: the candidates, best first; the first ``selected`` are read by the generator.
      request: what the engine answers; None where nothing was found or the best score is below the threshold.
      compress_ratio: tokens of the selected texts over the memory tokens read in their place.
      milliseconds: that reading the question ("read") and searching ("search") took.
      searched: what was searched for: the question, behind earlier messages of the user where there are some.
      turns: earlier messages that are read by the generator.
    """

    question: str
    hits: tuple[Hit, ...]
    selected: int
    request: Request | None
    compress_ratio: float
    milliseconds: dict[str, float]
    searched: str
    turns: int = 0

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The hits that are read."""
        return self.hits[: self.selected]

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt, memories included; 0 without one."""
        return 0 if self.request is None else len(self.request.ids)


@dataclasses.dataclass(frozen=True)
class LibraryAnswer:
    """``text`` is None where the model abstains; ``milliseconds`` also has "answer"."""

    text: str | None
    asked: Asked
    tokens: tuple[int, ...]
    log_probability: float
    milliseconds: dict[str, float]


class Library:
    """Open one with `Library.open`. Its methods are for one thread at a time.

    Attributes:
      clara, store: what it is made of.
    """

    def __init__(self, clara: Clara, store: DocumentStore, budget: int | None = None):
        """
        Args:
          budget: bytes that the store's memories may take on the devices; default a half of an accelerator's memory, a
            quarter of a CPU's.

        Raises:
          ClaraError: the store is another compressor's.
        """
        store.check(clara.bundle.compressor_fingerprint())
        self.clara, self.store = clara, store
        self._chunker = cutting.chunker_of(clara.bundle.tokenizer)
        self._search = Search(store, clara.bundle.mesh, budget or _budget(clara.bundle.mesh))

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
    ) -> Library:
        """Opens a model and a store of its memories.

        Args:
          create: make the store where there is none.
          encoding: of memories in a new store, one of `clara_jax.retrieval.encodings.ENCODINGS`; default the float of
            two bytes that is nearest to the model's precision.
          precision: see `Clara.load`; default as trained, but of a model that was trained in "float32" or "mixed", on a
            CPU, the one of the two in which the store's memories are, and for a new store the processor's faster one.
          base, mesh, batch_size, weights, rows: see `Clara.load`.
          rate: see `Clara.load`; default the store's, for a new one as it was trained last.

        Raises:
          ClaraError: see `Clara.load`, `DocumentStore.open`; a store of another compressor or encoding.
        """
        mesh = mesh or make_mesh()
        there = DocumentStore.open(store) if DocumentStore.exists(store) else None

        def load(precision: str | None) -> Bundle:
            bundle = bundles.load(checkpoint, mesh, base, precision)
            return bundle.at_rate(rate or _rate_of(there, bundle))

        bundle = load(precision) if precision else _suited(load, there)
        clara = Clara(bundle, batch_size, weights, rows)
        if not create:
            # Where there is none, opening says what is missing.
            return cls(clara, DocumentStore.open(store) if there is None else there, budget)
        chosen = encoding or closest_float(bundle.model.precision)
        sizes = bundle.model.clara.memory_tokens, bundle.model.config.width
        if encoding is None and there is not None:
            chosen = there.encoding.name
        made = DocumentStore.open_or_make(store, bundle.compressor_fingerprint(), chosen, *sizes)
        return cls(clara, made, budget)

    # --- documents ---

    def read(self, inputs: Sequence[str], follow_links: bool = False) -> Iterable[CutDocument]:
        """The documents of files, folders and data sets, cut for this model: `clara_jax.retrieval.documents.read`."""
        return cutting.read(inputs, self._chunker, follow_links)

    def add(
        self, documents: Iterable[Document | CutDocument], done: Callable[[Filled], None] = lambda part: None
    ) -> Filled:
        """Puts documents into the store; one whose id is there is replaced. What is unchanged is not compressed again.

        Args:
          documents: whole ones, or cut ones (`read`).
          done: is told of every part that is safe in the store.

        Raises:
          ClaraError: a document without text or with a bad id, or two with one id; the store refuses.
        """
        return fill(self.store, self.clara.bundle, self.cut(documents), self.clara.batch_size, done)

    def cut(self, documents: Iterable[Document | CutDocument]) -> Iterable[CutDocument]:
        """Documents cut for this model.

        Raises:
          ClaraError: as `add`.
        """
        seen: set[str] = set()
        for document in documents:
            if isinstance(document, CutDocument):  # `read` has looked at these
                yield document
                continue
            own = cutting.cut(document, self._chunker)
            if not own.chunks:
                raise ClaraError(f"document {own.id!r}: holds no text")
            if own.id in seen:
                raise ClaraError(f"document {own.id!r} twice; each needs an id of its own")
            seen.add(own.id)
            yield own

    def finish(self, vectors: bool | None = None) -> None:
        """Brings the indexes up to date where it is time (`DocumentStore.tidy`), after documents have come.

        Args:
          vectors: whether to make search vectors anew; None: where there are none yet and the store is large.
        """
        self.store.index_words()
        if vectors or (vectors is None and len(self.store) >= FEWEST_FOR_VECTORS and self.store.projection() is None):
            first_pass.build(self.store)
        elif self.store.projection() is not None:
            self.store.index_vectors()

    def delete(self, documents: Sequence[str]) -> int:
        """Takes documents out of the store; how many of them were there."""
        return self.store.delete(documents)

    def documents(self, offset: int = 0, limit: int = 100) -> tuple[list[StoredDocument], int]:
        """Documents in the order of their ids, and how many there are in all."""
        return self.store.documents(offset, limit)

    def stats(self) -> dict[str, Any]:
        """See `DocumentStore.stats`."""
        return self.store.stats()

    # --- questions ---

    @property
    def usual_k(self) -> int:
        """Chunks to answer from: see `Clara.usual_k`."""
        return self.clara.usual_k

    @property
    def usual_how(self) -> str:
        """What should find chunks: "memory" where the model learned to rank, else "words"."""
        return "memory" if self.clara.bundle.ranks else "words"

    def search(self, question: str, k: int = 5, how: str | None = None, where: str | None = None) -> list[Hit]:
        """The k best chunks for a question; see `Search`. What finds them is `usual_how` where ``how`` is None.

        Raises:
          ClaraError: no question, an unknown way, a condition that cannot be understood.
        """
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
    ) -> Asked:
        """Finds what a question is to be answered from.

        Args:
          history: what was said before, (role, text) each, with the roles "user" and "assistant": the user's words are
            searched with, too, and the generator reads all that fits, the last ones first.
          k: chunks that the generator reads; default `usual_k`.
          how, where: see `Search`; ``how`` is `usual_how` where it is not given.
          expand: so many of the best chunks are also given as text, for names and numbers that a memory has lost.
          abstain_below: a cosine; where the best chunk's is below it nothing is answered.
          candidates: hits that are returned, k or more.
          sampling, seed: see `Request`.

        Raises:
          ClaraError: see `search`; a prompt that is too long for the model.
        """
        k, how = self.usual_k if k is None else k, how or self.usual_how
        if abstain_below is not None and how != "memory":
            raise ClaraError('abstain_below: is a cosine, and needs how="memory"')
        if k < 1 or expand < 0:
            raise ClaraError(f"k is {k}, expand is {expand}; they must be at least 1 and 0")
        turns = list(history)[-MOST_TURNS:]
        searched = self._searched(question, turns)
        with self.store.reading():
            hits, milliseconds = self._found(searched, max(k, candidates), how, where)
            selected = hits[:k]
            memories = self.store.memories([hit.id for hit in selected])
        read = max(1, len(selected)) * self.store.encoding.shape[0]
        ratio = sum(hit.tokens for hit in selected) / read
        found = Asked(question, tuple(hits), len(selected), None, ratio, milliseconds, searched)
        if not hits or (abstain_below is not None and hits[0].score < abstain_below):
            return found
        beside = [hit.text for hit in selected[:expand]]
        while True:
            prompt = prompts.question(question, len(selected), beside=beside, earlier=turns)
            try:
                request = self.clara.request(prompt, memories, sampling, seed)
            except ClaraError:
                if not turns:
                    raise
                turns = turns[1:]  # what was said first is what a long conversation loses
            else:
                return dataclasses.replace(found, request=request, turns=len(turns))

    def _searched(self, question: str, turns: Sequence[tuple[str, str]]) -> str:
        """The question behind as many of the user's earlier messages as the query reasoner reads with it."""
        parts = [question]
        for role, text in reversed(turns):
            if role == "user" and text.strip():
                if self.clara.bundle.tokenizer.is_cut("\n".join([text, *parts])):
                    break
                parts.insert(0, text)
        return "\n".join(parts)

    def answer(self, question: str, **how: Any) -> LibraryAnswer:
        """Answers a question from the store; ``how`` are the options of `ask`."""
        return self.answers([self.ask(question, **how)])[0]

    def answers(self, asked: Sequence[Asked]) -> list[LibraryAnswer]:
        """Answers questions, many at one time."""
        results = iter(self.engine.generate([own.request for own in asked if own.request is not None]))
        answers = []
        for own in asked:
            if own.request is None:
                answers.append(LibraryAnswer(None, own, (), 0.0, own.milliseconds))
                continue
            result = next(results)
            times = own.milliseconds | {"answer": result.milliseconds["total"]}
            answers.append(LibraryAnswer(self.text(result.tokens), own, result.tokens, result.log_probability, times))
        return answers

    @property
    def engine(self) -> Engine:
        """What writes the answers; a server steps it itself."""
        return self.clara.engine

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say."""
        return self.clara.bundle.tokenizer.decode(tokens)

    def rank(self, question: str, texts: Sequence[str]) -> list[float]:
        """The cosine of each text, compressed now and not kept, with a question.

        Raises:
          ClaraError: no question; an empty text, or none.
        """
        if not question.strip():
            raise ClaraError("the question is empty")
        ranking = self.clara.rank([question], self.clara.compress(texts, long="cut"), k=len(texts))
        scores = np.empty(len(texts))
        scores[ranking.indices[0]] = ranking.scores[0]
        return scores.tolist()

    def warm_up(self, max_new_tokens: int = 64) -> None:
        """Compiles what first questions need: short ones and longer ones, alone, together, and one after another on the
        same documents or on others."""
        for question in ("What is it?", f"What is it, {'and what else is it, ' * 4}?"):
            prompt = prompts.question(question, 5)

            def ask(number: int, prompt: prompts.Prompt = prompt) -> Request:
                memories = np.full((5, *self.store.encoding.shape), number, self.clara.bundle.model.dtype)
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
        query = None if how == "words" else self.clara.read([question])[0]
        read = time.perf_counter()
        with self.store.reading():
            found = self._search(question, query, k, how, where)
            chunks = self.store.chunks([own.id for own in found])
        hits = [
            Hit(**dataclasses.asdict(chunk), score=own.score, rank=rank)
            for rank, (own, chunk) in enumerate(zip(found, chunks, strict=True), 1)
        ]
        return hits, {"read": 1000 * (read - began), "search": 1000 * (time.perf_counter() - read)}


def _suited(load: Callable[[str | None], Bundle], store: DocumentStore | None) -> Bundle:
    """Open the model in the precision of a store's memories, or for a new store in that for the devices, where it may
    be either of `_ALIKE`; else as it was trained.

    Args:
      load: opens the model in a precision; None: as it was trained.
    """
    bundle = load(None)
    trained, usual = bundle.model.precision, resolve(AUTO, platform(bundle.mesh))
    if not {trained, usual} <= _ALIKE:
        return bundle
    wanted = None if store is None else store.fingerprint
    for name in sorted(_ALIKE, key=lambda name: name != usual):
        found = bundle if name == trained else load(name)
        if wanted in (None, found.compressor_fingerprint()):
            return found
    return bundle


def _rate_of(store: DocumentStore | None, bundle: Bundle) -> int | None:
    """The compress rate of a store's memories; None where there is no store, or the model has but one rate."""
    clara = bundle.model.clara
    if clara.different_mem_tokens or store is None:
        return None
    count = store.encoding.shape[0]
    return None if clara.doc_max_length % count else clara.doc_max_length // count


def _budget(mesh: jax.sharding.Mesh) -> int:
    stats = [device.memory_stats() for device in mesh.local_devices]
    if all(own and "bytes_limit" in own for own in stats):
        return int(_DEVICE_SHARE * sum(own["bytes_limit"] for own in stats))
    return int(_HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
