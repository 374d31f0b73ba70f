"""The report of an evaluation as JSON (docs/evaluation.md).

It holds every system's metrics with their intervals, its differences from the model it is compared with, whether
memories are used, and examples of answers. Nothing in it depends on when or in how many runs the predictions came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.evaluation.predictions import Prediction
from clara_jax.evaluation.runner import INSIDE, PLAN, read_predictions, read_suites
from clara_jax.evaluation.scoring import MAIN, METRICS, Aggregator, plain
from clara_jax.formats.json_file import read_object
from clara_jax.metrics.bootstrap import Bootstrap
from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import CONDITIONS, NO_MEMORY, ON_MEMORIES, OTHER_MEMORY, gold
from clara_jax.training.run_directory import environment

FORMAT = 1
CLARA = "clara"  # the condition that all others of a model are compared with
NONE = NO_MEMORY
# Controls that a model which reads its memories must beat, and what they read in their place.
MISUSES = {NO_MEMORY: "without memories", OTHER_MEMORY: "with another case's"}
# Metrics whose differences are reported: each takes a bootstrap, and `compare` has them all.
COMPARED = (
    *("exact_match", "f1", "cover_match", "followed", "tokens_right", "windows_right"),
    *("rouge1", "rougeL", "names_kept", "numbers_kept"),
    *("recall@1", "recall@3", "recall@5", "mrr"),
)
GROUPED = ("f1", "exact_match", "cover_match", "followed", "tokens_right", "rougeL")  # metrics by tag
NORMALISED = ("f1", "exact_match", "rougeL")
SHOWN = 600  # characters of a text that a case shows
MOST_CASES = 1000  # of a suite that are shown


def build(
    plan: Mapping[str, Any],
    suites: Sequence[Suite],
    predictions: Mapping[str, Mapping[str, Sequence[Prediction]]],
    seed: int = 0,
    examples: int = 4,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Return the report.

    A system is compared with the condition `CLARA` of its model, on the cases that both have. That condition itself,
    and systems whose model has none, are compared with those of all models.

    Args:
      plan: the systems and settings; included as it is, with None for numbers that are not finite.
      suites: those that were asked.
      predictions: by suite and system, "<model>/<condition>" or "rank/<name>". Models are shown in the order in which
        they come, conditions in that of `CONDITIONS`.
      seed: of the bootstrap.
      examples: of each kind and suite, at most.
      resamples: draws of the bootstrap.

    Returns:
      {"format", "seed", "resamples", "level", "plan", "metrics", "suites", "uses_memory"}. Of a suite, "examples" are
      the best and worst cases of its best model and "answers" the first `MOST_CASES` of all. Statistics are {"mean",
      "low", "high", "n"}, those of differences with "p"; metrics that no case has are left out. A mean among
      "normalised" is None where the text is no better than no memory.

    Raises:
      ClaraError: a prediction does not go with its case.
    """
    bootstraps: dict[int, Bootstrap] = {}
    parts = []
    for suite in suites:
        answered = {system: found for system, found in predictions.get(suite.name, {}).items() if found}
        if answered:
            count = len(suite.cases)
            if count not in bootstraps:
                bootstraps[count] = Bootstrap(count, resamples, seed)
            parts.append(_suite(suite, Aggregator(suite, answered, bootstraps[count]), examples))
    return {
        "format": FORMAT,
        "seed": seed,
        "resamples": resamples,
        "level": next(iter(bootstraps.values())).level if bootstraps else None,
        "plan": plain(plan),
        "metrics": {
            name: {"title": metric.title, "unit": metric.unit, "higher_is_better": metric.higher_is_better}
            for name, metric in METRICS.items()
            if metric.kind != "part"
        },
        "suites": parts,
        "uses_memory": _uses_memory(parts),
    }


def report_of(directory: Path, resamples: int, seed: int) -> dict[str, Any]:
    """Return the report on everything in a directory.

    Args:
      directory: where `runner.run` has written.
      resamples: draws of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ClaraError: a file in it is damaged.
    """
    plan = read_object(directory / PLAN, "name a directory that evaluate has made")
    suites, systems = read_suites(directory), plan["systems"]
    predictions = {suite.name: read_predictions(directory, suite.name, systems) for suite in suites}
    report = build(plan | {"environment": environment()}, suites, predictions, seed, resamples=resamples)
    inside = {}
    for model in plan["models"]:
        path = directory / INSIDE / f"{model}.json"
        if path.exists():
            sections = read_object(path, "remove it and give the command again")["sections"]
            for name, section in sections.items():
                inside[f"{model}/{name}"] = {**section, "title": f"{model}: {section['title']}"}
    return report | {"inside": inside}


def model_of(system: str) -> str:
    """Return the name of a system's model; of a ranker "rank"."""
    return system.partition("/")[0]


def condition_of(system: str) -> str:
    """Return the name of a system's condition; of a ranker its own name."""
    return system.partition("/")[2]


def is_control(system: str) -> bool:
    """Return whether a system is expected to be worse than its model, or than other rankers."""
    condition = CONDITIONS.get(condition_of(system))
    return system == "rank/random" or (condition is not None and condition.control)


def in_order(systems: Iterable[str]) -> list[str]:
    """Return systems sorted by model, in the order in which models come, and by condition, in that of `CONDITIONS`.

    Controls so follow what they control.
    """
    systems, conditions = list(systems), list(CONDITIONS)
    models = _models(systems)

    def place(system: str) -> tuple[int, int, bool]:
        condition = condition_of(system)
        rank = conditions.index(condition) if condition in CONDITIONS else len(conditions)
        return models.index(model_of(system)), rank, is_control(system)

    return sorted(systems, key=place)


def _suite(suite: Suite, aggregator: Aggregator, examples: int) -> dict[str, Any]:
    systems = in_order(aggregator.predictions)
    return {
        "name": suite.name,
        "kind": suite.kind,
        "ranked": suite.ranked,
        "main": MAIN[suite.kind],
        "cases": len(suite.cases),
        "digest": suite.digest(),
        "systems": [_system(suite, aggregator, system, systems) for system in systems],
        "examples": _examples(suite, aggregator, systems, examples),
        "answers": _answers(suite, aggregator, systems),
    }


def _system(suite: Suite, aggregator: Aggregator, system: str, systems: Sequence[str]) -> dict[str, Any]:
    return {
        "name": system,
        "model": model_of(system),
        "way": condition_of(system),
        "control": is_control(system),
        "cases": len(aggregator.predictions[system]),
        "metrics": aggregator.means(system),
        "differences": [
            {"to": other, "metrics": aggregator.differences(system, other, COMPARED)}
            for other in _standards(system, systems)
        ],
        "normalised": _normalised(aggregator, system, systems),
        "followed_with": _followed_with(aggregator, system, systems),
        "groups": [
            {"tags": tags, "cases": int(among.sum()), "metrics": aggregator.means(system, GROUPED, among)}
            for tags, among in _groups(suite)
        ],
    }


def teachers(system: str, systems: Iterable[str]) -> list[str]:
    """Return the systems that read as text what a system reads as memories, one of each model that reads text.

    That is the one that reads the k best or all documents; where there is none, and for a system that is given only the
    right documents, the one that reads those.
    """
    systems = list(systems)
    if condition_of(system) not in ON_MEMORIES or condition_of(system) == NONE:
        return []
    wanted = ("text_oracle",) if condition_of(system) == "gold_memory" else ("text_topk", "text_oracle")
    options = [[f"{model}/{name}" for name in wanted if f"{model}/{name}" in systems] for model in _models(systems)]
    return [names[0] for names in options if names]


def _normalised(aggregator: Aggregator, system: str, systems: Sequence[str]) -> list[dict[str, Any]]:
    none = f"{model_of(system)}/{NONE}"
    if none not in systems:
        return []
    found = [
        {"to": text, "none": none, "metrics": aggregator.normalised(system, none, text, NORMALISED)}
        for text in teachers(system, systems)
    ]
    return [one for one in found if one["metrics"]]


def _followed_with(aggregator: Aggregator, system: str, systems: Sequence[str]) -> list[dict[str, Any]]:
    found = [(text, aggregator.followed_with(system, text)) for text in teachers(system, systems)]
    return [{"to": text, "share": share} for text, share in found if share is not None]


def _models(systems: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(model_of, systems)))


def _standards(system: str, systems: Sequence[str]) -> list[str]:
    """Return the systems that a system is compared with."""
    standard = f"{model_of(system)}/{CLARA}"
    if standard in systems and standard != system:
        return [standard]
    return [other for other in systems if condition_of(other) == CLARA and other != system]


def _groups(suite: Suite) -> list[tuple[dict[str, str], np.ndarray]]:
    """Return tags and which cases have them, for each tag alone and each pair of tags."""
    names = list(dict.fromkeys(name for case in suite.cases for name in case.tags))
    found = []
    for chosen in [*((name,) for name in names), *combinations(names, 2)]:
        values = [tuple(case.tags.get(name) for name in chosen) for case in suite.cases]
        for group in dict.fromkeys(value for value in values if None not in value):
            among = np.array([value == group for value in values])
            found.append((dict(zip(chosen, group, strict=True)), among))
    return found


def _uses_memory(suites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return {"verdict": "yes", "partly", "no" or "unknown", "says", "suites"} by model."""
    models = dict.fromkeys(system["model"] for suite in suites for system in suite["systems"] if system["way"] == CLARA)
    return {model: _verdict([found for suite in suites if (found := _beaten(suite, model))]) for model in models}


def _beaten(suite: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    """Return a model's main metric in a suite, and by how much it beats its controls there."""
    main = suite["main"]
    systems = {system["name"]: system for system in suite["systems"]}
    clara = systems.get(f"{model}/{CLARA}")
    if clara is None or main not in clara["metrics"]:
        return None
    beats = {}
    for condition in MISUSES:
        for difference in systems.get(f"{model}/{condition}", {"differences": []})["differences"]:
            if main in difference["metrics"]:
                beats[condition] = _negated(difference["metrics"][main])
    known = len(beats) == len(MISUSES) and all(lead["low"] is not None for lead in beats.values())
    return {
        "suite": suite["name"],
        "metric": main,
        CLARA: clara["metrics"][main],
        "beats": beats,
        "used": all(lead["low"] > 0 for lead in beats.values()) if known else None,
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


def _examples(suite: Suite, aggregator: Aggregator, systems: Sequence[str], count: int) -> dict[str, Any] | None:
    """Return the cases where the best model does best and worst, beside all systems' answers.

    Wins are cases in which its answer is as good as any and most above the others, failures those in which it is most
    below the best of them.
    """
    main, best = MAIN[suite.kind], _best(suite, aggregator, systems)
    if best is None:
        return None
    others = [system for system in systems if model_of(system) != "rank" and system != best]
    ahead: dict[int, tuple[float, float]] = {}
    for place in range(len(suite.cases)):
        reached = aggregator.value(best, main, place)
        values = [value for other in others if not np.isnan(value := aggregator.value(other, main, place))]
        if values and not np.isnan(reached):
            ahead[place] = (reached - max(values), reached - sum(values) / len(values))
    failures = sorted((place for place in ahead if ahead[place][0] < 0), key=ahead.__getitem__)[:count]
    won = (place for place in ahead if ahead[place][0] >= 0 and ahead[place][1] > 0)
    wins = sorted(won, key=ahead.__getitem__, reverse=True)[:count]  # of equal ones the first, as sorting is stable

    def show(place: int) -> dict[str, Any]:
        return _example(suite.cases[place], place, aggregator, best, systems)

    return {"system": best, "wins": list(map(show, wins)), "failures": list(map(show, failures))}


def _best(suite: Suite, aggregator: Aggregator, systems: Sequence[str]) -> str | None:
    """Return the model that does best from its memories; None where none was asked."""
    main = MAIN[suite.kind]
    candidates = [system for system in systems if condition_of(system) == CLARA]
    means = {system: found[main]["mean"] for system in candidates if (found := aggregator.means(system, (main,)))}
    return max(means, key=means.__getitem__, default=None)


def _answers(suite: Suite, aggregator: Aggregator, systems: Sequence[str]) -> dict[str, Any] | None:
    """Return the first cases with the answers of all systems, and the systems by which they can be told apart.

    "with" is the model that does best from its memories, "without" the same without them, and "text" a model that reads
    the documents; None where it was not asked.
    """
    best = _best(suite, aggregator, systems)
    if best is None:
        return None
    none = f"{model_of(best)}/{NONE}"
    return {
        "with": best,
        "without": none if none in systems else None,
        "text": next(iter(teachers(best, systems)), None),
        "cases": [
            _example(case, place, aggregator, best, systems) for place, case in enumerate(suite.cases[:MOST_CASES])
        ],
    }


def _is_right(case: Case, place: int, aggregator: Aggregator, system: str) -> bool | None:
    """Return whether the answer to a question holds a right one; None of others, and where that is not known."""
    covered = plain(aggregator.value(system, "cover_match", place)) if case.kind == "question" else None
    return None if covered is None else covered > 0


def _example(case: Case, place: int, aggregator: Aggregator, best: str, systems: Sequence[str]) -> dict[str, Any]:
    main = MAIN[case.kind]
    answers = []
    for system in systems:
        prediction = aggregator.predictions[system].get(case.id)
        if prediction is not None and prediction.answer is not None:
            value = plain(aggregator.value(system, main, place))
            right = _is_right(case, place, aggregator, system)
            answers.append({"system": system, "answer": _short(prediction.answer), main: value, "right": right})
    return {
        "case": case.id,
        "question": _short(case.question),
        "references": [_short(text) for text in case.references],
        "answers": answers,
        "sources": _sources(case, aggregator.predictions[best].get(case.id)),
    }


def _sources(case: Case, prediction: Prediction | None) -> list[dict[str, Any]]:
    """Return the documents that were read, in the prompt's order, and after them the right ones that were not."""
    prediction = prediction or Prediction(case.id)
    ranks = {document: rank for rank, document in enumerate(prediction.order or ())}
    right = gold(case)
    return [
        {
            "document": document,
            "read": document in prediction.read,
            "gold": document in right if right else None,
            "rank": ranks[document] + 1 if document in ranks else None,
            "score": plain(prediction.scores[ranks[document]]) if prediction.scores and document in ranks else None,
            "text": _short(case.documents[document]),
        }
        for document in dict.fromkeys((*prediction.read, *right))
    ]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1].rstrip() + "…"
