"""The Python face: compress documents once, rank them for questions, answer with sources.

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
from typing import Any, Literal

import jax
import numpy as np

from clara_jax import bundle as bundles
from clara_jax.bundle import Bundle
from clara_jax.data import prompts
from clara_jax.distributed import gather
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.inference.encode import encode_texts
from clara_jax.inference.engine import Engine, Request, Result
from clara_jax.inference.weights import check as check_weights
from clara_jax.method.reranker import EXCLUDED, cosine_scores
from clara_jax.method.stages import STAGES, inherit
from clara_jax.model.sharding import divisible, make_mesh, put_batch

GREEDY = Sampling()
LongDocuments = Literal["chunk", "cut"]


@dataclasses.dataclass(frozen=True)
class Memories:
    """Compressed documents; what `Clara.compress` makes and `rank` and `answer` read.

    Attributes:
      ids: one per memory; a chunk of a long document is called ``<id>#<number>``.
      array: [n, M, E], the compute dtype.
      texts: what each memory was made of.
      fingerprint: of the model that made them; another model refuses them.
    """

    ids: tuple[str, ...]
    array: np.ndarray
    texts: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> Memories:
        """The memories at these positions, in this order."""
        rows = list(indices)
        return dataclasses.replace(
            self, ids=tuple(self.ids[i] for i in rows), array=self.array[rows], texts=tuple(self.texts[i] for i in rows)
        )


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best candidates of each question, best first.

    Attributes:
      indices: int [q, k] into the question's candidates; -1 where it has fewer than k.
      scores: float32 [q, k], cosine; -inf where there is no candidate.
    """

    indices: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """A document an answer was given from. ``rank`` counts from 1; ``score`` is None where documents were not
    ranked."""

    id: str
    rank: int
    score: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, what it was given from, and the log-probability of its tokens under the model."""

    text: str
    sources: tuple[Source, ...]
    tokens: tuple[int, ...]
    log_probability: float


class Clara:
    """A CLaRa model. Open one with `Clara.load`."""

    def __init__(self, bundle: Bundle, batch_size: int = 16, weights: str | None = None, rows: int | None = None):
        """
        Args:
          bundle: see `clara_jax.bundle`.
          batch_size: texts, questions or prompts per device call, rounded up to what the mesh divides.
          weights: what answers are written with, one of `clara_jax.inference.weights.WEIGHTS`; default what is fastest
            and fits.
          rows: answers that are written together, rounded up likewise; default ``batch_size``. One alone is written
            faster by a model that is made for one.

        Raises:
          ClaraError: an unknown name.
        """
        rows = batch_size if rows is None else rows
        _positive("batch_size", batch_size)
        _positive("rows", rows)
        if weights is not None:
            check_weights(weights)
        self.bundle, self._weights = bundle, weights
        self.batch_size, self._rows = divisible(batch_size, bundle.mesh), divisible(rows, bundle.mesh)
        # A checkpoint from before the end-to-end stage has no query reasoner of its own: it would start as the
        # compressor.
        self._params = inherit(STAGES["end_to_end"], bundle.params, bundle.trained)
        self._fingerprint = bundle.fingerprint()

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
    ) -> Clara:
        """Opens a training run, one of its checkpoints, a checkpoint in the released format, a compact copy, or
        the model inside the package ("smollm2-clara").

        Args:
          base: where the base model lies, if not where the checkpoint says.
          precision: one of `clara_jax.model.precision.CHOICES`; default as trained.
          mesh: default all devices along "data".
          batch_size, weights, rows: see `Clara`.
          rate: compress rate, of a model with one memory token for all places; default as it was trained last.

        Raises:
          ClaraError: see `clara_jax.bundle.load`, `Bundle.at_rate`.
        """
        bundle = bundles.load(path, mesh or make_mesh(), base, precision).at_rate(rate)
        return cls(bundle, batch_size, weights, rows)

    @property
    def usual_k(self) -> int:
        """Documents to answer from: as many as the model learned to read, 5 where its checkpoint does not say."""
        return self.bundle.top_k or 5

    @property
    def fingerprint(self) -> str:
        """See `Bundle.fingerprint`."""
        return self._fingerprint

    def compress(
        self, documents: Sequence[str], ids: Sequence[str] | None = None, long: LongDocuments = "chunk"
    ) -> Memories:
        """Compresses documents, each into M memory vectors.

        Args:
          documents: texts.
          ids: their names; default "0", "1", ...
          long: documents beyond ``doc_max_length`` tokens: "chunk" makes several memories of one, "cut" keeps its
            beginning and warns.

        Raises:
          ClaraError: an empty document; ids that are not one per document or not unique.
        """
        texts, names = self._pieces(_texts(documents, "documents"), ids, long)
        sequences = self.bundle.tokenizer.encode_documents(texts)
        return Memories(tuple(names), self._encode("compressor", sequences), tuple(texts), self._fingerprint)

    def rank(self, questions: Sequence[str], memories: Memories | Sequence[Memories], k: int = 5) -> Ranking:
        """Ranks memories by the cosine between each and the question's, as the query reasoner sees it.

        Args:
          memories: one collection for all questions, or one for each question.
          k: how many; fewer come back where there are fewer.
        """
        questions = _texts(questions, "questions")
        candidates = self._candidates(memories, len(questions))
        _positive("k", k)
        return self._rank(questions, candidates, k)

    def read(self, questions: Sequence[str]) -> np.ndarray:
        """Questions as the query reasoner sees them: [q, M, E], whose cosine with a document's memory is its score."""
        if not self.bundle.ranks:
            warnings.warn(
                "this checkpoint has no trained query reasoner; questions are read as documents are", stacklevel=3
            )
        return self._encode("query_reasoner", self.bundle.tokenizer.encode_documents(_texts(questions, "questions")))

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
    ) -> list[Answer]:
        """Answers questions from their documents, or from memories made before.

        Args:
          documents: a list for each question, of any lengths; each text is compressed once, however often it occurs.
          memories: instead of documents: one collection for all questions, or one for each.
          k: how many of the best candidates the generator reads; "trained" is `usual_k`; None gives it all, in their
            order, without ranking.
          max_new_tokens, temperature, top_p, seed: see `Sampling`.
          long: see `compress`.

        Raises:
          ClaraError: neither or both of documents and memories; a question without candidates; memories of another
          model.
        """
        questions = _texts(questions, "questions")
        if (documents is None) == (memories is None):
            raise ClaraError("answer: give either documents (a list for each question) or memories")
        k = self.usual_k if k == "trained" else k
        if k is not None:
            _positive("k", k)
        if memories is None:
            candidates = self._compress_lists(documents, len(questions), long)
        else:
            candidates = self._candidates(memories, len(questions))
        for question, own in zip(questions, candidates, strict=True):
            if not len(own):
                raise ClaraError(f"answer: the question {question!r} has no documents")
        if k is None:
            chosen = [list(range(len(own))) for own in candidates]
            scores: list[list[float | None]] = [[None] * len(own) for own in candidates]
        else:
            ranking = self._rank(questions, candidates, k)
            chosen = [[int(i) for i in row if i >= 0] for row in ranking.indices]
            scores = [[float(s) for s in row[: len(c)]] for row, c in zip(ranking.scores, chosen, strict=True)]
        selected = [own.take(rows) for own, rows in zip(candidates, chosen, strict=True)]
        asked = [prompts.question(question, len(own)) for question, own in zip(questions, selected, strict=True)]
        sampling = Sampling(max_new_tokens, temperature, top_p)
        results = []
        found = self.generate(asked, [own.array for own in selected], sampling, seed)
        for result, own, row_scores in zip(found, selected, scores, strict=True):
            sources = tuple(
                Source(name, rank, score, text)
                for rank, (name, score, text) in enumerate(zip(own.ids, row_scores, own.texts, strict=True), 1)
            )
            text = self.bundle.tokenizer.decode(result.tokens)
            results.append(Answer(text, sources, result.tokens, result.log_probability))
        return results

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
        """Says each document again from its memory: what the memory holds, in words.

        Args:
          instruction: contains "{docs}" where the memory stands; default the first of the training instructions.
        """
        documents = _texts(documents, "documents")
        instruction = prompts.PARAPHRASE_INSTRUCTIONS[0] if instruction is None else instruction
        if instruction.count("{docs}") != 1:
            raise ClaraError('instruction: must contain "{docs}" once, where the memory stands')
        own = self._compress_lists([[document] for document in documents], len(documents), long)
        asked = [prompts.paraphrase(None, instruction, len(memories)) for memories in own]
        memories = [one.array for one in own]
        generated = self.generate(asked, memories, Sampling(max_new_tokens, temperature, top_p), seed)
        return [self.bundle.tokenizer.decode(result.tokens) for result in generated]

    def _pieces(self, documents: list[str], ids: Sequence[str] | None, long: str) -> tuple[list[str], list[str]]:
        """Documents as texts that fit, and their names."""
        if long not in ("chunk", "cut"):
            raise ClaraError(f'long: {long!r} must be "chunk" or "cut"')
        names = [str(i) for i in range(len(documents))] if ids is None else [str(name) for name in ids]
        if len(names) != len(documents) or len(set(names)) != len(names):
            raise ClaraError(
                f"ids: {len(names)} names, {len(set(names))} of them different, for {len(documents)} documents; "
                "give one unique name each"
            )
        tokenizer = self.bundle.tokenizer
        if long == "cut":
            cut = [name for name, text in zip(names, documents, strict=True) if tokenizer.is_cut(text)]
            if cut:
                warnings.warn(
                    f"{len(cut)} document(s) longer than {self.bundle.model.clara.doc_max_length} tokens lose their "
                    "end "
                    f"({', '.join(cut[:3])}{', ...' if len(cut) > 3 else ''}); long='chunk' keeps it",
                    stacklevel=3,
                )
            return documents, names
        texts, chunk_names = [], []
        for name, text in zip(names, documents, strict=True):
            chunks = tokenizer.chunk(text)
            texts += chunks
            chunk_names += [name] if len(chunks) == 1 else [f"{name}#{number}" for number in range(len(chunks))]
        return texts, chunk_names

    def _compress_lists(self, documents: Sequence[Sequence[str]], count: int, long: str) -> list[Memories]:
        """Memories of each question's documents; equal texts are compressed once."""
        lists = not isinstance(documents, str | Mapping) and isinstance(documents, Collection)
        if not lists or len(documents) != count or any(isinstance(own, str) for own in documents):
            raise ClaraError(f"documents: a list of texts for each of the {count} questions is needed")
        lists = [_texts(own, f"documents[{i}]") for i, own in enumerate(documents)]
        unique = list(dict.fromkeys(text for own in lists for text in own))
        together = self.compress(unique, long=long)
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(together.ids):
            rows.setdefault(unique[int(name.partition("#")[0])], []).append(row)
        results = []
        for own in lists:
            taken = together.take([row for text in own for row in rows[text]])
            names = [
                f"{i}{'' if len(rows[text]) == 1 else f'#{part}'}"
                for i, text in enumerate(own)
                for part in range(len(rows[text]))
            ]
            results.append(dataclasses.replace(taken, ids=tuple(names)))
        return results

    def _candidates(self, memories: Memories | Sequence[Memories], count: int) -> list[Memories]:
        lists = [memories] * count if isinstance(memories, Memories) else memories
        lists = list(lists) if isinstance(lists, Iterable) else [lists]
        if not all(isinstance(own, Memories) for own in lists):
            raise ClaraError("memories: give what compress returned, once or a list with one for each question")
        if len(lists) != count:
            raise ClaraError(
                f"memories: {len(lists)} collections for {count} questions; give one for all or one for each"
            )
        for own in lists:
            if own.fingerprint != self._fingerprint:
                raise ClaraError(
                    "memories: they were made by another model (fingerprint differs); compress the documents again"
                )
        return lists

    def _rank(self, questions: list[str], candidates: list[Memories], k: int) -> Ranking:
        queries = self.read(questions)
        width = max(1, min(k, max((len(own) for own in candidates), default=1)))
        indices, scores = np.full((len(questions), width), -1), np.full((len(questions), width), -np.inf, np.float32)
        for start in range(0, len(questions), self.batch_size):
            own = candidates[start : start + self.batch_size]
            block = self._scores(queries[start : start + self.batch_size], own)
            order = np.argsort(-block, axis=1, kind="stable")[:, :width]
            for row, picked in enumerate(order):
                picked = picked[: len(own[row])]
                indices[start + row, : len(picked)] = picked
                scores[start + row, : len(picked)] = block[row, picked]
        return Ranking(indices, scores)

    def _scores(self, queries: np.ndarray, candidates: list[Memories]) -> np.ndarray:
        """Cosine scores [q, D], far below any cosine where a question has no such candidate."""
        width = _round_up(max(len(own) for own in candidates), 8)
        documents = np.zeros((self.batch_size, width, *queries.shape[1:]), queries.dtype)
        for row, own in enumerate(candidates):
            documents[row, : len(own)] = own.array
        padded = np.zeros((self.batch_size, *queries.shape[1:]), queries.dtype)
        padded[: len(queries)] = queries
        with jax.set_mesh(self.bundle.mesh):
            scores = gather(_cosine(*put_batch((padded, documents), self.bundle.mesh)))[: len(queries)]
        valid = np.arange(width) < np.array([[len(own)] for own in candidates])
        return np.where(valid, scores, EXCLUDED)

    def _encode(self, role: str, sequences: list[list[int]]) -> np.ndarray:
        """Memories [n, M, E] of token sequences."""
        model, bundle = self.bundle.model, self.bundle
        memory = np.zeros((len(sequences), model.clara.memory_tokens, model.config.width), model.dtype)
        parts = encode_texts(model, self._params, role, sequences, bundle.tokenizer, bundle.mesh, self.batch_size)
        for places, own in parts:
            memory[places] = own
        return memory

    @functools.cached_property
    def engine(self) -> Engine:
        """What writes answers, ``rows`` at a time; made when it is first needed."""
        bundle = self.bundle
        return Engine(bundle.model, self._params, bundle.mesh, bundle.end_ids, self._rows, self._weights)

    def request(
        self, prompt: prompts.Prompt, memories: np.ndarray, sampling: Sampling = GREEDY, seed: int = 0
    ) -> Request:
        """What the engine needs to know of a prompt.

        Args:
          memories: of the prompt's slots, [K, M, E].

        Raises:
          ClaraError: a prompt that is longer than ``max_length``.
        """
        encoded = self.bundle.tokenizer.encode_prompt(prompt)
        if encoded.cut:
            raise ClaraError(
                f"{len(memories)} memories and the text make {encoded.full_length} tokens, above max_length "
                f"{self.bundle.model.clara.max_length}; take fewer documents (k), less text beside them (expand), or a "
                "shorter question"
            )
        return Request(encoded.ids, encoded.memory_index, memories, sampling, seed)

    def generate(
        self, asked: Sequence[prompts.Prompt], memories: Sequence[np.ndarray], sampling: Sampling, seed: int = 0
    ) -> list[Result]:
        """Answers to prompts.

        Args:
          memories: of each prompt's slots, [K, M, E].

        Raises:
          ClaraError: a prompt that is longer than ``max_length``.
        """
        if not isinstance(seed, numbers.Integral):
            raise ClaraError(f"seed: {seed!r} is no whole number")
        requests = []
        for number, (prompt, own) in enumerate(zip(asked, memories, strict=True)):
            try:
                requests.append(self.request(prompt, own, sampling, seed + number))
            except ClaraError as error:
                raise ClaraError(f"prompt {number}: {error}") from None
        return self.engine.generate(requests)


_cosine = jax.jit(cosine_scores)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ClaraError(f"{name}: {value!r} is not a positive whole number")


def _texts(texts: Sequence[str], name: str) -> list[str]:
    if isinstance(texts, str):
        raise ClaraError(f"{name}: is one text; give a list of texts")
    # What is in a dict or in bytes are no texts of a list, though one may go through them.
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping):
        raise ClaraError(f"{name}: is of type {type(texts).__name__}; give a list of texts")
    result = list(texts)  # a generator gives them once
    for number, text in enumerate(result):
        if not isinstance(text, str) or not text.strip():
            raise ClaraError(f"{name}[{number}]: {text!r} is no text; each must be a non-empty string")
    return result
