"""The systems under evaluation: models with memories, models that read text, rankers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.api import Clara
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.data.importers.retrievers import Retriever
from clara_jax.errors import ClaraError
from clara_jax.evaluation.baselines import Cramming, cram, pruned, surprisals, truncated
from clara_jax.evaluation.predictions import Prediction
from clara_jax.inference.decode import Sampling
from clara_jax.inference.requests import Request, Result
from clara_jax.input_pipeline import prompts
from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.memory_count import existing
from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import (
    CRAMMED,
    MEMORY_CONDITIONS,
    NO_MEMORY,
    OTHER_MEMORY,
    PRUNED_RATE,
    RANDOM_SELECTION,
    RANK_CONDITION,
    SHUFFLED,
    SHUFFLED_WITHIN,
    TEXT_CONDITIONS,
    Condition,
    draws,
    gold,
    other_cases,
    random_selection,
    repeated,
    shuffled,
    shuffled_within,
)
from clara_jax.results import Memories


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of all systems, on which results depend.

    Attributes:
      k: documents that are read of ranked ones.
      max_new_tokens: of an answer; of a paraphrase four times as many; of a reconstruction as many as the document has.
      seed: of all random draws.
    """

    k: int = 5
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self):
        if self.k < 1 or self.max_new_tokens < 1:
            raise ClaraError(f"k is {self.k}, max_new_tokens is {self.max_new_tokens}; both must be at least 1")

    def sampling(self, suite: Suite) -> Sampling:
        """Return greedy sampling with the suite's limit of tokens."""
        return Sampling(self.max_new_tokens * (4 if suite.kind == "paraphrase" else 1))


class System(Protocol):
    """A model or ranker that makes predictions under several conditions."""

    conditions: tuple[Condition, ...]

    def predict(
        self, condition: Condition, suite: Suite, cases: Sequence[Case], timed: bool = False
    ) -> list[Prediction]:
        """Return the predictions for some of the suite's cases, in their order.

        Args:
          condition: one of ``conditions``.
          suite: of which the cases are.
          cases: those to predict.
          timed: whether each is asked alone, twice, and the time of the second run is reported.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _Given:
    """The generator's input for a case; see `Prediction` for the fields."""

    request: Request
    texts: Sequence[str]
    taken: tuple[int, ...]  # tokens of the prompt that each of the texts takes
    kept_bytes: int  # size of all of them in storage
    read: tuple[int, ...] = ()
    order: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None
    window: tuple[int, ...] | None = None  # token ids of a document to reconstruct

    @property
    def document_tokens(self) -> int:
        return sum(self.taken)


class _Answering:
    """The common base of both kinds of models: makes requests, answers them, and counts tokens."""

    def __init__(self, clara: Clara, settings: Settings):
        self.clara, self.settings, self.tokenizer = clara, settings, clara.bundle.tokenizer
        self._frame = len(self.tokenizer.document_tokens([""])[0])

    def given(self, condition: Condition, suite: Suite, cases: Sequence[Case]) -> Iterator[_Given]:
        """Yield the generator's input for each case."""
        raise NotImplementedError

    def predict(
        self, condition: Condition, suite: Suite, cases: Sequence[Case], timed: bool = False
    ) -> list[Prediction]:
        """Return predictions, see `System.predict`."""
        if timed:
            return [self._timed(condition, suite, case) for case in cases]
        given = list(self.given(condition, suite, cases))
        results = self.clara.engine.generate([one.request for one in given])
        return [self._prediction(*parts) for parts in zip(cases, given, results, strict=True)]

    def _timed(self, condition: Condition, suite: Suite, case: Case) -> Prediction:
        self._alone(condition, suite, case)  # the first time may compile
        given, result, before = self._alone(condition, suite, case)
        milliseconds = {name: before + result.milliseconds[name] for name in ("first", "total")}
        return dataclasses.replace(self._prediction(case, given, result), milliseconds=milliseconds)

    def _alone(self, condition: Condition, suite: Suite, case: Case) -> tuple[_Given, Result, float]:
        """Return input, answer and the milliseconds before the engine of a case that is asked alone."""
        self.clara.engine.prefix_cache.clear()
        began = time.perf_counter()
        (given,) = self.given(condition, suite, [case])
        before = 1000 * (time.perf_counter() - began)
        (result,) = self.clara.engine.generate([given.request])
        return given, result, before

    def _prediction(self, case: Case, given: _Given, result: Result) -> Prediction:
        tokens = list(map(len, self.text_ids(given.texts)))
        right = None
        if given.window is not None:
            right = sum(token == wanted for token, wanted in zip(result.tokens, given.window, strict=False))
        return Prediction(
            case=case.id,
            answer=self.tokenizer.decode(result.tokens),
            order=given.order,
            scores=given.scores,
            read=given.read,
            prompt_tokens=len(given.request.ids),
            text_tokens=sum(tokens),
            document_tokens=given.document_tokens,
            rates=tuple(round(count / taken, 4) for count, taken in zip(tokens, given.taken, strict=True) if taken),
            document_bytes=given.kept_bytes,
            answer_tokens=len(result.tokens),
            ended=result.ended,
            window_tokens=None if given.window is None else len(given.window),
            right_tokens=right,
        )

    def request(self, suite: Suite, case: Case, documents: int | Sequence[str], memories: np.ndarray) -> Request:
        """Return the request of a case.

        Args:
          suite: of the case.
          case: the question, or the document to paraphrase or reconstruct.
          documents: the number of documents that are read as memories, or texts.
          memories: [K, M, E], of the documents that are read as memories.

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
        """Return the token ids of a document to reconstruct, tokenized as in training and cut as for the compressor."""
        (text,) = self.tokenizer.cut_texts(case.documents)
        encoded = self.tokenizer.encode_prompt(prompts.autoencode(text))
        return tuple(token for token in encoded.labels if token != IGNORED)[:-1]  # without the end token

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return tokens of texts without frame, as far as the compressor reads them."""
        before = self._frame - 1  # all of the frame but the end token
        limit = self.tokenizer.document_width - before
        return [ids[before:-1][:limit] for ids in (self.tokenizer.document_tokens(texts) if texts else [])]


class MemoryModel(_Answering):
    """A model that answers from memories.

    Args:
      clara: the model.
      read_memories: memories [N, M, E] of N documents' token ids.
      settings: those of all systems.
      cramming: how memories are optimised for the condition `CRAMMED`; None where it is not asked.
    """

    conditions = (*MEMORY_CONDITIONS, CRAMMED)

    def __init__(
        self,
        clara: Clara,
        read_memories: Callable[[Sequence[np.ndarray]], np.ndarray],
        settings: Settings,
        cramming: Cramming | None = None,
    ):
        super().__init__(clara, settings)
        self.read_memories, self.cramming = read_memories, cramming
        self._others: dict[str, Mapping[str, Case]] = {}
        self._crammed: dict[str, np.ndarray] = {}  # memories [M, E] of texts: each is optimised once

    def given(self, condition: Condition, suite: Suite, cases: Sequence[Case]) -> Iterator[_Given]:
        """Yield the generator's input for each case."""
        documents = [case.documents for case in cases]
        if condition.name == OTHER_MEMORY:
            if suite.name not in self._others:
                self._others[suite.name] = other_cases(suite)
            others = self._others[suite.name]
            documents = [repeated(others[case.id].documents, len(case.documents)) for case in cases]
        memories = [self._memories(texts) for texts in documents]
        rankings = self._rankings(suite, cases, memories)
        orders = [None if ranking is None else ranking[0] for ranking in rankings]
        chosen = [self._chosen(condition, suite, case, order) for case, order in zip(cases, orders, strict=True)]
        arrays = [stored.array[list(rows)] for stored, rows in zip(memories, chosen, strict=True)]
        texts = [[all_texts[i] for i in rows] for all_texts, rows in zip(documents, chosen, strict=True)]
        if condition.name == CRAMMED.name:
            arrays = self._cram(texts, arrays)
        for case, array, shown, rows, ranking in zip(cases, arrays, texts, chosen, rankings, strict=True):
            if condition.name in (SHUFFLED, SHUFFLED_WITHIN):
                change = shuffled if condition.name == SHUFFLED else shuffled_within
                array = change(array, draws(case, self.settings.seed))
            request = self.request(suite, case, len(rows), array)
            window = self.window(case) if case.kind == "autoencode" else None
            counts = existing(array, self.tokenizer.memory_count).sum(axis=1)
            taken, kept = tuple(counts.tolist()), int(counts.sum()) * array.shape[2] * array.itemsize
            if condition.name == NO_MEMORY:
                yield _Given(_without_memory(request), (), (), 0, window=window)
            elif condition.name == OTHER_MEMORY:
                yield _Given(request, shown, taken, kept, window=window)
            else:
                ranks = ranking if condition.name == "clara" and ranking is not None else (None, None)
                yield _Given(request, shown, taken, kept, rows, *ranks, window=window)

    def _cram(self, texts: Sequence[Sequence[str]], memories: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return memories [K, M, E] of each case's texts, optimised from those that the compressor has made."""
        assert self.cramming is not None  # given wherever the condition is
        flat = dict(zip(chain.from_iterable(texts), chain.from_iterable(memories), strict=True))
        new = [text for text in flat if text not in self._crammed]
        if new:
            started = np.stack([flat[text] for text in new])
            found = cram(self.clara.bundle, self.cramming, new, started, self.clara.batch_size)
            self._crammed |= dict(zip(new, found, strict=True))
        return [np.stack([self._crammed[text] for text in of_case]) for of_case in texts]

    def _chosen(self, condition: Condition, suite: Suite, case: Case, order: tuple[int, ...] | None) -> tuple[int, ...]:
        if condition.name == "gold_memory":
            return gold(case)
        if condition.name == RANDOM_SELECTION:
            return random_selection(case, self.settings.k, self.settings.seed)
        return tuple(range(len(case.documents))) if order is None else order[: self.settings.k]

    def _rankings(
        self, suite: Suite, cases: Sequence[Case], memories: Sequence[Memories]
    ) -> list[tuple[tuple[int, ...], tuple[float, ...]] | None]:
        """Return (order, scores) of each case's candidates, None where nothing is ranked."""
        if not suite.ranked:
            return [None] * len(cases)
        ranking = self.clara.rank([case.question for case in cases], memories, max(map(len, memories)))
        return [
            (tuple(order[: len(candidates)].tolist()), tuple(scores[: len(candidates)].tolist()))
            for order, scores, candidates in zip(ranking.indices, ranking.scores, memories, strict=True)
        ]

    def _memories(self, documents: Sequence[str]) -> Memories:
        ids = self.tokenizer.encode_documents(documents)
        array = self.read_memories([np.array(sequence, np.int32) for sequence in ids])
        names = tuple(str(i) for i in range(len(documents)))
        return Memories(names, array, tuple(documents), self.clara.fingerprint)


class TextModel(_Answering):
    """A model that reads its documents as text.

    Args:
      clara: the model.
      order: ranks the documents of a suite's cases: by case id, best first.
      settings: those of all systems.
    """

    conditions = TEXT_CONDITIONS

    def __init__(self, clara: Clara, order: Callable[[Suite], Mapping[str, Sequence[int]]], settings: Settings):
        super().__init__(clara, settings)
        self._order, self._orders = order, dict[str, Mapping[str, Sequence[int]]]()
        self._kept: dict[str, list[int]] = {}  # the pruned tokens of a text: like a memory, made once

    def given(self, condition: Condition, suite: Suite, cases: Sequence[Case]) -> Iterator[_Given]:
        """Yield the generator's input for each case."""
        if suite.name not in self._orders:
            self._orders[suite.name] = self._order(suite)
        nothing = np.zeros((0, self.tokenizer.memory_tokens, self.clara.bundle.model.config.embed_dim), np.float32)
        chosen = [self._chosen(condition, suite, case) for case in cases]
        texts = [[case.documents[i] for i in rows] for case, rows in zip(cases, chosen, strict=True)]
        if condition.name == "text_pruned":
            self._prune(list(chain.from_iterable(texts)))
        for case, read, whole in zip(cases, chosen, texts, strict=True):
            shown = [self._shown(condition, text, ids) for text, ids in zip(whole, self.text_ids(whole), strict=True)]
            request = self.request(suite, case, [text for text, _ in shown], nothing)
            taken, kept = tuple(tokens for _, tokens in shown), sum(len(text.encode()) for text, _ in shown)
            yield _Given(request, whole, taken, kept, read)

    def _chosen(self, condition: Condition, suite: Suite, case: Case) -> tuple[int, ...]:
        order = tuple(self._orders[suite.name][case.id])
        if condition.name == "closed_book":
            return ()
        if condition.name == "text_oracle":
            return gold(case)
        if condition.name == "text_top1":
            return order[:1]
        return order[: self.settings.k] if suite.ranked else tuple(range(len(case.documents)))

    def _shown(self, condition: Condition, text: str, ids: list[int]) -> tuple[str, int]:
        """Return the part of a text that the prompt has, and its number of tokens."""
        kept = ids
        if condition.name == "text_truncated":
            budget = self.tokenizer.memories_of(self._frame + len(ids))
            kept = truncated(ids, budget, self.tokenizer.whole_characters(ids))
        elif condition.name == "text_pruned":
            kept = self._kept[text]
        whole = len(kept) == len(ids) and not self.tokenizer.is_cut(text)
        return text if whole else self.tokenizer.decode(kept), len(kept)

    def _prune(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        ids = self.text_ids(new)
        surprising = surprisals(self.clara.bundle, ids, self.clara.batch_size)
        self._kept |= {
            text: pruned(tokens, values, PRUNED_RATE, self.tokenizer.whole_characters(tokens))
            for text, tokens, values in zip(new, ids, surprising, strict=True)
        }


class Ranker:
    """A baseline that ranks candidates by given scores.

    Args:
      scores: of a suite's cases by id, float [D] each; equal ones keep the order of the candidates.
    """

    conditions = (RANK_CONDITION,)

    def __init__(self, scores: Callable[[Suite], Mapping[str, np.ndarray]]):
        self._make, self._scores = scores, dict[str, Mapping[str, np.ndarray]]()

    def order(self, suite: Suite) -> Mapping[str, tuple[int, ...]]:
        """Return the order of each case's documents, best first, by case id."""
        return {case: tuple(np.argsort(-scores, kind="stable").tolist()) for case, scores in self._of(suite).items()}

    def predict(
        self, condition: Condition, suite: Suite, cases: Sequence[Case], timed: bool = False
    ) -> list[Prediction]:
        """Return rankings, see `System.predict`; nothing is timed."""
        order, scores = self.order(suite), self._of(suite)
        return [
            Prediction(case.id, order=order[case.id], scores=tuple(float(scores[case.id][i]) for i in order[case.id]))
            for case in cases
        ]

    def _of(self, suite: Suite) -> Mapping[str, np.ndarray]:
        if suite.name not in self._scores:
            self._scores[suite.name] = self._make(suite)
        return self._scores[suite.name]


def retriever_scores(open_retriever: Callable[[Sequence[str]], Retriever]) -> Callable[[Suite], dict[str, np.ndarray]]:
    """Return the function that scores a suite's candidates with a retriever.

    The retriever indexes all documents of the suite, not those of a case alone: BM25 depends on how rare a word is.

    Args:
      open_retriever: indexes documents.
    """

    def scores(suite: Suite) -> dict[str, np.ndarray]:
        documents = list(dict.fromkeys(text for case in suite.cases for text in case.documents))
        place = {text: i for i, text in enumerate(documents)}
        found = open_retriever(documents).scores([case.question for case in suite.cases])
        return {
            case.id: np.asarray(scores)[[place[text] for text in case.documents]]
            for case, scores in zip(suite.cases, found, strict=True)
        }

    return scores


def random_scores(seed: int) -> Callable[[Suite], dict[str, np.ndarray]]:
    """Return the function that scores a suite's candidates at random, the control of all rankers."""
    return lambda suite: {case.id: draws(case, seed).random(len(case.documents)) for case in suite.cases}


def without_adapter(bundle: Bundle) -> Bundle:
    """Return the model with a generator adapter of zeros, whose generator is the base model."""
    lora = bundle.params["lora"]
    silent = jax.tree.map(jnp.zeros_like, lora["generator"])
    return dataclasses.replace(bundle, params={**bundle.params, "lora": {**lora, "generator": silent}})


def _without_memory(request: Request) -> Request:
    """Return the request without its memories; the text around them stays, as in held-out evaluation."""
    kept = [(token, index) for token, index in zip(request.ids, request.memory_index, strict=True) if index < 0]
    ids, index = zip(*kept, strict=True)
    return dataclasses.replace(request, ids=ids, memory_index=index, memories=request.memories[:0])
