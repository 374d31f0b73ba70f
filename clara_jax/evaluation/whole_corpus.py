"""Search of a whole corpus: how often the passage that answers a question is among the first of a store.

A ranked suite gives each question a few candidates; here every chunk of a document store is one. A passage counts as
found at depth k where one of its chunks is among the k best. Results are written as they come, into a file for each
search, so that work that was stopped is continued:

    DIR/corpus.json            what was asked, of which store
    DIR/searches/memory.jsonl  a `Found` for each question
    DIR/results.json           what came of it
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import ResultFile
from clara_jax.evaluation.runner import claimed
from clara_jax.evaluation.scoring import plain
from clara_jax.evaluation.tables import aligned, amount, chance, change, interval
from clara_jax.files import replaced_when_whole
from clara_jax.formats.json_file import read_object
from clara_jax.inference.decode import Sampling
from clara_jax.inference.memory_store import document_key
from clara_jax.metrics.answers import exact_match, token_f1
from clara_jax.metrics.bootstrap import Bootstrap
from clara_jax.metrics.cases import CorpusQuestion
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.text.documents import text_id

FORMAT = 2  # 1 knew neither the model nor the store's content
PLAN, SEARCHES, RESULTS = "corpus.json", "searches", "results.json"
TOGETHER = 32  # questions that are encoded at a time, and written; the most that a kill loses
_LOOKED_UP = 512  # documents of a look into the store
_NAMED = 5  # questions that are left out, in the table; all of them are in the file
_ROWS = 8192  # of the store that are read at a time


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search has found for a question.

    Attributes:
      case: the question's id.
      ranks: of each passage that answers it the rank of its best chunk, from 1; None where no chunk of it is among
        those that were looked at.
      milliseconds: of the search alone; the question was encoded before.
      answer: what the model answers from the first chunks; None where it was not asked.
    """

    case: str
    ranks: tuple[int | None, ...]
    milliseconds: float
    answer: str | None = None

    @classmethod
    def from_json(cls, fields: object) -> Found:
        """Return the result of a decoded line.

        Raises:
          TypeError: the fields are not those of a result.
        """
        if not isinstance(fields, Mapping) or not isinstance(fields.get("case"), str):
            raise TypeError("a result names its question")
        ranks = fields.get("ranks")
        if not isinstance(ranks, list) or not all(rank is None or (type(rank) is int and rank > 0) for rank in ranks):
            raise TypeError("ranks are whole numbers from 1")
        if not isinstance(fields.get("milliseconds"), int | float) or not isinstance(fields.get("answer"), str | None):
            raise TypeError("a time is a number, an answer a text")
        return cls(**{**fields, "ranks": tuple(ranks)})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a measurement of a store depends on, beside the store.

    Attributes:
      depths: the k of Recall@k, ascending.
      ann: whether search vectors are asked first; None: where the memories do not fit (`clara_jax.retrieval.search`).
      answers: whether questions are answered from what each search has found.
      k: chunks that an answer is given from; None: as many as the model was trained with.
      max_new_tokens: of an answer.
    """

    depths: tuple[int, ...]
    ann: bool | None = None
    answers: bool = False
    k: int | None = None
    max_new_tokens: int = 16

    def __post_init__(self):
        if not self.depths or min(self.depths) < 1 or self.max_new_tokens < 1 or (self.k is not None and self.k < 1):
            raise ClaraError("depths, k and max_new_tokens must be at least 1")


def measure(
    pipeline: RagPipeline,
    questions: Sequence[CorpusQuestion],
    searches: Sequence[str],
    settings: Settings,
    directory: Path,
    seed: int = 0,
    resamples: int = 2000,
    progress: bool = True,
) -> dict[str, Any]:
    """Search a store for every question, and return how often what answers it was found.

    Args:
      pipeline: the model and the store.
      questions: at least one of which has its passages in the store; the others are left out, and counted.
      searches: of `clara_jax.retrieval.search.HOW`, each once.
      settings: what results depend on.
      directory: where results are written, and found again.
      seed: of the bootstrap.
      resamples: likewise.
      progress: whether a bar is shown.

    Returns:
      {"store", "chunks", "questions", "left_out" (how many), "lacking" (their ids), "searches": {name: {"recall@k",
      "mrr", "exact_match", "f1"}}, ...}, each metric with its 95% interval, those of the others than the first search
      with the paired difference to it.

    Raises:
      ClaraError: no passage is in the store; the directory holds results of other questions, of another model, or of
        another store, or of one that has changed, be it meanwhile; it cannot be written.
    """
    passages = _located(pipeline, questions)
    known = [(question, found) for question, found in zip(questions, passages, strict=True) if found is not None]
    lacking = [question.id for question, found in zip(questions, passages, strict=True) if found is None]
    if not known:
        raise ClaraError(
            f"{pipeline.store.location}: holds the passages of none of the {len(questions):,} questions; add them with "
            "python -m clara_jax.compress, under the ids that the questions name"
        )
    with claimed(directory):
        asked, plan = [question for question, _ in known], directory / PLAN
        if plan.exists():
            _check_plan(plan, _plan(pipeline, asked, settings))
        else:
            with replaced_when_whole(plan) as temporary:
                temporary.write_text(json.dumps(_plan(pipeline, asked, settings), indent=1) + "\n", encoding="utf-8")
        files = {how: ResultFile(directory / SEARCHES / f"{how}.jsonl", Found.from_json, "result") for how in searches}
        left = {how: [one for one in known if one[0].id not in file.results] for how, file in files.items()}
        total, todo = len(known) * len(searches), sum(map(len, left.values()))
        with tqdm(total=total, initial=total - todo, unit=" searches", disable=not progress) as bar:
            for start in range(0, len(known), TOGETHER):
                part = known[start : start + TOGETHER]
                missing = {how: [one for one in part if one[0].id not in files[how].results] for how in searches}
                queries = _encoded(pipeline, [one for how, some in missing.items() if how != "words" for one in some])
                for how, some in missing.items():
                    bar.set_description(how)
                    if some:
                        files[how].append(_search(pipeline, some, queries, how, settings))
                    bar.update(len(some))
        _check_plan(plan, _plan(pipeline, asked, settings))  # whether the store has changed meanwhile
        found = {how: [file.results[question.id] for question in asked] for how, file in files.items()}
        results = _summary(asked, found, settings, Bootstrap(len(known), resamples, seed))
        about = {"store": pipeline.store.location, "chunks": len(pipeline.store), "questions": len(known)}
        results = plain({**about, "left_out": len(lacking), "lacking": lacking, "searches": results})
        with replaced_when_whole(directory / RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _located(pipeline: RagPipeline, questions: Sequence[CorpusQuestion]) -> list[tuple[frozenset[str], ...] | None]:
    """Return the ids of the chunks of each passage that answers a question; None where one is not in the store.

    A text is the document whose id is its hash, as ``python -m clara_jax.data documents`` names it, whatever chunks it
    was cut into; else it is a chunk with the same tokens.
    """
    store, tokenizer = pipeline.store, pipeline.clara.bundle.tokenizer
    texts = list(dict.fromkeys(itertools.chain.from_iterable(question.texts for question in questions)))
    named = itertools.chain.from_iterable(question.documents for question in questions)
    documents = list(dict.fromkeys([*named, *map(text_id, texts)]))
    chunks: dict[str, frozenset[str]] = {}
    with store.reading():
        for start in range(0, len(documents), _LOOKED_UP):
            found = store.known(documents[start : start + _LOOKED_UP])
            chunks |= {document: frozenset(ids) for document, ids in found.items()}
        of_key: dict[bytes, set[str]] = {}
        if texts:
            for chunk, key in zip(*store.index(), strict=True):
                of_key.setdefault(key, set()).add(chunk)
    keys = [document_key(np.asarray(ids, np.int32)) for ids in tokenizer.encode_documents(texts)] if texts else []
    of_text = {text: frozenset(of_key[key]) for text, key in zip(texts, keys, strict=True) if key in of_key}
    of_text |= {text: chunks[name] for text in texts if (name := text_id(text)) in chunks}
    located: list[tuple[frozenset[str], ...] | None] = []
    for question in questions:
        found = [chunks.get(document) for document in question.documents]
        found += [of_text.get(text) for text in question.texts]
        located.append(None if None in found else tuple(one for one in found if one is not None))
    return located


def _plan(pipeline: RagPipeline, questions: Sequence[CorpusQuestion], settings: Settings) -> dict[str, Any]:
    """Return what is asked of which model and which store, as JSON has it."""
    store = pipeline.store
    plan = {
        "format": FORMAT,
        "model": pipeline.clara.bundle.fingerprint(),  # models of one compressor share stores, and search otherwise
        "store": {"fingerprint": store.fingerprint, "encoding": store.encoding.name, "content": _content(store)},
        "settings": dataclasses.asdict(settings),
        "questions": [question.fields() for question in questions],
    }
    return json.loads(json.dumps(plan))


def _check_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Check that a plan is the one that a file holds."""
    before = read_object(path, "name another --report")
    for name, value in plan.items():
        if before.get(name) != value:
            raise ClaraError(f"{path}: {name} is not what it was; results would be mixed up: name another --report")


def _content(store: DocumentStore) -> str:
    """Return a hash of the ids and keys of all chunks, whatever their order."""
    total = 0
    for rows in store.rows(["id", "key"], _ROWS):
        for name, key in zip(rows["id"].to_pylist(), rows["key"].to_pylist(), strict=True):
            digest = hashlib.blake2b(key + name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            total += int.from_bytes(digest)
    return f"{total % 2**128:032x}"


def _encoded(
    pipeline: RagPipeline, asked: Sequence[tuple[CorpusQuestion, tuple[frozenset[str], ...]]]
) -> dict[str, np.ndarray]:
    """Return the encodings [M, E] of questions by their ids."""
    texts = {question.id: question.question for question, _ in asked}
    return dict(zip(texts, pipeline.clara.encode_questions(list(texts.values())), strict=True)) if texts else {}


def _search(
    pipeline: RagPipeline,
    asked: Sequence[tuple[CorpusQuestion, tuple[frozenset[str], ...]]],
    queries: Mapping[str, np.ndarray],
    how: str,
    settings: Settings,
) -> list[Found]:
    results = []
    for question, passages in asked:
        began = time.perf_counter()
        query = queries.get(question.id)
        best = pipeline.retriever(question.question, query, settings.depths[-1], how, ann=settings.ann)
        milliseconds = 1000 * (time.perf_counter() - began)
        rank = {found.id: place for place, found in enumerate(best, 1)}
        ranks = tuple(min((rank[chunk] for chunk in passage if chunk in rank), default=None) for passage in passages)
        results.append(Found(question.id, ranks, milliseconds))
    if settings.answers:
        sampling = Sampling(settings.max_new_tokens)
        contexts = [pipeline.ask(question.question, how=how, k=settings.k, sampling=sampling) for question, _ in asked]
        answers = [answer.text or "" for answer in pipeline.answers(contexts)]
        results = [dataclasses.replace(one, answer=text) for one, text in zip(results, answers, strict=True)]
    return results


def _summary(
    questions: Sequence[CorpusQuestion], found: Mapping[str, Sequence[Found]], settings: Settings, draws: Bootstrap
) -> dict[str, Any]:
    """Return the metrics of each search, with intervals, and differences to the first of them."""
    values = {how: _values(questions, some, settings) for how, some in found.items()}
    first, summary = next(iter(values)), {}
    for how, metrics in values.items():
        summary[how] = {}
        for name, numbers in metrics.items():
            row = dataclasses.asdict(draws.mean(numbers))
            if how != first:
                row["difference"] = dataclasses.asdict(draws.difference(numbers, values[first][name]))
            summary[how][name] = row
        times = [one.milliseconds for one in found[how]]
        summary[how]["milliseconds"] = {f"p{share}": float(np.percentile(times, share)) for share in (50, 95)}
    return summary


def _values(questions: Sequence[CorpusQuestion], found: Sequence[Found], settings: Settings) -> dict[str, np.ndarray]:
    """Return the metrics of single questions [n] by name; NaN where one has no reference."""
    values = {
        f"recall@{k}": np.array([np.mean([r is not None and r <= k for r in one.ranks]) for one in found], float)
        for k in settings.depths
    }
    best = [min((rank for rank in one.ranks if rank is not None), default=None) for one in found]
    values["mrr"] = np.array([0.0 if rank is None else 1 / rank for rank in best])
    if settings.answers:
        for name, metric in (("exact_match", exact_match), ("f1", token_f1)):
            values[name] = np.array(
                [
                    metric(one.answer or "", question.references) if question.references else np.nan
                    for question, one in zip(questions, found, strict=True)
                ]
            )
    return values


def text(results: Mapping[str, Any]) -> str:
    """Return the results as a table of text."""
    searches, rows = results["searches"], []
    first = next(iter(searches))
    for how, metrics in searches.items():
        for name, row in metrics.items():
            if name == "milliseconds":
                continue
            difference = row.get("difference")
            beside = ["", "", ""]
            if difference is not None:
                beside = [change(difference, "share"), interval(difference, "share"), chance(difference["p"])]
            rows.append([how, name, amount(row["mean"], "share"), interval(row, "share"), *beside])
    head = ["search", "metric", "%", "95% interval", f"more than {first}", "95% interval", "p"]
    times = ", ".join(
        f"{how} {metrics['milliseconds']['p50']:,.0f} (p95 {metrics['milliseconds']['p95']:,.0f})"
        for how, metrics in searches.items()
    )
    left = ""
    if results["left_out"]:
        named = ", ".join(results["lacking"][:_NAMED]) + (", ..." if results["left_out"] > _NAMED else "")
        left = f"; {results['left_out']:,} are left out, as the store lacks a passage: {named}"
    about = f"{results['questions']:,} questions to {results['chunks']:,} chunks{left}"
    return "\n".join([about, aligned(head, rows), f"milliseconds of a search, p50: {times}"])
