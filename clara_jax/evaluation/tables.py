"""Tables of a report: numbers as text, cells and rows of the HTML page, aligned columns of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clara_jax.metrics.controls import CONDITIONS

QUALITY = {  # a table each: prefixes of its metrics
    "Answers": (
        *("exact_match", "f1", "cover_match", "followed", "kept_original"),
        *("tokens_right", "windows_right", "rouge", "names_", "numbers_"),
    ),
    "Ranking": ("recall@", "precision@", "mrr", "ndcg@"),
}
COST = {
    "Cost": (
        *("effective_rate", "compress_rate", "passage_bytes", "text_tokens", "document_tokens", "prompt_tokens"),
        *("answer_tokens", "empty", "cut"),
    ),
    "Time of a case that is asked alone": ("first_ms", "total_ms"),
}
ORACLES = ("text_oracle", "crammed")  # never marked best: given the right documents, or optimised for each document
UNDEFINED = "text is no better"
IN_SUMMARY = (  # metrics that an evaluation prints at its end
    *("f1", "exact_match", "cover_match", "followed", "tokens_right", "windows_right", "rougeL", "names_kept"),
    *("numbers_kept", "recall@1", "recall@3", "recall@5", "effective_rate"),
)
SIGNS = {"share": "%", "ms": "ms", "times": "×", "tokens": "", "bytes": "B"}
NOTHING = "–"
Report = Mapping[str, Any]  # see `clara_jax.evaluation.report.build`; of its "suites", one


def amount(value: float | None, unit: str) -> str:
    """Return a number as text without its unit, shares in percent; "–" where there is none."""
    if value is None:
        return NOTHING
    if unit == "share":
        return _minus(f"{100 * value:.1f}")
    return _minus(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}")


def interval(statistic: Mapping[str, Any], unit: str) -> str:
    """Return the bounds of an interval as text; empty where there is none."""
    if statistic["low"] is None:
        return ""
    low, high = amount(statistic["low"], unit), amount(statistic["high"], unit)
    return f"{low} to {high}" if statistic["low"] < 0 else f"{low}–{high}"


def with_interval(found: Mapping[str, Any], unit: str) -> str:
    """Return a statistic as text with the bounds of its interval, where it has one."""
    bounds = interval(found, unit)
    return amount(found["mean"], unit) + (f" [{bounds}]" if bounds else "")


def change(difference: Mapping[str, Any], unit: str) -> str:
    """Return a difference as text with its plus or minus."""
    value = amount(difference["mean"], unit)
    return f"+{value}" if difference["mean"] > 0 else value


def chance(p: float | None) -> str:
    """Return a p-value as text."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def titled(metric: Mapping[str, Any]) -> str:
    """Return a metric's title and unit, short enough for the head of a column."""
    sign = SIGNS[metric["unit"]]
    return metric["title"].partition(":")[0] + (f" ({sign})" if sign else "")


def overview(report: Report) -> dict[str, Any] | None:
    """Return the table of the main metric of all systems in all suites, None where one suite alone is reported."""
    suites = report["suites"]
    systems = {system["name"]: system for suite in suites for system in suite["systems"]}
    rows = {name: [] for name in systems}
    for suite in suites:
        values = {system["name"]: system["metrics"].get(suite["main"]) for system in suite["systems"]}
        best = _best(report, suite, suite["main"])
        unit = report["metrics"][suite["main"]]["unit"]
        for name, cells in rows.items():
            cells.append(cell(values.get(name), unit, name in best))
    shown = [
        named(systems[name]) | {"cells": cells} for name, cells in rows.items() if any(one["text"] for one in cells)
    ]
    columns = [f"{suite['name']}: {titled(report['metrics'][suite['main']])}" for suite in suites]
    return {"corner": "system", "columns": columns, "rows": shown} if shown and len(suites) > 1 else None


def family(report: Report, suite: Mapping[str, Any], title: str) -> dict[str, Any] | None:
    """Return the table of a suite's metrics of one kind, None where there are none.

    Args:
      report: the whole report.
      suite: one of its suites.
      title: a key of `QUALITY` or `COST`.
    """
    metrics = [
        name
        for name in report["metrics"]
        if name.startswith((QUALITY | COST)[title]) and any(name in system["metrics"] for system in suite["systems"])
    ]
    rows = []
    # What is cheapest may be worth nothing.
    best = {name: _best(report, suite, name) if title in QUALITY else () for name in metrics}
    for system in suite["systems"]:
        cells = [
            cell(system["metrics"].get(name), report["metrics"][name]["unit"], system["name"] in best[name])
            for name in metrics
        ]
        if any(one["text"] for one in cells):
            rows.append(named(system) | {"cells": cells})
    columns = [titled(report["metrics"][name]) for name in metrics]
    return {"title": title, "corner": "system", "columns": columns, "rows": rows} if rows else None


def differences(report: Report, suite: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table of differences between every system and those it is compared with, None where there are none."""
    main, unit = suite["main"], report["metrics"][suite["main"]]["unit"]
    found = {
        system["name"]: {one["to"]: one["metrics"][main] for one in system["differences"] if main in one["metrics"]}
        for system in suite["systems"]
    }
    others = [name for name in found if any(name in differences for differences in found.values())]
    rows = [
        named(system) | {"cells": [lead(found[system["name"]].get(other), unit, tested=True) for other in others]}
        for system in suite["systems"]
        if found[system["name"]]
    ]
    title = f"Differences of {report['metrics'][main]['title']}, on the cases that both have"
    columns = [f"minus {other}" for other in others]
    return {"title": title, "corner": "system", "columns": columns, "rows": rows} if rows else None


def normalised(report: Report, suite: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table of systems between their model without memories (0 %) and models that read the text (100 %)."""
    metrics = [
        (one["to"], metric) for system in suite["systems"] for one in system["normalised"] for metric in one["metrics"]
    ]
    columns = list(dict.fromkeys(metrics))
    rows = []
    for system in suite["systems"]:
        found = {(one["to"], metric): share for one in system["normalised"] for metric, share in one["metrics"].items()}
        if found:
            cells = [_normalised_cell(found.get(column)) for column in columns]
            rows.append(named(system) | {"cells": cells})
    names = [f"{titled(report['metrics'][metric])} of {to}" for to, metric in columns]
    title = "Teacher-normalised: (it − none) / (text − none), the model without memories at 0, the text at 100"
    return {"title": title, "corner": "system", "columns": names, "rows": rows} if rows else None


def followed(suite: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table of how many changed documents that a text model follows are followed from memories."""
    columns = list(dict.fromkeys(one["to"] for system in suite["systems"] for one in system["followed_with"]))
    rows = []
    for system in suite["systems"]:
        found = {one["to"]: one["share"] for one in system["followed_with"]}
        if found:
            rows.append(named(system) | {"cells": [cell(found.get(column), "share") for column in columns]})
    title = "Changed documents followed, of those that the text model follows (%)"
    return {"title": title, "corner": "system", "columns": columns, "rows": rows} if rows else None


def by_tag(report: Report, suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a table for each tag with the main metric of all systems."""
    main, unit = suite["main"], report["metrics"][suite["main"]]["unit"]
    tables = []
    groups = [group["tags"] for system in suite["systems"] for group in system["groups"]]
    for tag in dict.fromkeys(name for tags in groups for name in tags):
        values: dict[str, None] = {}
        rows = []
        for system in suite["systems"]:
            groups = {g["tags"][tag]: g["metrics"].get(main) for g in system["groups"] if list(g["tags"]) == [tag]}
            values |= dict.fromkeys(groups)
            if any(groups.values()):
                rows.append(named(system) | {"cells": [cell(found, unit) for found in groups.values()]})
        title = f"{report['metrics'][main]['title']} by {tag}"
        tables.append({"title": title, "corner": "system", "columns": list(values), "rows": rows})
    return tables


def heats(report: Report, suite: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a heat map of the main metric over two tags for each system that is no control."""
    main, unit = suite["main"], report["metrics"][suite["main"]]["unit"]
    tables, title = [], ""
    for system in suite["systems"]:
        groups = [group for group in system["groups"] if len(group["tags"]) == 2 and main in group["metrics"]]
        if not groups or system["control"]:
            continue
        (down, across), *_ = (tuple(group["tags"]) for group in groups)
        cells = {tuple(group["tags"].values()): group["metrics"][main] for group in groups}
        columns, names = (list(dict.fromkeys(pair[end] for pair in cells)) for end in (1, 0))
        rows = [
            {
                "name": name,
                "cells": [
                    cell(value, unit) | {"share": round(value["mean"], 3)}
                    if (value := cells.get((name, column)))
                    else plain_cell(NOTHING) | {"share": 0}
                    for column in columns
                ],
            }
            for name in names
        ]
        title = f"{report['metrics'][main]['title']} by {down} and {across}"
        corner = f"{down} by {across}"
        tables.append({"name": system["name"], "corner": corner, "columns": columns, "rows": rows})
    return {"title": title, "tables": tables} if tables else None


def named(system: Mapping[str, Any]) -> dict[str, Any]:
    """Return the head of a system's row."""
    condition = CONDITIONS.get(system["way"])
    description = condition.description if condition else ""
    return {"name": system["name"], "control": system["control"], "description": description}


def cell(statistic: Mapping[str, Any] | None, unit: str, best: bool = False) -> dict[str, Any]:
    """Return the cell of a mean with its interval; empty where there is none."""
    if statistic is None:
        return plain_cell("")
    mark = "best" if best else ""
    return {
        "text": amount(statistic["mean"], unit),
        "interval": interval(statistic, unit),
        "mark": mark,
        "numbers": _numbers(statistic, unit),
    }


def plain_cell(text: str, mark: str = "") -> dict[str, Any]:
    """Return a cell of text, without an interval and numbers."""
    return {"text": text, "interval": "", "mark": mark, "numbers": {}}


def _numbers(statistic: Mapping[str, Any], unit: str) -> dict[str, float]:
    """Return the numbers of a statistic in the unit that is shown: shares in percent, p as it is."""
    scale = {"mean": 100.0, "low": 100.0, "high": 100.0} if unit == "share" else {}
    known = {name: statistic.get(name) for name in ("mean", "low", "high", "p")}
    return {name: round(value * scale.get(name, 1.0), 6) for name, value in known.items() if value is not None}


def lead(difference: Mapping[str, Any] | None, unit: str, tested: bool = False) -> dict[str, Any]:
    """Return the cell of a difference, marked by the side of 0 that all of its interval is on.

    Args:
      difference: of the report; None for an empty cell.
      unit: of the metric.
      tested: whether the cell shows the p-value.
    """
    if difference is None:
        return plain_cell("")
    known = difference["low"] is not None
    mark = "yes" if known and difference["low"] > 0 else "no" if known and difference["high"] < 0 else "open"
    bounds = interval(difference, unit) + (f", p {chance(difference['p'])}" if known and tested else "")
    numbers = _numbers(difference, unit)
    return {"text": change(difference, unit), "interval": bounds, "mark": mark, "numbers": numbers}


def summary(report: Report) -> str:
    """Return the results of all systems as text, suite by suite, with intervals, and whether memories are used."""
    parts = []
    for suite in report["suites"]:
        metrics = [name for name in IN_SUMMARY if any(name in system["metrics"] for system in suite["systems"])]
        head = ["", *(titled(report["metrics"][name]) for name in metrics)]
        rows = [
            [
                ("  " if system["control"] else "") + system["name"],
                *(_summary_cell(report, system, name) for name in metrics),
            ]
            for system in suite["systems"]
        ]
        lines = [f"{suite['name']}: {suite['cases']} cases", aligned(head, rows), *_beside_text(report, suite)]
        parts.append("\n".join(lines))
    verdicts = [f"{model}: {verdict['says']}" for model, verdict in report["uses_memory"].items()]
    if verdicts:
        parts.append("Is the memory used?\n" + "\n".join(verdicts))
    return "\n\n".join(parts)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns of text, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in [head, *rows]
    )


def _minus(text: str) -> str:
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def _normalised_cell(share: Mapping[str, Any] | None) -> dict[str, str]:
    if share is not None and share["mean"] is None:
        return plain_cell(UNDEFINED, "words")
    return cell(share, "share")


def _best(report: Report, suite: Mapping[str, Any], metric: str) -> set[str]:
    """Return the systems with the best mean, without controls and oracles."""
    higher = report["metrics"][metric]["higher_is_better"]
    values = {
        system["name"]: system["metrics"][metric]["mean"]
        for system in suite["systems"]
        if metric in system["metrics"] and not system["control"] and system["way"] not in ORACLES
    }
    if higher is None or len(set(values.values())) < 2:
        return set()
    best = max(values.values()) if higher else min(values.values())
    return {name for name, value in values.items() if value == best}


def _beside_text(report: Report, suite: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each share of the text models' results that systems, without controls, reach from memories."""
    for system in suite["systems"]:
        if system["control"]:
            continue
        for normalised in system["normalised"]:
            share = normalised["metrics"].get(suite["main"])
            if share:
                title = titled(report["metrics"][suite["main"]])
                what = f"{system['name']}: normalised {title} of {normalised['to']}: "
                yield what + (
                    with_interval(share, "share") if share["mean"] is not None else f"not defined, {UNDEFINED}"
                )
        for followed in system["followed_with"]:
            yield (
                f"{system['name']}: follows of the changed documents that {followed['to']} follows (%): "
                + with_interval(followed["share"], "share")
            )


def _summary_cell(report: Report, system: Mapping[str, Any], name: str) -> str:
    found, unit = system["metrics"].get(name), report["metrics"][name]["unit"]
    return "" if found is None else with_interval(found, unit)
