"""What an evaluation has found, as one piece of JSON (docs/evaluation.md): every system's numbers with their intervals,
its difference from the model it is to be compared with, whether memories are used, and what was answered.

Nothing in it depends on when or in how many goes the outcomes came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from clara_jax.evaluation.cases import Case, Suite
from clara_jax.evaluation.intervals import Bootstrap
from clara_jax.evaluation.measures import MAIN, Measures, plain
from clara_jax.evaluation.outcomes import Outcome
from clara_jax.evaluation.scoring import METRICS
from clara_jax.evaluation.ways import REMEMBERING, WAYS, gold

FORMAT = 1
CLARA = "clara"  # the way that all others of a model are compared with
NONE = "no_memory"
MISUSES = (NONE, "other_memory")  # controls that a model which reads its memories must beat
# Differences are of these alone: each takes a bootstrap of its own, and `compare` has them all.
COMPARED = (
    *("exact_match", "f1", "cover_match", "followed", "tokens_right", "windows_right"),
    *("rouge1", "rougeL", "names_kept", "numbers_kept"),
    *("recall@1", "recall@3", "recall@5", "mrr"),
)
GROUPED = ("f1", "exact_match", "cover_match", "followed", "tokens_right", "rougeL")  # what is broken down by tags
NORMALISED = ("f1", "exact_match", "rougeL")
SHOWN = 600  # characters of a text that an example shows


def build(
    plan: Mapping[str, Any],
    suites: Sequence[Suite],
    outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]],
    seed: int = 0,
    examples: int = 4,
    resamples: int = 2000,
) -> dict[str, Any]:
    """The report.

    A system is compared with its model's own way `CLARA`, on the cases that both have; that way itself, and systems
    whose model has none, with those of all models.

    Args:
      plan: what took part and how; it is taken over, numbers that are not finite as None.
      outcomes: by suite and system, "<model>/<way>" or "rank/<name>". Models are shown in the order in which they come,
        ways in that of `WAYS`.
      seed, resamples: of the bootstrap.
      examples: of each kind and suite, at most.

    Returns:
      {"format", "seed", "resamples", "level", "plan", "metrics", "suites", "uses_memory"}. Whatever is a statistic is
      {"mean", "low", "high", "n"}, of differences with "p"; metrics that no case has are left out. A mean among
      "normalised" is None where the text is no better than nothing.

    Raises:
      ClaraError: an outcome does not go with its case.
    """
    bootstraps: dict[int, Bootstrap] = {}
    parts = []
    for suite in suites:
        own = {system: found for system, found in outcomes.get(suite.name, {}).items() if found}
        if own:
            count = len(suite.cases)
            if count not in bootstraps:
                bootstraps[count] = Bootstrap(count, resamples, seed)
            parts.append(_suite(suite, Measures(suite, own, bootstraps[count]), examples))
    return {
        "format": FORMAT,
        "seed": seed,
        "resamples": resamples,
        "level": next(iter(bootstraps.values())).level if bootstraps else None,
        "plan": plain(plan),
        "metrics": {
            name: {"title": own.title, "unit": own.unit, "higher_is_better": own.higher_is_better}
            for name, own in METRICS.items()
            if own.kind != "part"
        },
        "suites": parts,
        "uses_memory": _uses_memory(parts),
    }


def model_of(system: str) -> str:
    """The model's name."""
    return system.partition("/")[0]


def way_of(system: str) -> str:
    """The way's name; of a ranker its own."""
    return system.partition("/")[2]


def is_control(system: str) -> bool:
    """Whether it is there to be worse than its model, or than other rankers."""
    return system == "rank/random" or (way_of(system) in WAYS and WAYS[way_of(system)].control)


def in_order(systems: Iterable[str]) -> list[str]:
    """Models in the order in which they come, the ways of each in that of `WAYS`, so that controls follow what they
    control."""
    systems, ways = list(systems), list(WAYS)
    models = _models(systems)

    def place(system: str) -> tuple[int, int, bool]:
        way = way_of(system)
        return models.index(model_of(system)), ways.index(way) if way in WAYS else len(ways), is_control(system)

    return sorted(systems, key=place)


def _suite(suite: Suite, measures: Measures, examples: int) -> dict[str, Any]:
    systems = in_order(measures.outcomes)
    return {
        "name": suite.name,
        "kind": suite.kind,
        "ranked": suite.ranked,
        "main": MAIN[suite.kind],
        "cases": len(suite.cases),
        "digest": suite.digest(),
        "systems": [_system(suite, measures, system, systems) for system in systems],
        "examples": _examples(suite, measures, systems, examples),
    }


def _system(suite: Suite, measures: Measures, system: str, systems: Sequence[str]) -> dict[str, Any]:
    return {
        "name": system,
        "model": model_of(system),
        "way": way_of(system),
        "control": is_control(system),
        "cases": len(measures.outcomes[system]),
        "metrics": measures.means(system),
        "differences": [
            {"to": other, "metrics": measures.differences(system, other, COMPARED)}
            for other in _standards(system, systems)
        ],
        "normalised": _normalised(measures, system, systems),
        "followed_with": _followed_with(measures, system, systems),
        "groups": [
            {"tags": tags, "cases": int(among.sum()), "metrics": measures.means(system, GROUPED, among)}
            for tags, among in _groups(suite)
        ],
    }


def teachers(system: str, systems: Iterable[str]) -> list[str]:
    """What reads as text what a system reads as memories: of each model that reads text the k best or all documents,
    else, and for what is given the right ones alone, these."""
    systems = list(systems)
    if way_of(system) not in REMEMBERING or way_of(system) == NONE:
        return []
    wanted = ("text_oracle",) if way_of(system) == "gold_memory" else ("text_topk", "text_oracle")
    options = [[f"{model}/{way}" for way in wanted if f"{model}/{way}" in systems] for model in _models(systems)]
    return [names[0] for names in options if names]


def _normalised(measures: Measures, system: str, systems: Sequence[str]) -> list[dict[str, Any]]:
    none = f"{model_of(system)}/{NONE}"
    if none not in systems:
        return []
    found = [
        {"to": text, "none": none, "metrics": measures.normalised(system, none, text, NORMALISED)}
        for text in teachers(system, systems)
    ]
    return [own for own in found if own["metrics"]]


def _followed_with(measures: Measures, system: str, systems: Sequence[str]) -> list[dict[str, Any]]:
    found = [(text, measures.followed_with(system, text)) for text in teachers(system, systems)]
    return [{"to": text, "share": share} for text, share in found if share is not None]


def _models(systems: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(model_of, systems)))


def _standards(system: str, systems: Sequence[str]) -> list[str]:
    """What a system is compared with."""
    own = f"{model_of(system)}/{CLARA}"
    if own in systems and own != system:
        return [own]
    return [other for other in systems if way_of(other) == CLARA and other != system]


def _groups(suite: Suite) -> list[tuple[dict[str, str], np.ndarray]]:
    """Tags, and which cases have them: each tag alone, and each two of them."""
    names = list(dict.fromkeys(name for case in suite.cases for name in case.tags))
    found = []
    for chosen in [*((name,) for name in names), *combinations(names, 2)]:
        values = [tuple(case.tags.get(name) for name in chosen) for case in suite.cases]
        for group in dict.fromkeys(own for own in values if None not in own):
            among = np.array([own == group for own in values])
            found.append((dict(zip(chosen, group, strict=True)), among))
    return found


def _uses_memory(suites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By model: {"verdict": "yes", "partly", "no" or "unknown", "says", "suites"}."""
    models = dict.fromkeys(system["model"] for suite in suites for system in suite["systems"] if system["way"] == CLARA)
    return {model: _verdict([found for suite in suites if (found := _beaten(suite, model))]) for model in models}


def _beaten(suite: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    """What the model is worth in a suite, and by how much it beats its controls there."""
    main = suite["main"]
    systems = {system["name"]: system for system in suite["systems"]}
    own = systems.get(f"{model}/{CLARA}")
    if own is None or main not in own["metrics"]:
        return None
    beats = {}
    for way in MISUSES:
        for difference in systems.get(f"{model}/{way}", {"differences": []})["differences"]:
            if main in difference["metrics"]:
                beats[way] = _negated(difference["metrics"][main])
    known = len(beats) == len(MISUSES) and all(own["low"] is not None for own in beats.values())
    return {
        "suite": suite["name"],
        "metric": main,
        CLARA: own["metrics"][main],
        "beats": beats,
        "used": all(own["low"] > 0 for own in beats.values()) if known else None,
    }


def _negated(difference: Mapping[str, Any]) -> dict[str, Any]:
    turned = {"mean": difference["mean"], "low": difference["high"], "high": difference["low"]}
    return {
        **{name: None if value is None else 0.0 - value for name, value in turned.items()},
        "n": difference["n"],
        "p": difference["p"],
    }


def _verdict(suites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [suite["used"] for suite in suites if suite["used"] is not None]
    used, count = sum(known), len(known)
    of = f"{count} suite{'s' if count != 1 else ''}"
    if not known:
        verdict, says = "unknown", "not known, as its controls were not asked"
    elif used == count:
        verdict, says = "yes", f"yes, in {'all ' * (count > 1)}{of}"
    elif used:
        verdict, says = "partly", f"in {used} of {of}"
    else:
        verdict, says = "no", f"not shown in {'any of ' * (count > 1)}{of}"
    return {"verdict": verdict, "says": says, "suites": list(suites)}


def _examples(suite: Suite, measures: Measures, systems: Sequence[str], count: int) -> dict[str, Any] | None:
    """Cases in which the best model's answer is as good as any and most above the others, and those in which it is
    most below the best of them."""
    main = MAIN[suite.kind]
    means = {system: measures.means(system, (main,)).get(main) for system in systems}
    best = max(
        (system for system in systems if way_of(system) == CLARA and means[system]),
        key=lambda system: means[system]["mean"],
        default=None,
    )
    if best is None:
        return None
    others = [system for system in systems if model_of(system) != "rank" and system != best]
    ahead = {}
    for place in range(len(suite.cases)):
        own = measures.value(best, main, place)
        values = [value for other in others if not np.isnan(value := measures.value(other, main, place))]
        if values and not np.isnan(own):
            ahead[place] = (own - max(values), own - sum(values) / len(values))
    failures = sorted((place for place in ahead if ahead[place][0] < 0), key=ahead.get)[:count]
    won = (place for place in ahead if ahead[place][0] >= 0 and ahead[place][1] > 0)
    wins = sorted(won, key=ahead.get, reverse=True)[:count]  # of equal ones the first, as sorting is stable

    def show(place: int) -> dict[str, Any]:
        return _example(suite.cases[place], place, measures, best, systems)

    return {"system": best, "wins": list(map(show, wins)), "failures": list(map(show, failures))}


def _example(case: Case, place: int, measures: Measures, best: str, systems: Sequence[str]) -> dict[str, Any]:
    main = MAIN[case.kind]
    answers = []
    for system in systems:
        outcome = measures.outcomes[system].get(case.id)
        if outcome is not None and outcome.answer is not None:
            value = plain(measures.value(system, main, place))
            answers.append({"system": system, "answer": _short(outcome.answer), main: value})
    return {
        "case": case.id,
        "question": _short(case.question),
        "references": [_short(text) for text in case.references],
        "answers": answers,
        "sources": _sources(case, measures.outcomes[best][case.id]),
    }


def _sources(case: Case, outcome: Outcome) -> list[dict[str, Any]]:
    """What was read, in the prompt's order, and after it the right documents that were not."""
    ranks = {document: rank for rank, document in enumerate(outcome.order or ())}
    right = gold(case)
    return [
        {
            "document": document,
            "read": document in outcome.read,
            "gold": document in right if right else None,
            "rank": ranks[document] + 1 if document in ranks else None,
            "score": plain(outcome.scores[ranks[document]]) if outcome.scores and document in ranks else None,
            "text": _short(case.documents[document]),
        }
        for document in dict.fromkeys((*outcome.read, *right))
    ]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1].rstrip() + "…"
