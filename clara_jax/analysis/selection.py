"""Stability of the selection of documents: gaps between scores, and the effect of small changes on the selected set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from clara_jax.analysis.section import BLUE, GREY, ORANGE, draw, embed, legend, percent, section
from clara_jax.method.reranker import relevance_scores
from clara_jax.metrics.controls import half_away
from clara_jax.retrieval.encodings import MemoryEncoding

ENCODINGS = ("float16", "int8")
NOISE = 0.01  # standard deviation, in units of a score
DRAWS = 20
UNSELECTED = "an unselected candidate taken away (check)"
NOISY = f"normal noise of {NOISE:g} on each score ({DRAWS} draws)"
OTHER_QUESTION = "another question's memory in its place (control)"
RANDOM = f"a random choice (control, {DRAWS} draws)"
QUANTILES = (0.1, 0.5, 0.9)
CLOSE = (0.001, 0.01)


def score(queries: np.ndarray, documents: Sequence[np.ndarray], memory_count: str) -> list[np.ndarray]:
    """Return scores of each question's documents, float32 [D] each.

    Args:
      queries: [q, M, E].
      documents: [D, M, E] each, D at least 1.
      memory_count: see `clara_jax.method.reranker.score_vectors`.
    """
    pairs = zip(queries, documents, strict=True)
    return [np.asarray(relevance_scores(query[None], found[None], memory_count))[0] for query, found in pairs]


def best(scores: np.ndarray, k: int) -> frozenset[int]:
    """Return the k best of [D]; among equals the first."""
    return frozenset(np.argsort(-scores, kind="stable")[:k].tolist())


def overlaps(before: Sequence[np.ndarray], after: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Return the share of each question's k best that stay among them, float [q]; 1 where the set is the same."""
    return np.array([len(best(a, k) & best(b, k)) / k for a, b in zip(before, after, strict=True)])


def stored(documents: Sequence[np.ndarray], encoding: str) -> list[np.ndarray]:
    """Return memories [D, M, E] as they are read back from a store."""
    form = MemoryEncoding(encoding, *documents[0].shape[1:])
    return [form.decode(form.encode(memories)) for memories in documents]


def gaps(scores: Sequence[np.ndarray], k: int) -> dict[int, np.ndarray]:
    """Return the gaps between neighbouring scores.

    Args:
      scores: [D] of each question, D above k.
      k: the number of documents that are selected.

    Returns:
      by place of the first of the two: 1 and k, s_(1) - s_(2) and s_(k) - s_(k+1) of the questions, float [q]; 0, those
      of all neighbours of all questions.
    """
    steps = [-np.diff(-np.sort(-values)) for values in scores]
    at = {place: np.array([gap[place - 1] for gap in steps]) for place in (1, k)}
    return {**at, 0: np.concatenate(steps)}


def gaps_section(found: Mapping[int, np.ndarray], k: int) -> dict[str, Any]:
    """Return the section of a report on `gaps`."""
    labels = {place: f"s({place}) - s({place + 1})" if place else "all neighbours (control)" for place in found}
    columns = ["gap", "gaps", *(f"{100 * q:g} % quantile" for q in QUANTILES), *(f"share below {x:g}" for x in CLOSE)]
    rows = [
        [labels[place], len(values), *np.quantile(values, QUANTILES), *(np.mean(values < x) for x in CLOSE)]
        for place, values in found.items()
    ]
    middle = {place: float(np.median(values)) for place, values in found.items()}
    close = float(np.mean(found[k] < CLOSE[0]))
    text = (
        f"Differences of scores, medians. The best candidate leads the second by {middle[1]:.4f}, the last selected "
        f"one (rank {k}) the first that is not by {middle[k]:.4f}; any two neighbours lie {middle[0]:.4f} apart. For "
        f"{percent(close)} of the questions the selection hangs on less than {CLOSE[0]:g}."
    )
    figure, (panel,) = draw(1)
    for (place, values), colour in zip(found.items(), (BLUE, ORANGE, GREY)[-len(found) :], strict=True):
        panel.ecdf(values, color=colour, label=labels[place])
    panel.set_xlabel("gap")
    panel.set_ylabel("share of gaps below")
    legend(panel)
    return section("Gaps between scores", text, columns, rows, embed(figure))


def stability(
    queries: np.ndarray, documents: Sequence[np.ndarray], k: int, seed: int, memory_count: str
) -> dict[str, np.ndarray]:
    """Return `overlaps` by the change, float [q] or several draws [draws, q].

    Args:
      queries: [q, M, E].
      documents: [D, M, E] of each question, D above k.
      k: the number of documents that are selected.
      seed: of all random draws.
      memory_count: see `score`.
    """
    rng, scored = np.random.default_rng(seed), partial(score, memory_count=memory_count)
    scores = scored(queries, documents)

    def drawn(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.array([overlaps(scores, [change(values) for values in scores], k) for _ in range(DRAWS)])

    kept = [np.delete(np.arange(len(x)), rng.choice(np.argsort(-x, kind="stable")[k:])) for x in scores]
    fewer = [np.full(len(values), -np.inf) for values in scores]
    left = scored(queries, [memories[rows] for memories, rows in zip(documents, kept, strict=True)])
    for reduced, rows, values in zip(fewer, kept, left, strict=True):
        reduced[rows] = values
    found = {
        f"memories stored as {name}": overlaps(scores, scored(queries, stored(documents, name)), k)
        for name in ENCODINGS
    }
    found[UNSELECTED] = overlaps(scores, fewer, k)
    found[NOISY] = drawn(lambda values: values + rng.normal(0, NOISE, len(values)))
    if len(queries) > 1:
        found[OTHER_QUESTION] = overlaps(scores, scored(queries[half_away(len(queries))], documents), k)
    found[RANDOM] = drawn(lambda values: rng.random(len(values)))
    return found


def stability_section(found: Mapping[str, np.ndarray], k: int) -> dict[str, Any]:
    """Return the section of a report on `stability`."""
    changes = {name: float(np.mean(values < 1)) for name, values in found.items()}
    rows = [[name, found[name].shape[-1], share, found[name].mean()] for name, share in changes.items()]
    text = (
        f"Of questions with more than {k} candidates, how often the set of the best {k} becomes another one when one "
        f"thing is changed, and how much of it stays on average. Stored in one byte a number, memories change it for "
        f"{percent(changes['memories stored as int8'])} of the questions, noise of {NOISE:g} on the scores for "
        f"{percent(changes[NOISY])}; a random choice is another set for {percent(changes[RANDOM])}. "
    )
    text += (
        "As it must be, nothing changes when a candidate goes that was not selected."
        if not changes[UNSELECTED]
        else "The check fails: the set changes when a candidate goes that was not selected."
    )
    columns = ["changed", "questions", "share with another set", "share of the set that stays"]
    return section("Stability of the selection", text, columns, rows)
