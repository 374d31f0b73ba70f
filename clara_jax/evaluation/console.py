"""The summary that an evaluation prints at its end: every result with its controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clara_jax.evaluation.formatting import amount, interval, titled
from clara_jax.evaluation.html_tables import UNDEFINED

SHOWN = (
    *("f1", "exact_match", "cover_match", "followed", "tokens_right", "windows_right", "rougeL", "names_kept"),
    *("numbers_kept", "recall@1", "recall@3", "recall@5", "effective_rate"),
)


def summary(report: Mapping[str, Any]) -> str:
    """Return the results of all systems as text, suite by suite, with intervals, and whether memories are used."""
    parts = []
    for suite in report["suites"]:
        metrics = [name for name in SHOWN if any(name in system["metrics"] for system in suite["systems"])]
        head = ["", *(titled(report["metrics"][name]) for name in metrics)]
        rows = [
            [("  " if system["control"] else "") + system["name"], *(_cell(report, system, name) for name in metrics)]
            for system in suite["systems"]
        ]
        lines = [f"{suite['name']}: {suite['cases']} cases", table(head, rows), *_beside_text(report, suite)]
        parts.append("\n".join(lines))
    verdicts = [f"{model}: {verdict['says']}" for model, verdict in report["uses_memory"].items()]
    if verdicts:
        parts.append("Is the memory used?\n" + "\n".join(verdicts))
    return "\n\n".join(parts)


def _beside_text(report: Mapping[str, Any], suite: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each share of the text models' results that systems, without controls, reach from memories."""
    for system in suite["systems"]:
        if system["control"]:
            continue
        for normalised in system["normalised"]:
            share = normalised["metrics"].get(suite["main"])
            if share:
                title = titled(report["metrics"][suite["main"]])
                what = f"{system['name']}: normalised {title} of {normalised['to']}: "
                yield what + (_amount(share, "share") if share["mean"] is not None else f"not defined, {UNDEFINED}")
        for followed in system["followed_with"]:
            yield f"{system['name']}: follows of the changed documents that {followed['to']} follows (%): " + _amount(
                followed["share"], "share"
            )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns of text, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in [head, *rows]
    )


def _cell(report: Mapping[str, Any], system: Mapping[str, Any], name: str) -> str:
    found, unit = system["metrics"].get(name), report["metrics"][name]["unit"]
    return "" if found is None else _amount(found, unit)


def _amount(found: Mapping[str, Any], unit: str) -> str:
    bounds = interval(found, unit)
    return amount(found["mean"], unit) + (f" [{bounds}]" if bounds else "")
