"""The Python API: compress documents once, rank them for questions, answer with sources.

from clara_jax import Clara

clara = Clara.load("runs/first")
memories = clara.compress(["The Normans came from ...", "Oxygen is ..."])
for answer in clara.answer(["Where did the Normans come from?"], memories=memories):
    print(answer.text, [(source.id, source.score) for source in answer.sources])
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import jax
import numpy as np

from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.deprecation import renamed_method
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.inference.decode import Sampling
from clara_jax.inference.encode import encode_texts
from clara_jax.inference.engine import Engine
from clara_jax.inference.generator_server import GeneratorServer
from clara_jax.inference.ranking import rank_memories
from clara_jax.inference.remote_engine import RemoteEngine
from clara_jax.inference.requests import Request, Result
from clara_jax.inference.weights import check as check_weights
from clara_jax.input_pipeline import prompts
from clara_jax.inputs import (
    LongDocuments,
    beyond_training,
    check_ids,
    check_positive,
    check_texts,
    chunk_ids,
    split_texts,
    unread,
)
from clara_jax.memory_count import existing
from clara_jax.method.stages import STAGES, inherit
from clara_jax.model.sharding import divisible, make_mesh
from clara_jax.results import Answer, AnswerStream, Memories, Ranking, candidates_of
from clara_jax.text.chunks import chunker_of

GREEDY = Sampling()


class Clara:
    """A CLaRa model. Open one with `Clara.load`."""

    def __init__(
        self,
        bundle: Bundle,
        batch_size: int = 16,
        weights: str | None = None,
        rows: int | None = None,
        generator: GeneratorServer | None = None,
    ):
        """Make the model that a bundle describes.

        Args:
          bundle: see `clara_jax.checkpoints.bundle`.
          batch_size: texts, questions or prompts per device call, rounded up to a multiple that the mesh divides.
          weights: the form of the weights for decoding, one of `clara_jax.inference.weights.WEIGHTS`; default the
            fastest one that fits into memory.
          rows: answers that are decoded together, rounded up likewise; default ``batch_size``. A model that is made for
            one row decodes a single answer faster.
          generator: a server that writes the answers (`clara_jax.inference.generator_server`); default the model here.

        Raises:
          ClaraError: an unknown name; both weights and a generator; see `RemoteEngine.open`.
        """
        rows = batch_size if rows is None else rows
        check_positive("batch_size", batch_size)
        check_positive("rows", rows)
        if weights is not None:
            check_weights(weights, generator is None)
        self.bundle, self._weights = bundle, weights
        self.batch_size, self._rows = divisible(batch_size, bundle.mesh), divisible(rows, bundle.mesh)
        # A checkpoint from before the end-to-end stage has no trained query reasoner: that stage would start it as a
        # copy of the compressor.
        self._params = inherit(STAGES["end_to_end"], bundle.params, bundle.trained)
        self._fingerprint = bundle.fingerprint()
        self._warned = False  # of documents that it cannot read
        if generator is not None:  # now, so that a server that cannot answer is known before any work is done
            self.engine = RemoteEngine.open(bundle, self._params, generator, self._rows)

    def __repr__(self) -> str:
        """Return the base, the sizes, the precision and the stages of the training."""
        bundle, clara = self.bundle, self.bundle.model.clara
        stages = " → ".join(str(entry.get("stage", "?")) for entry in bundle.history) or "untrained"
        return (
            f"Clara({bundle.base['name']}, {clara.memory_tokens} vectors × {bundle.model.config.embed_dim} for up to "
            f"{clara.doc_max_length} tokens, {bundle.model.precision}, {stages}, k {self.usual_k})"
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        base: str | None = None,
        precision: str | None = None,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int = 16,
        weights: str | None = None,
        rows: int | None = None,
        rate: int | None = None,
        memory_count: str | None = None,
        generator: str | GeneratorServer | None = None,
    ) -> Clara:
        """Open a trained model.

        Args:
          path: a training run, one of its checkpoints, a checkpoint in the released format, a compact copy, or the name
            of the model inside the package ("smollm2-clara").
          base: where the base model lies, if not where the checkpoint says.
          precision: one of `clara_jax.model.precision.CHOICES`; default as trained.
          mesh: default all devices along "data".
          batch_size: see `Clara`.
          weights: see `Clara`.
          rows: see `Clara`.
          rate: compress rate, of a model with one memory token for all places; default as it was trained last.
          memory_count: "fixed" or "proportional", see `clara_jax.method.clara.ClaraConfig`; default as it was trained.
          generator: see `Clara`; or the server's URL.

        Raises:
          ClaraError: see `Clara`, `GeneratorServer`, `clara_jax.checkpoints.opening.load`, `Bundle.at_rate`.
        """
        server = GeneratorServer.connect(generator)
        bundle = opening.load(path, mesh or make_mesh(), base, precision).at_rate(rate, memory_count)
        return cls(bundle, batch_size, weights, rows, server)

    @property
    def usual_k(self) -> int:
        """The default k of `answer`: the number of documents of the last training stage, 5 where none is recorded."""
        return self.bundle.top_k or 5

    @property
    def fingerprint(self) -> str:
        """The hash of the whole model; see `Bundle.fingerprint`."""
        return self._fingerprint

    def compress(
        self, documents: Sequence[str], ids: Sequence[str] | None = None, long: LongDocuments = "chunk"
    ) -> Memories:
        """Compress documents, each into M memory vectors, or fewer of a shorter one where these are proportional.

        Args:
          documents: texts.
          ids: the documents' ids; default "0", "1", ...
          long: documents beyond ``doc_max_length`` tokens: "chunk" makes several memories of one, "cut" keeps its
            beginning and warns.

        Raises:
          ClaraError: an empty document; ids that are not one per document or not unique.
        """
        given = check_texts(documents, "documents")
        pieces = split_texts(given, check_ids(ids, len(given)), self.bundle.tokenizer, long)
        self.warn_of_unread(pieces.texts)
        array = self._encode("compressor", self.bundle.tokenizer.encode_documents(pieces.texts))
        return Memories(pieces.ids, array, pieces.texts, self._fingerprint, pieces.documents)

    def warn_of_unread(self, texts: Iterable[str]) -> None:
        """Warn, once in this model's life, where it cannot read documents; see `clara_jax.inputs.unread`."""
        if not self._warned and (message := unread(self.bundle, texts)):
            self._warned = True
            warnings.warn(message, ClaraWarning, stacklevel=3)

    def rank(
        self,
        questions: Sequence[str],
        memories: Memories | Sequence[Memories],
        k: int | Literal["trained"] = "trained",
    ) -> Ranking:
        """Rank memories by their score with the query reasoner's encoding of each question.

        Args:
          questions: texts.
          memories: one collection for all questions, or one for each question.
          k: the number of memories to return, fewer where a question has fewer; "trained" is `usual_k`.
        """
        k = self.usual_k if k == "trained" else k
        questions = check_texts(questions, "questions")
        candidates = candidates_of(memories, len(questions), self._fingerprint)
        check_positive("k", k)
        return self._rank(questions, candidates, k)

    def encode_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Return the query reasoner's encodings of questions, [q, M, E].

        A document's score is `clara_jax.method.reranker.relevance_scores` of an encoding and its memory.
        """
        if not self.bundle.ranks:
            message = "this checkpoint has no trained query reasoner; questions are read as documents are"
            warnings.warn(message, ClaraWarning, stacklevel=3)
        return self._encode(
            "query_reasoner", self.bundle.tokenizer.encode_documents(check_texts(questions, "questions"))
        )

    read = renamed_method("Clara.read", encode_questions)

    @overload
    def answer(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[str]] | None = None,
        *,
        memories: Memories | Sequence[Memories] | None = None,
        k: int | Literal["trained"] | None = "trained",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        long: LongDocuments = "chunk",
        stream: Literal[False] = False,
    ) -> list[Answer]: ...

    @overload
    def answer(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[str]] | None = None,
        *,
        memories: Memories | Sequence[Memories] | None = None,
        k: int | Literal["trained"] | None = "trained",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        long: LongDocuments = "chunk",
        stream: Literal[True],
    ) -> AnswerStream: ...

    def answer(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[str]] | None = None,
        *,
        memories: Memories | Sequence[Memories] | None = None,
        k: int | Literal["trained"] | None = "trained",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        long: LongDocuments = "chunk",
        stream: bool = False,
    ) -> list[Answer] | AnswerStream:
        """Answer questions from their documents, or from memories made before.

        Args:
          questions: texts.
          documents: a list for each question, of any lengths; each text is compressed once, however often it occurs.
          memories: instead of documents: one collection for all questions, or one for each.
          k: the number of best candidates that the generator reads; "trained" is `usual_k`, and more than that warns;
            None gives it all candidates in their order, without ranking.
          max_new_tokens: see `Sampling`.
          temperature: see `Sampling`.
          top_p: see `Sampling`.
          seed: of the first question; question i is sampled with ``seed + i``.
          long: see `compress`.
          stream: return an iterator of the pieces of the answer's text, of one question alone.

        Raises:
          ClaraError: neither or both of documents and memories; a question without candidates; memories of another
          model; a stream of several answers.
        """
        questions = check_texts(questions, "questions")
        if (documents is None) == (memories is None):
            raise ClaraError("answer: give either documents (a list for each question) or memories")
        if stream and len(questions) != 1:
            raise ClaraError(f"stream: one answer can be streamed at a time, not {len(questions)}; ask one by one")
        k = self.usual_k if k == "trained" else k
        if k is not None:
            check_positive("k", k)
            if message := beyond_training(self.bundle, k):
                warnings.warn(message, ClaraWarning, stacklevel=2)
        if documents is not None:
            candidates = self._compress_lists(documents, len(questions), long)
        else:
            assert memories is not None  # one of the two is given, as checked above
            candidates = candidates_of(memories, len(questions), self._fingerprint)
        for question, found in zip(questions, candidates, strict=True):
            if not len(found):
                raise ClaraError(f"answer: the question {question!r} has no documents")
        selected, scores = self._select(questions, candidates, k)
        asked = [prompts.question(question, len(read)) for question, read in zip(questions, selected, strict=True)]
        sampling = Sampling(max_new_tokens, temperature, top_p)
        requests = self._requests(asked, [read.array for read in selected], sampling, seed)
        count = chunker_of(self.bundle.tokenizer).count
        sources = [read.hits(row, count(read.texts)) for read, row in zip(selected, scores, strict=True)]
        decode = self.bundle.tokenizer.decode
        if stream:
            return AnswerStream(self.engine, requests[0], decode, sources[0])
        return [
            Answer(decode(result.tokens), hits, result.tokens, result.log_probability)
            for result, hits in zip(self.engine.generate(requests), sources, strict=True)
        ]

    def paraphrase(
        self,
        documents: Sequence[str],
        instruction: str | None = None,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        long: LongDocuments = "chunk",
    ) -> list[str]:
        """Paraphrase each document from its memory alone, which shows what the memory holds.

        Args:
          documents: texts.
          instruction: contains "{docs}" where the memory stands; default the first of the training instructions.
          max_new_tokens: see `Sampling`.
          temperature: see `Sampling`.
          top_p: see `Sampling`.
          seed: of the first document; document i is sampled with ``seed + i``.
          long: see `compress`.
        """
        documents = check_texts(documents, "documents")
        instruction = prompts.PARAPHRASE_INSTRUCTIONS[0] if instruction is None else instruction
        if instruction.count("{docs}") != 1:
            raise ClaraError('instruction: must contain "{docs}" once, where the memory stands')
        compressed = self._compress_lists([[document] for document in documents], len(documents), long)
        asked = [prompts.paraphrase(None, instruction, len(memories)) for memories in compressed]
        arrays = [memories.array for memories in compressed]
        generated = self.generate(asked, arrays, Sampling(max_new_tokens, temperature, top_p), seed)
        return [self.bundle.tokenizer.decode(result.tokens) for result in generated]

    def _compress_lists(self, documents: Sequence[Sequence[str]], count: int, long: LongDocuments) -> list[Memories]:
        """Return the memories of each question's documents; equal texts are compressed once."""
        lists = not isinstance(documents, str | Mapping) and isinstance(documents, Collection)
        if not lists or len(documents) != count or any(isinstance(texts, str) for texts in documents):
            raise ClaraError(f"documents: a list of texts for each of the {count} questions is needed")
        lists = [check_texts(texts, f"documents[{i}]") for i, texts in enumerate(documents)]
        unique = list(dict.fromkeys(text for texts in lists for text in texts))
        together = self.compress(unique, long=long)
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(together.documents):
            rows.setdefault(unique[int(name)], []).append(row)
        results = []
        for texts in lists:
            taken = together.take([row for text in texts for row in rows[text]])
            names = [name for i, text in enumerate(texts) for name in chunk_ids(str(i), len(rows[text]))]
            numbers = [str(i) for i, text in enumerate(texts) for _ in rows[text]]
            results.append(dataclasses.replace(taken, ids=tuple(names), documents=tuple(numbers)))
        return results

    def _select(
        self, questions: list[str], candidates: list[Memories], k: int | None
    ) -> tuple[list[Memories], list[list[float | None]]]:
        """Return the k best memories of each question and their scores; all in their order where k is None."""
        if k is None:
            return candidates, [[None] * len(found) for found in candidates]
        ranking = self._rank(questions, candidates, k)
        chosen = [[int(i) for i in row if i >= 0] for row in ranking.indices]
        scores: list[list[float | None]] = [
            [float(s) for s in row[: len(c)]] for row, c in zip(ranking.scores, chosen, strict=True)
        ]
        return [found.take(rows) for found, rows in zip(candidates, chosen, strict=True)], scores

    def _rank(self, questions: list[str], candidates: list[Memories], k: int) -> Ranking:
        queries = self.encode_questions(questions)
        arrays = [memories.array for memories in candidates]
        count = self.bundle.model.clara.memory_count
        return Ranking(*rank_memories(queries, arrays, k, self.batch_size, self.bundle.mesh, count))

    def _encode(self, role: str, sequences: list[list[int]]) -> np.ndarray:
        """Return the memories [n, M, E] of token sequences under one role's adapter."""
        model, bundle = self.bundle.model, self.bundle
        memory = np.zeros((len(sequences), model.clara.memory_tokens, model.config.embed_dim), model.dtype)
        parts = encode_texts(model, self._params, role, sequences, bundle.tokenizer, bundle.mesh, self.batch_size)
        for places, encoded in parts:
            memory[places] = encoded
        return memory

    @functools.cached_property
    def engine(self) -> Engine | RemoteEngine:
        """The engine that decodes answers, ``rows`` at a time; made when it is first needed."""
        bundle = self.bundle
        return Engine(bundle.model, self._params, bundle.mesh, bundle.end_ids, self._rows, self._weights)

    def request(
        self, prompt: prompts.Prompt, memories: np.ndarray, sampling: Sampling = GREEDY, seed: int = 0
    ) -> Request:
        """Return the engine's request for a prompt.

        Args:
          prompt: see `clara_jax.input_pipeline.prompts`.
          memories: of the prompt's slots, [K, M, E].
          sampling: how tokens are chosen.
          seed: of the sampling.

        Raises:
          ClaraError: a prompt that is longer than ``max_length``.
        """
        tokenizer = self.bundle.tokenizer
        exist = existing(memories, tokenizer.memory_count)
        absent = int(exist.size - np.count_nonzero(exist))
        encoded = tokenizer.with_max_length(tokenizer.max_length + absent).encode_prompt(prompt)
        if encoded.cut:
            raise ClaraError(
                f"{len(memories)} memories and the text make {encoded.full_length - absent} tokens, above max_length "
                f"{self.bundle.model.clara.max_length}; take fewer documents (k), less text beside them (expand), or a "
                "shorter question"
            )
        return Request(*encoded.only(exist), memories, sampling, seed)

    def generate(
        self, asked: Sequence[prompts.Prompt], memories: Sequence[np.ndarray], sampling: Sampling, seed: int = 0
    ) -> list[Result]:
        """Generate answers to prompts.

        Args:
          asked: the prompts.
          memories: of each prompt's slots, [K, M, E].
          sampling: how tokens are chosen.
          seed: of the first prompt; prompt i is sampled with ``seed + i``.

        Raises:
          ClaraError: a prompt that is longer than ``max_length``.
        """
        return self.engine.generate(self._requests(asked, memories, sampling, seed))

    def _requests(
        self, asked: Sequence[prompts.Prompt], memories: Sequence[np.ndarray], sampling: Sampling, seed: int
    ) -> list[Request]:
        """Return the engine's requests for prompts; prompt i is sampled with ``seed + i``."""
        if not isinstance(seed, numbers.Integral):
            raise ClaraError(f"seed: {seed!r} is no whole number")
        requests = []
        for number, (prompt, read) in enumerate(zip(asked, memories, strict=True)):
            try:
                requests.append(self.request(prompt, read, sampling, seed + number))
            except ClaraError as error:
                raise ClaraError(f"prompt {number}: {error}") from None
        return requests
