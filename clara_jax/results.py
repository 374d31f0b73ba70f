"""Results of the Python API: memories, rankings, answers with their sources, and retrieved contexts."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from clara_jax.deprecation import renamed_attributes, renamed_field
from clara_jax.errors import ClaraError
from clara_jax.files import replaced_when_whole
from clara_jax.formats.safetensors_files import open_metadata, open_tensors
from clara_jax.inference.engine import Engine
from clara_jax.inference.remote_engine import RemoteEngine
from clara_jax.inference.requests import Request
from clara_jax.inference.streaming import TextStream
from clara_jax.strict_json import parse
from clara_jax.text.documents import Chunk

MEMORIES_FORMAT, MEMORIES_VERSION = "clara_jax.memories", "1"
_TEXTS = ("ids", "texts", "documents")  # of a saved file, each a JSON list in bytes
_SHOWN = 60  # characters of a text within a repr


@dataclasses.dataclass(frozen=True, repr=False)
class Memories:
    """Compressed documents: the output of `Clara.compress`, an input of `rank` and `answer`.

    Attributes:
      ids: one per memory; a chunk of a long document is called ``<id>#<number>``.
      array: [n, M, E], the compute dtype.
      texts: the text that each memory was compressed from.
      fingerprint: of the model that made them; another model refuses them.
      documents: the id of the document that each is a chunk of; the same as ``ids`` where not given.
    """

    ids: tuple[str, ...]
    array: np.ndarray
    texts: tuple[str, ...]
    fingerprint: str
    documents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.documents:
            object.__setattr__(self, "documents", self.ids)

    def __len__(self) -> int:
        """Return the number of memories."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Return how many memories there are, their shape, and the first of their ids."""
        shown = ", ".join(map(repr, self.ids[:3])) + (", ..." if len(self) > 3 else "")
        shape = " × ".join(map(str, self.array.shape[1:]))
        return f"Memories({len(self)} of {shape} {self.array.dtype}: {shown}; model {self.fingerprint[:12]})"

    def take(self, indices: Sequence[int]) -> Memories:
        """Return the memories at these positions, in this order."""
        rows = list(indices)
        picked = {name: tuple(getattr(self, name)[i] for i in rows) for name in _TEXTS}
        return dataclasses.replace(self, array=self.array[rows], **picked)

    def hits(self, scores: Sequence[float | None], tokens: Sequence[int]) -> tuple[Hit, ...]:
        """Return the memories, best first, as what was found.

        Args:
          scores: of each.
          tokens: the length of each text.
        """
        rows = zip(self.ids, self.documents, self.texts, tokens, scores, strict=True)
        return tuple(
            Hit(name, document, "", text, "", -1, -1, length, score, rank)
            for rank, (name, document, text, length, score) in enumerate(rows, 1)
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the memories to one safetensors file, which `load` reads; a file of that name is replaced.

        Raises:
          ClaraError: the file cannot be written; nothing half-written stays.
        """
        tensors = {"memories": np.ascontiguousarray(self.array)}
        for name in _TEXTS:
            text = json.dumps(getattr(self, name), ensure_ascii=False)
            tensors[name] = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        about = {"format": MEMORIES_FORMAT, "version": MEMORIES_VERSION, "fingerprint": self.fingerprint}
        with replaced_when_whole(path) as temporary:
            save_file(tensors, temporary, metadata=about)

    @classmethod
    def load(cls, path: str | os.PathLike, fingerprint: str | None = None) -> Memories:
        """Read memories that `save` has written.

        Args:
          path: the file.
          fingerprint: of the model that is to use them, `Clara.fingerprint`; None leaves the check to that model's
            first use of them.

        Raises:
          ClaraError: no such file, or one that `save` has not written or that is damaged; memories of another model.
        """
        path = Path(path)
        about = open_metadata(path, "compress the documents again")
        if about.get("format") != MEMORIES_FORMAT:
            raise ClaraError(f"{path}: holds no memories; name a file that Memories.save has written")
        if about.get("version") != MEMORIES_VERSION:
            raise ClaraError(
                f"{path}: is of version {about.get('version')!r} of the format, and this program reads "
                f"{MEMORIES_VERSION}; use a newer clara_jax"
            )
        made_by = about.get("fingerprint", "")
        if fingerprint is not None and made_by != fingerprint:
            raise ClaraError(
                f"{path}: its memories were made by another model (fingerprint {made_by[:12]}, not "
                f"{fingerprint[:12]}); compress the documents again, or open the model that made them"
            )
        tensors = open_tensors(path)
        try:
            array = np.array(tensors["memories"])
            ids, texts, documents = (_strings(tensors[name]) for name in _TEXTS)
        except (KeyError, ValueError) as error:
            raise ClaraError(f"{path}: is damaged ({error}); compress the documents again") from None
        if array.ndim != 3 or not len(array) == len(ids) == len(texts) == len(documents):
            raise ClaraError(
                f"{path}: is damaged (memories of the shape {array.shape} for {len(ids)} ids); compress the documents "
                "again"
            )
        return cls(ids, array, texts, made_by, documents)


def candidates_of(memories: Memories | Sequence[Memories], count: int, fingerprint: str) -> list[Memories]:
    """Return the candidates of each question.

    Args:
      memories: one collection for all questions, or one for each.
      count: the number of questions.
      fingerprint: of the model that is to read them, `Clara.fingerprint`.

    Raises:
      ClaraError: something else, another number of collections, or memories of another model.
    """
    lists: list[Memories]
    if isinstance(memories, Memories):
        lists = [memories] * count
    else:
        lists = list(memories) if isinstance(memories, Iterable) else [memories]
    if not all(isinstance(collection, Memories) for collection in lists):
        raise ClaraError("memories: give what compress returned, once or a list with one for each question")
    if len(lists) != count:
        raise ClaraError(f"memories: {len(lists)} collections for {count} questions; give one for all or one for each")
    for collection in lists:
        if collection.fingerprint != fingerprint:
            raise ClaraError(
                "memories: they were made by another model (fingerprint differs); compress the documents again"
            )
    return lists


def _strings(data: np.ndarray) -> tuple[str, ...]:
    """Return the texts of a JSON list.

    Raises:
      ValueError: it is none.
    """
    texts = parse(data.tobytes())
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("no list of texts where one is expected")
    return tuple(texts)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best candidates of each question, best first.

    Attributes:
      indices: int [q, k] into the question's candidates; -1 where it has fewer than k.
      scores: float32 [q, k], see `clara_jax.method.reranker.relevance_scores`; -inf where there is no candidate.
    """

    indices: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Hit(Chunk):
    """A document or chunk that was found, and that an answer may be read from.

    Of memories without a store (`Clara.answer`) ``document`` is the id given to `Clara.compress`, ``title`` and
    ``source`` are empty, and ``start`` and ``end`` are -1.

    Attributes:
      score: of memories, BM25, or the sum of reciprocal ranks; None where nothing was ranked.
      rank: counts from 1.
    """

    score: float | None
    rank: int

    def __repr__(self) -> str:
        """Return rank, score, id and the beginning of the text."""
        return f"Hit({self.line(_SHOWN)})"

    def line(self, width: int) -> str:
        """Return rank, score, id and the first ``width`` characters of the text, in one line."""
        score = "" if self.score is None else f"{self.score:+.3f}  "
        return f"{self.rank}. {score}{self.id}  {_shortened(self.text, width)}"


@dataclasses.dataclass(frozen=True, repr=False)
class Answer:
    """An answer, what it was generated from, and the log-probability of its tokens under the model."""

    text: str
    sources: tuple[Hit, ...]
    tokens: tuple[int, ...]
    log_probability: float

    def __repr__(self) -> str:
        """Return the text, its log-probability and the sources' ids."""
        return f"Answer({_described(self.text, self.log_probability, self.sources)})"


class AnswerStream(Iterator[str]):
    """An answer that is being written, as an iterator of the pieces of its text; together they are `Answer.text`.

    Attributes:
      sources: what the answer is generated from.
      answer: None until the last piece has been taken.
    """

    def __init__(
        self,
        engine: Engine | RemoteEngine,
        request: Request,
        decode: Callable[[list[int]], str],
        sources: Sequence[Hit],
    ):
        """Submit the request; tokens are decoded as pieces are taken.

        Args:
          engine: see `clara_jax.inference.engine`.
          request: for it.
          decode: makes a text of token ids.
          sources: of the answer.

        Raises:
          ClaraError: see `Engine.submit`.
        """
        self.sources = tuple(sources)
        self.answer: Answer | None = None
        self._engine, self._handle = engine, engine.submit(request)
        self._stream = TextStream(self._handle, decode)

    def __repr__(self) -> str:
        """Return the text so far, and the sources' ids."""
        return (
            repr(self.answer) if self.answer else f"AnswerStream({_described(self._stream.whole, None, self.sources)})"
        )

    def __next__(self) -> str:
        """Return the next piece.

        Raises:
          ClaraError: see `TextStream.update`.
        """
        while self.answer is None and not self._handle.cancelled:
            if self._handle.result is None:
                self._engine.step()
            piece, result = self._stream.update(), self._stream.result
            if result is not None:
                self.answer = Answer(self._stream.whole, self.sources, result.tokens, result.log_probability)
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """End the answer where it is: no further pieces come, and its row of the engine is free."""
        if self.answer is None:
            self._handle.cancel()

    def __del__(self) -> None:
        # A loop that was left early must not leave a row of the engine behind.
        if hasattr(self, "_handle"):
            self.close()


@dataclasses.dataclass(frozen=True, repr=False)
class RetrievedContext:
    """A question and the chunks that were retrieved for it.

    Attributes:
      hits: the candidates, best first; the generator reads the first ``selected``.
      request: for the engine; None where nothing was found or the best score is below the threshold.
      compress_ratio: tokens of the selected texts over the memory tokens read in their place.
      milliseconds: the time of encoding the question ("read") and of the search ("search").
      searched: the search's query text: the question, after earlier messages of the user where there are some.
      turns: the number of earlier messages that the generator reads.
      warnings: what the user should know of the answer, one line each.
    """

    question: str
    hits: tuple[Hit, ...]
    selected: int
    request: Request | None
    compress_ratio: float
    milliseconds: dict[str, float]
    searched: str
    turns: int = 0
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the question, and the ids of what the generator reads."""
        names = _named(self.sources)
        return f"RetrievedContext({_shortened(self.question, _SHOWN)!r}, {len(self.hits)} hits, reads {names})"

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The hits that the generator reads."""
        return self.hits[: self.selected]

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, memories included; 0 without one."""
        return 0 if self.request is None else len(self.request.ids)


@dataclasses.dataclass(frozen=True, repr=False)
class RagAnswer:
    """An answer with its context; ``text`` is None where the model abstains, and ``milliseconds`` also has "answer"."""

    text: str | None
    context: RetrievedContext
    tokens: tuple[int, ...]
    log_probability: float
    milliseconds: dict[str, float]

    asked = renamed_field("RagAnswer.asked", "context")

    def __repr__(self) -> str:
        """Return the text, its log-probability and the sources' ids."""
        return f"RagAnswer({_described(self.text, self.log_probability, self.sources)})"

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The hits that the answer was generated from; none where the model abstains."""
        return () if self.text is None else self.context.sources


def _described(text: str | None, log_probability: float | None, sources: Sequence[Hit]) -> str:
    shown = "no answer" if text is None else repr(_shortened(text, _SHOWN))
    number = "" if text is None or log_probability is None else f", log_probability {log_probability:.2f}"
    return f"{shown}{number}, from {_named(sources)}"


def _named(hits: Sequence[Hit]) -> str:
    shown = ", ".join(repr(hit.id) for hit in hits[:5]) + (", ..." if len(hits) > 5 else "")
    return shown or "nothing"


def _shortened(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


__getattr__ = renamed_attributes(__name__, {"Source": "Hit"})
