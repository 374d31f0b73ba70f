"""Who takes part: a model with memories, a model that reads text, a ranker. Each turns cases into outcomes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.api import Clara, Memories
from clara_jax.bundle import Bundle
from clara_jax.data import prompts
from clara_jax.data.importers.retrievers import Retriever
from clara_jax.data.tokenization import FRAME, IGNORED
from clara_jax.errors import ClaraError
from clara_jax.evaluation.cases import Case, Suite
from clara_jax.evaluation.cramming import Cramming, cram
from clara_jax.evaluation.outcomes import Outcome
from clara_jax.evaluation.pruning import pruned, surprisals, truncated
from clara_jax.evaluation.ways import (
    CRAMMED,
    MEMORY_WAYS,
    PRUNED_RATE,
    RANK_WAY,
    TEXT_WAYS,
    Way,
    draws,
    gold,
    other_cases,
    repeated,
)
from clara_jax.inference.decode import Sampling
from clara_jax.inference.engine import Request, Result


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is the same for all: other settings are other results.

    Attributes:
      k: documents that are read of ranked ones.
      max_new_tokens: of an answer; of a text that is told again four times as many; of one that is written out as many
        as it has.
      seed: of what is drawn at random.
    """

    k: int = 5
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self):
        if self.k < 1 or self.max_new_tokens < 1:
            raise ClaraError(f"k is {self.k}, max_new_tokens is {self.max_new_tokens}; both must be at least 1")

    def sampling(self, suite: Suite) -> Sampling:
        """Greedy."""
        return Sampling(self.max_new_tokens * (4 if suite.kind == "paraphrase" else 1))


class Contestant(Protocol):
    """A model, or a ranker."""

    ways: tuple[Way, ...]

    def outcomes(self, way: Way, suite: Suite, cases: Sequence[Case], timed: bool = False) -> list[Outcome]:
        """What comes out for some of the suite's cases, in their order.

        Args:
          timed: each is asked alone, twice, and the second time is told.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _Given:
    """What the generator is given for a case; see `Outcome` for the fields."""

    request: Request
    texts: Sequence[str]
    taken: tuple[int, ...]  # tokens of the prompt that each of the texts takes
    kept_bytes: int  # that all of them take where they are kept
    read: tuple[int, ...] = ()
    order: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None
    window: tuple[int, ...] | None = None  # token ids that are to be written out

    @property
    def document_tokens(self) -> int:
        return sum(self.taken)


class _Answering:
    """What the two kinds of models share: requests are made, answered and counted."""

    def __init__(self, clara: Clara, settings: Settings):
        self.clara, self.settings, self.tokenizer = clara, settings, clara.bundle.tokenizer
        self._frame = len(self.tokenizer.document_tokens([""])[0])

    def given(self, way: Way, suite: Suite, cases: Sequence[Case]) -> Iterator[_Given]:
        raise NotImplementedError

    def outcomes(self, way: Way, suite: Suite, cases: Sequence[Case], timed: bool = False) -> list[Outcome]:
        """See `Contestant`."""
        if timed:
            return [self._timed(way, suite, case) for case in cases]
        given = list(self.given(way, suite, cases))
        results = self.clara.engine.generate([own.request for own in given])
        return [self._outcome(*own) for own in zip(cases, given, results, strict=True)]

    def _timed(self, way: Way, suite: Suite, case: Case) -> Outcome:
        for _ in range(2):  # the first time may compile
            self.clara.engine.prefixes.clear()
            began = time.perf_counter()
            (given,) = self.given(way, suite, [case])
            before = 1000 * (time.perf_counter() - began)
            (result,) = self.clara.engine.generate([given.request])
        milliseconds = {name: before + result.milliseconds[name] for name in ("first", "total")}
        return dataclasses.replace(self._outcome(case, given, result), milliseconds=milliseconds)

    def _outcome(self, case: Case, given: _Given, result: Result) -> Outcome:
        tokens = list(map(len, self.text_ids(given.texts)))
        written = {}
        if given.window is not None:
            right = sum(own == wanted for own, wanted in zip(result.tokens, given.window, strict=False))
            written = dict(window_tokens=len(given.window), right_tokens=right)
        return Outcome(
            case=case.id,
            answer=self.tokenizer.decode(result.tokens),
            order=given.order,
            scores=given.scores,
            read=given.read,
            prompt_tokens=len(given.request.ids),
            text_tokens=sum(tokens),
            document_tokens=given.document_tokens,
            rates=tuple(round(own / taken, 4) for own, taken in zip(tokens, given.taken, strict=True) if taken),
            document_bytes=given.kept_bytes,
            answer_tokens=len(result.tokens),
            ended=result.ended,
            **written,
        )

    def request(self, suite: Suite, case: Case, documents: int | Sequence[str], memories: np.ndarray) -> Request:
        """The prompt of a case.

        Raises:
          ClaraError: it is too long for the model.
        """
        sampling = self.settings.sampling(suite)
        if case.kind == "autoencode":
            prompt = prompts.autoencode(None, documents)
            sampling = Sampling(len(self.window(case)) + 1)  # and the end token
        elif case.kind == "paraphrase":
            prompt = prompts.paraphrase(None, prompts.PARAPHRASE_INSTRUCTIONS[0], documents)
        else:
            prompt = prompts.question(case.question, documents)
        try:
            return self.clara.request(prompt, memories, sampling)
        except ClaraError as error:
            raise ClaraError(f"{suite.name}, case {case.id}: {error}") from None

    def window(self, case: Case) -> tuple[int, ...]:
        """The token ids that are to be written out of a document: as they were learned, and as far as the compressor
        reads them."""
        (text,) = self.tokenizer.cut_texts(case.documents)
        encoded = self.tokenizer.encode_prompt(prompts.autoencode(text))
        return tuple(token for token in encoded.labels if token != IGNORED)[:-1]  # without the end token

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts without frame, as far as the compressor reads them."""
        before = self._frame - 1  # all of the frame but the end token
        limit = self.tokenizer.doc_max_length + FRAME - before
        return [own[before:-1][:limit] for own in (self.tokenizer.document_tokens(texts) if texts else [])]


class MemoryModel(_Answering):
    """A model before documents that were compressed for it.

    Attributes:
      read: memories [N, M, E] of N documents' token ids.
    """

    ways = (*MEMORY_WAYS, CRAMMED)

    def __init__(
        self,
        clara: Clara,
        read: Callable[[Sequence[np.ndarray]], np.ndarray],
        settings: Settings,
        cramming: Cramming | None = None,
    ):
        """
        Args:
          cramming: how memories are optimised for the way `CRAMMED`; None where it is not asked.
        """
        super().__init__(clara, settings)
        self.read, self.cramming = read, cramming
        self._others: dict[str, Mapping[str, Case]] = {}
        self._crammed: dict[str, np.ndarray] = {}  # memories [M, E] of texts: each is optimised once

    def given(self, way: Way, suite: Suite, cases: Sequence[Case]) -> Iterator[_Given]:
        """What the generator is given."""
        documents = [case.documents for case in cases]
        if way.name == "other_memory":
            if suite.name not in self._others:
                self._others[suite.name] = other_cases(suite)
            others = self._others[suite.name]
            documents = [repeated(others[case.id].documents, len(case.documents)) for case in cases]
        memories = [self._memories(own) for own in documents]
        rankings = self._rankings(suite, cases, memories)
        orders = [None if ranking is None else ranking[0] for ranking in rankings]
        chosen = [self._chosen(way, suite, case, order) for case, order in zip(cases, orders, strict=True)]
        arrays = [own.array[list(rows)] for own, rows in zip(memories, chosen, strict=True)]
        texts = [[own[i] for i in rows] for own, rows in zip(documents, chosen, strict=True)]
        if way.name == CRAMMED.name:
            arrays = self._cram(texts, arrays)
        for case, array, shown, rows, ranking in zip(cases, arrays, texts, chosen, rankings, strict=True):
            array = self._shuffled(way, case, array)
            request = self.request(suite, case, len(rows), array)
            window = self.window(case) if case.kind == "autoencode" else None
            taken, kept = (array.shape[1],) * len(array), array.nbytes
            if way.name == "no_memory":
                yield _Given(_without_memory(request), (), (), 0, window=window)
            elif way.name == "other_memory":
                yield _Given(request, shown, taken, kept, window=window)
            else:
                ranks = ranking if way.name == "clara" and ranking is not None else (None, None)
                yield _Given(request, shown, taken, kept, rows, *ranks, window=window)

    def _shuffled(self, way: Way, case: Case, memories: np.ndarray) -> np.ndarray:
        """Memories [K, M, E] as the two controls of order have them; else as they are."""
        rng = draws(case, self.settings.seed)
        if way.name == "shuffled_memory":
            vectors = memories.shape[0] * memories.shape[1]
            return memories.reshape(vectors, -1)[rng.permutation(vectors)].reshape(memories.shape)
        if way.name == "shuffled_within":
            return np.stack([own[rng.permutation(len(own))] for own in memories])
        return memories

    def _cram(self, texts: Sequence[Sequence[str]], memories: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Memories [K, M, E] of each case's texts, optimised from those that the compressor has made."""
        assert self.cramming is not None
        flat = dict(zip((text for own in texts for text in own), (row for own in memories for row in own), strict=True))
        new = [text for text in flat if text not in self._crammed]
        if new:
            started = np.stack([flat[text] for text in new])
            found = cram(self.clara.bundle, self.cramming, new, started, self.clara.batch_size)
            self._crammed |= dict(zip(new, found, strict=True))
        return [np.stack([self._crammed[text] for text in own]) for own in texts]

    def _chosen(self, way: Way, suite: Suite, case: Case, order: tuple[int, ...] | None) -> tuple[int, ...]:
        if way.name == "gold_memory":
            return gold(case)
        if way.name == "random_selection":
            drawn = draws(case, self.settings.seed).permutation(len(case.documents))
            return tuple(drawn[: self.settings.k].tolist())
        return tuple(range(len(case.documents))) if order is None else order[: self.settings.k]

    def _rankings(
        self, suite: Suite, cases: Sequence[Case], memories: Sequence[Memories]
    ) -> list[tuple[tuple[int, ...], tuple[float, ...]] | None]:
        """(order, scores) of each case's candidates."""
        if not suite.ranked:
            return [None] * len(cases)
        ranking = self.clara.rank([case.question for case in cases], memories, max(map(len, memories)))
        return [
            (tuple(order[: len(own)].tolist()), tuple(scores[: len(own)].tolist()))
            for order, scores, own in zip(ranking.indices, ranking.scores, memories, strict=True)
        ]

    def _memories(self, documents: Sequence[str]) -> Memories:
        ids = self.tokenizer.encode_documents(documents)
        array = self.read([np.array(own, np.int32) for own in ids])
        names = tuple(str(i) for i in range(len(documents)))
        return Memories(names, array, tuple(documents), self.clara.fingerprint)


class TextModel(_Answering):
    """A model that reads its documents as text."""

    ways = TEXT_WAYS

    def __init__(self, clara: Clara, order: Callable[[Suite], Mapping[str, Sequence[int]]], settings: Settings):
        """
        Args:
          order: of a suite's cases by id, each one's documents, best first.
        """
        super().__init__(clara, settings)
        self._order, self._orders = order, dict[str, Mapping[str, Sequence[int]]]()
        self._kept: dict[str, list[int]] = {}  # what pruning keeps of a text: like a memory, it is made once

    def given(self, way: Way, suite: Suite, cases: Sequence[Case]) -> Iterator[_Given]:
        """What the generator is given."""
        if suite.name not in self._orders:
            self._orders[suite.name] = self._order(suite)
        nothing = np.zeros((0, self.tokenizer.memory_tokens, self.clara.bundle.model.config.width), np.float32)
        chosen = [self._chosen(way, suite, case) for case in cases]
        texts = [[case.documents[i] for i in own] for case, own in zip(cases, chosen, strict=True)]
        if way.name == "text_pruned":
            self._prune([text for own in texts for text in own])
        for case, read, own in zip(cases, chosen, texts, strict=True):
            shown = [self._shown(way, text, ids) for text, ids in zip(own, self.text_ids(own), strict=True)]
            request = self.request(suite, case, [text for text, _ in shown], nothing)
            taken, kept = tuple(tokens for _, tokens in shown), sum(len(text.encode()) for text, _ in shown)
            yield _Given(request, own, taken, kept, read)

    def _chosen(self, way: Way, suite: Suite, case: Case) -> tuple[int, ...]:
        order = tuple(self._orders[suite.name][case.id])
        if way.name == "closed_book":
            return ()
        if way.name == "text_oracle":
            return gold(case)
        if way.name == "text_top1":
            return order[:1]
        return order[: self.settings.k] if suite.ranked else tuple(range(len(case.documents)))

    def _shown(self, way: Way, text: str, ids: list[int]) -> tuple[str, int]:
        """What a prompt has of a text, and how many tokens that is."""
        kept = ids
        if way.name == "text_truncated":
            kept = truncated(ids, self.tokenizer.memory_tokens, self.tokenizer.whole_characters(ids))
        elif way.name == "text_pruned":
            kept = self._kept[text]
        whole = len(kept) == len(ids) and not self.tokenizer.is_cut(text)
        return text if whole else self.tokenizer.decode(kept), len(kept)

    def _prune(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        ids = self.text_ids(new)
        surprising = surprisals(self.clara.bundle, ids, self.clara.batch_size)
        self._kept |= {
            text: pruned(own, values, PRUNED_RATE, self.tokenizer.whole_characters(own))
            for text, own, values in zip(new, ids, surprising, strict=True)
        }


class Ranker:
    """Another way to rank candidates."""

    ways = (RANK_WAY,)

    def __init__(self, scores: Callable[[Suite], Mapping[str, np.ndarray]]):
        """
        Args:
          scores: of a suite's cases by id, float [D] each; equal ones keep the order of the candidates.
        """
        self._make, self._scores = scores, dict[str, Mapping[str, np.ndarray]]()

    def order(self, suite: Suite) -> Mapping[str, tuple[int, ...]]:
        """Each case's documents by id, best first."""
        return {case: tuple(np.argsort(-own, kind="stable").tolist()) for case, own in self._of(suite).items()}

    def outcomes(self, way: Way, suite: Suite, cases: Sequence[Case], timed: bool = False) -> list[Outcome]:
        """See `Contestant`; nothing is timed."""
        order, scores = self.order(suite), self._of(suite)
        return [
            Outcome(case.id, order=order[case.id], scores=tuple(float(scores[case.id][i]) for i in order[case.id]))
            for case in cases
        ]

    def _of(self, suite: Suite) -> Mapping[str, np.ndarray]:
        if suite.name not in self._scores:
            self._scores[suite.name] = self._make(suite)
        return self._scores[suite.name]


def retriever_scores(open_retriever: Callable[[Sequence[str]], Retriever]) -> Callable[[Suite], dict[str, np.ndarray]]:
    """The scores of a retriever that knows all documents of a suite, not a case's alone: BM25 counts how rare a word
    is.

    Args:
      open_retriever: makes one of documents.
    """

    def scores(suite: Suite) -> dict[str, np.ndarray]:
        documents = list(dict.fromkeys(text for case in suite.cases for text in case.documents))
        place = {text: i for i, text in enumerate(documents)}
        found = open_retriever(documents).scores([case.question for case in suite.cases])
        return {
            case.id: np.asarray(own)[[place[text] for text in case.documents]]
            for case, own in zip(suite.cases, found, strict=True)
        }

    return scores


def random_scores(seed: int) -> Callable[[Suite], dict[str, np.ndarray]]:
    """The control of all rankers."""
    return lambda suite: {case.id: draws(case, seed).random(len(case.documents)) for case in suite.cases}


def without_adapter(bundle: Bundle) -> Bundle:
    """The model whose generator is the base as it is."""
    lora = bundle.params["lora"]
    silent = jax.tree.map(jnp.zeros_like, lora["generator"])
    return dataclasses.replace(bundle, params={**bundle.params, "lora": {**lora, "generator": silent}})


def _without_memory(request: Request) -> Request:
    """As if the memories had been cut out of the prompt; what stands around them stays, as in held-out evaluation."""
    kept = [(token, index) for token, index in zip(request.ids, request.memory_index, strict=True) if index < 0]
    ids, index = zip(*kept, strict=True)
    return dataclasses.replace(request, ids=ids, memory_index=index, memories=request.memories[:0])
