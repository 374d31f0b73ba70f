"""The part of a report that is called "inside": all analyses of a model's internals, on cases that suites have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from clara_jax.analysis import attention_to_memory, geometry, lens, selection
from clara_jax.api import Clara
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline import prompts
from clara_jax.memory_count import PROPORTIONAL, existing
from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import gold, other_cases, repeated

ATTENDED = 32  # questions whose attention is analyzed: their prompts run through the model twice
DOCUMENTS = 200  # documents whose states are analyzed, at most

Read = Callable[[Sequence[np.ndarray]], np.ndarray]


def analyze(
    clara: Clara, suites: Sequence[Suite], limit: int, seed: int, k: int = 5, read: Read | None = None
) -> dict[str, dict[str, Any]]:
    """Analyze a model on cases of suites.

    Args:
      clara: the model.
      suites: questions are taken from those that are ranked, or where there are none, from all; documents from the
        questions, or where there are none, from those that are paraphrased.
      limit: the number of questions, and of documents, at least 1. Slow analyses use fewer.
      seed: of all random draws: cases, documents of controls, noise.
      k: documents that the generator reads of ranked ones.
      read: memories [N, M, E] of N documents' token ids, where they were made before. By default the questions'
        documents are compressed here, which takes longer than all else together.

    Returns:
      sections (see `section`) by name: "lens", "lens_examples", "geometry", "attention", "gaps" and "selection", as far
      as there are cases for them.

    Raises:
      ClaraError: a limit below 1; suites without any case.
    """
    if limit < 1:
        raise ClaraError(f"limit is {limit}; it must be at least 1")
    ranked, cases = pick_cases(suites, limit, seed)
    documents = pick_documents(cases, suites, min(limit, DOCUMENTS), seed)
    if not documents:
        raise ClaraError("there are no cases to look at")
    queries = clara.encode_questions([case.question for case in cases]) if cases else np.zeros(0)
    sections = _documents_and_questions(clara, cases, queries, documents, seed)
    if cases:
        memories = _memories(clara, cases, read)
        count = clara.bundle.model.clara.memory_count
        scores = selection.score(queries, memories, count)
        sections |= _attention(clara, ranked, cases, memories, scores, k, seed)
        if ranked:
            sections |= _selection(queries, memories, k, seed, count)
    return sections


def pick_cases(suites: Sequence[Suite], limit: int, seed: int) -> tuple[bool, list[Case]]:
    """Return distinct questions, from the suites in turn.

    Of a suite those are taken whose right documents are known, where there are any.

    Returns:
      whether they are of ranked suites; the cases, their ids made different by the suite's name.
    """
    asked = [suite for suite in suites if suite.kind == "question"]
    ranked = any(suite.ranked for suite in asked)
    rows = []
    for number, suite in enumerate(suite for suite in asked if suite.ranked == ranked):
        named = [dataclasses.replace(case, id=f"{suite.name}/{case.id}") for case in suite.cases]
        known = [case for case in named if gold(case)] or named
        rows.append([known[i] for i in np.random.default_rng((seed, number)).permutation(len(known))])
    found: dict[str, Case] = {}
    for case in (case for turn in zip_longest(*rows) for case in turn if case is not None):
        found.setdefault(case.question, case)
    return ranked, list(found.values())[:limit]


def pick_documents(cases: Sequence[Case], suites: Sequence[Suite], limit: int, seed: int) -> list[str]:
    """Return distinct documents: the cases' right ones first, then others of theirs at random.

    Without cases, those of the suites, at random.
    """
    rng = np.random.default_rng(seed)
    first = [case.documents[i] for case in cases for i in gold(case)]
    rest = [text for case in cases or (case for suite in suites for case in suite.cases) for text in case.documents]
    return list(dict.fromkeys([*first, *(rest[i] for i in rng.permutation(len(rest)))]))[:limit]


def _memories(clara: Clara, cases: Sequence[Case], read: Read | None) -> list[np.ndarray]:
    """Return the memories of each case's documents, [D, M, E]; long ones are cut, and equal ones read once."""
    unique = list(dict.fromkeys(text for case in cases for text in case.documents))
    if read is None:
        array = clara.compress(unique, long="cut").array
    else:
        array = read([np.array(ids, np.int32) for ids in clara.bundle.tokenizer.encode_documents(unique)])
    place = {text: number for number, text in enumerate(unique)}
    return [array[[place[text] for text in case.documents]] for case in cases]


def _documents_and_questions(
    clara: Clara, cases: Sequence[Case], queries: np.ndarray, documents: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Return the sections of the logit lens and of the geometry."""
    bundle, size = clara.bundle, clara.batch_size
    states, texts = geometry.document_states(bundle, documents, size)
    words = lens.vocabulary_words(bundle.tokenizer)
    vocabulary = frozenset(words) - {""}

    def decoded_words(memories: np.ndarray) -> list[list[str]]:
        there = existing(memories, PROPORTIONAL)
        pairs = zip(lens.top_tokens(bundle, memories, size), there, strict=True)
        return [lens.read_words(tokens[which], words) for tokens, which in pairs]

    decoded = decoded_words(states)
    known = [number for number, case in enumerate(cases) if gold(case)]
    asked, answered = [cases[i] for i in known], decoded_words(queries[known]) if known else []
    questions = lens.question_shares(asked, list(map(frozenset, answered)), vocabulary, seed) if known else {}
    of_documents = lens.document_shares(documents, list(map(frozenset, decoded)), vocabulary, seed)
    right = ["\n".join(case.documents[i] for i in gold(case)) for case in asked]
    sections = {
        "lens": lens.lens_section(questions, of_documents, seed),
        "lens_examples": lens.examples_section(
            list(zip([case.question for case in asked], answered, right, strict=True)),
            list(zip(documents, decoded, strict=True)),
            vocabulary,
        ),
    }
    if len(documents) >= geometry.LEAST:
        sections["geometry"] = geometry.geometry_section(states, texts, seed, bundle.model.clara.memory_count)
    return sections


def _attention(
    clara: Clara,
    ranked: bool,
    cases: Sequence[Case],
    memories: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    k: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the section of attention; questions whose prompts are longer than the model reads are left out."""
    bundle = clara.bundle
    orders = [np.argsort(-values, kind="stable")[:k] if ranked else np.arange(len(values)) for values in scores]
    asked = [prompts.question(case.question, len(order)) for case, order in zip(cases, orders, strict=True)]
    fits = [i for i, one in enumerate(bundle.tokenizer.encode_prompts(asked)) if not one.cut][:ATTENDED]
    if not fits:
        return {}
    cases, orders = [cases[i] for i in fits], [orders[i] for i in fits]
    chosen = [memories[i][order] for i, order in zip(fits, orders, strict=True)]
    right = np.zeros((len(fits), max(map(len, orders))), bool)
    for row, (case, order) in enumerate(zip(cases, orders, strict=True)):
        right[row, : len(order)] = np.isin(order, gold(case))
    questions = [case.question for case in cases]
    shares = attention_to_memory.attention_shares(bundle, questions, chosen, clara.batch_size)
    others = other_cases(Suite("look", ranked, tuple(cases)))
    control = None
    if len(others) == len(cases):
        by_case = {case.id: array for case, array in zip(cases, chosen, strict=True)}
        exchanged = [np.stack(repeated(list(by_case[others[c.id].id]), len(by_case[c.id]))) for c in cases]
        control = attention_to_memory.attention_shares(bundle, questions, exchanged, clara.batch_size)
    return {"attention": attention_to_memory.attention_section(shares, control, right, seed)}


def _selection(
    queries: np.ndarray, memories: Sequence[np.ndarray], k: int, seed: int, memory_count: str
) -> dict[str, dict[str, Any]]:
    """Return the sections of the selection; questions with k candidates or fewer are left out."""
    enough = [number for number, candidates in enumerate(memories) if len(candidates) > k]
    if not enough:
        return {}
    queries, memories = queries[enough], [memories[i] for i in enough]
    found = selection.stability(queries, memories, k, seed, memory_count)
    return {
        "gaps": selection.gaps_section(selection.gaps(selection.score(queries, memories, memory_count), k), k),
        "selection": selection.stability_section(found, k),
    }
