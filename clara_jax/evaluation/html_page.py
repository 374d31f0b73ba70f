"""The HTML page of a report of `clara_jax.evaluation.report`; writes both to the disk."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from clara_jax import pages
from clara_jax.errors import ClaraError
from clara_jax.evaluation import html_plots, table_files, tables
from clara_jax.evaluation.report import MISUSES, MOST_CASES
from clara_jax.evaluation.tables import NOTHING, Report, amount, interval, titled
from clara_jax.files import replaced_when_whole

REPORT, PAGE = "report.json", "report.html"
_LONGEST_NAME = 100  # characters of a file's name
KINDS = {"question": "questions", "paraphrase": "documents to paraphrase", "autoencode": "windows to write out"}


def write(report: Report, directory: str | os.PathLike) -> None:
    """Write report.json and report.html, each atomically; the folder is made where it is missing.

    Raises:
      ClaraError: the file system refuses.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{directory}: cannot be made: {error.strerror or error}") from error
    content = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    for name, text in ((REPORT, content), (PAGE, render(report))):
        with replaced_when_whole(directory / name) as temporary:
            # JSON can hold lone surrogates, which UTF-8 cannot encode.
            temporary.write_bytes(text.encode("utf-8", "replace"))


def render(report: Report) -> str:
    """Return the report's page as HTML.

    Args:
      report: of `clara_jax.evaluation.report.build`; under "inside" there may be further sections by name, each
        {"title", "text", "table": {"columns", "rows"} or None, "picture": "data:image/..." or None}.
    """
    suites = report["suites"]
    models = list(report["uses_memory"])
    return pages.render(
        "clara_jax.evaluation",
        "report.html",
        {"breakable": _breakable, "csv": table_files.csv_address, "latex": table_files.latex_address, "slug": _slug},
        title=f"Evaluation of {', '.join(models)}" if models else "Evaluation",
        about=_about(report),
        level=f"{100 * report['level']:g}%" if report["level"] else "no",
        memory=[_memory(report, model) for model in models],
        overview=tables.overview(report),
        suites=[_suite(report, suite, f"suite-{number}") for number, suite in enumerate(suites)],
        inside=[
            _inside(section, f"inside-{number}") for number, section in enumerate(report.get("inside", {}).values())
        ],
        plan=report["plan"],
    )


def _about(report: Report) -> str:
    suites = report["suites"]
    systems = {system["name"] for suite in suites for system in suite["systems"]}
    return (
        f"{len(systems)} systems, {len(suites)} suites, {sum(suite['cases'] for suite in suites)} cases. Each mean has"
        f" its interval of a paired bootstrap over cases ({report['resamples']} draws, seed {report['seed']})."
    )


def _breakable(name: str) -> Markup:
    """Return a name in HTML with possible line breaks after its separators."""
    return Markup(str(escape(name)).replace("/", "/<wbr>").replace("_", "_<wbr>"))


def _slug(name: str) -> str:
    """Return a name as that of a file."""
    return re.sub(r"[^\w@.]+", "-", name).strip("-.")[:_LONGEST_NAME] or "table"


def _memory(report: Report, model: str) -> dict[str, Any]:
    """Return a model's verdict on the use of its memories, with a row for each suite."""
    verdict = report["uses_memory"][model]
    rows = []
    for found in verdict["suites"]:
        unit = report["metrics"][found["metric"]]["unit"]
        beats = [tables.lead(found["beats"].get(condition), unit) for condition in MISUSES]
        cells = [tables.cell(found["clara"], unit), *beats]
        name = f"{found['suite']}: {titled(report['metrics'][found['metric']])}"
        rows.append({"name": name, "control": False, "description": "", "cells": cells})
    columns = ["with its memories", *(f"better than {what}" for what in MISUSES.values())]
    table = {"corner": "suite", "columns": columns, "rows": rows}
    return {"name": model, "verdict": verdict["verdict"], "says": verdict["says"], "table": table}


def _suite(report: Report, suite: Mapping[str, Any], name: str) -> dict[str, Any]:
    metric = report["metrics"][suite["main"]]
    ranked = ", candidates are ranked and the best are read" if suite["ranked"] else ""
    kind = KINDS[suite["kind"]]
    return {
        "id": name,
        "name": suite["name"],
        "about": f"{suite['cases']} {kind}{ranked}. Cases: {suite['digest'][:12]}.",
        "main": titled(metric),
        "rows": _strips(report, suite),
        "tables": [
            table
            for table in (
                tables.normalised(report, suite),
                tables.followed(suite),
                tables.differences(report, suite),
                *(tables.family(report, suite, title) for title in tables.QUALITY),
            )
            if table
        ],
        "costs": [table for title in tables.COST if (table := tables.family(report, suite, title))],
        "charts": [chart for chart in (_curves(report, suite), _rates(report, suite)) if chart],
        "tags": tables.by_tag(report, suite),
        "heats": tables.heats(report, suite),
        "examples": _examples(report, suite),
        "cases": _cases(report, suite, f"{name}-cases"),
    }


def _strips(report: Report, suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line with an interval for each system that answers."""
    main, unit = suite["main"], report["metrics"][suite["main"]]["unit"]
    rows = []
    for system in suite["systems"]:
        found = system["metrics"].get(main)
        if found is None:
            continue
        low, high = (found["mean"] if found[end] is None else found[end] for end in ("low", "high"))
        rows.append(
            tables.named(system)
            | {
                "strip": Markup(html_plots.strip(found["mean"], low, high, (0.0, 1.0), system["control"])),
                "text": amount(found["mean"], unit),
                "interval": interval(found, unit),
            }
        )
    return rows


def _curves(report: Report, suite: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the chart of Recall@k by system, None where nothing ranks."""
    found = {}
    for system in suite["systems"]:
        recalls = {name: value["mean"] for name, value in system["metrics"].items() if name.startswith("recall@")}
        if recalls:
            found[system["name"]] = [(float(name.partition("@")[2]), value) for name, value in recalls.items()]
    if not found:
        return None
    legend = [{"colour": html_plots.colour(number), "name": name} for number, name in enumerate(found)]
    picture = html_plots.lines(f"Recall@k in {suite['name']}", list(found.values()), "k", "Recall@k")
    return {"title": "Recall@k", "picture": Markup(picture), "legend": legend}


def _rates(report: Report, suite: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the chart of the main metric against the effective compress rate."""
    main = suite["main"]
    points, controls, legend = [], [], []
    for system in suite["systems"]:
        rate, value = system["metrics"].get("effective_rate"), system["metrics"].get(main)
        if not rate or not value or rate["mean"] <= 0:
            continue
        if system["control"]:
            controls.append((rate["mean"], value["mean"]))
        else:
            number = str(len(points) + 1)
            points.append((number, rate["mean"], value["mean"]))
            legend.append({"number": number, "name": system["name"], "colour": None})
    if not points:
        return None
    if controls:
        legend.append({"number": "○", "name": "controls", "colour": None})
    label = report["metrics"][main]["title"]
    title = f"{label} against the effective rate"
    picture = html_plots.scatter(f"{title} in {suite['name']}", points, controls, "effective rate", label)
    return {"title": title, "picture": Markup(picture), "legend": legend}


def _examples(report: Report, suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = suite["examples"]
    if found is None:
        return []
    titles = {"wins": f"Where {found['system']} does best", "failures": f"Where {found['system']} does worst"}
    systems = {system["name"]: system for system in suite["systems"]}
    return [
        {"title": title, "examples": [_example(report, suite, example, systems) for example in found[kind]]}
        for kind, title in titles.items()
        if found[kind]
    ]


def _cases(report: Report, suite: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return every case that the report has, each with the filters that let it pass; None where it has none."""
    found = suite.get("answers")  # reports of earlier versions have none
    if found is None:
        return None
    systems = {system["name"]: system for system in suite["systems"]}
    filters = _filters(report, suite)
    cases = []
    for case in found["cases"]:
        by_system = {answer["system"]: answer for answer in case["answers"]}
        passes = [number for number, (_, test) in enumerate(filters) if test(by_system)]
        cases.append(_example(report, suite, case, systems) | {"filters": [f"f{number}" for number in passes]})
    counts = [sum(f"f{number}" in case["filters"] for case in cases) for number in range(len(filters))]
    cut = f" The first {MOST_CASES:,} are here, the others in the predictions." if suite["cases"] > len(cases) else ""
    return {
        "id": name,
        "about": f"With memory is {found['with']}, without is {found['without'] or 'not asked'}, "
        f"the text is read by {found['text'] or 'nobody'}.{cut}",
        "filters": [
            {"name": title, "count": count, "key": f"f{number}"}
            for number, ((title, _), count) in enumerate(zip(filters, counts, strict=True))
        ],
        "cases": cases,
    }


def _filters(
    report: Report, suite: Mapping[str, Any]
) -> list[tuple[str, Callable[[Mapping[str, Mapping[str, Any]]], bool]]]:
    """Return names of filters, and whether the answers to a case, by system, pass them."""
    main, found = suite["main"], suite["answers"]
    filters: list[tuple[str, Callable[[Mapping[str, Mapping[str, Any]]], bool]]] = [("all", lambda answers: True)]

    def add(title: str, first: str, second: str | None, field: str, test: Callable[[Any, Any], bool]) -> None:
        if second is None:
            return

        def passes(answers: Mapping[str, Mapping[str, Any]]) -> bool:
            values = [answers.get(system, {}).get(field) for system in (first, second)]
            return None not in values and test(*values)

        filters.append((title, passes))

    memory, none, text = found["with"], found["without"], found["text"]
    if suite["kind"] == "question":
        add("right with memory, wrong without", memory, none, "right", lambda a, b: a and not b)
        add("wrong with memory, right without", memory, none, "right", lambda a, b: b and not a)
        add("right both ways", memory, none, "right", lambda a, b: a and b)
        add("wrong both ways", memory, none, "right", lambda a, b: not a and not b)
        add("right with memory, wrong with the text", memory, text, "right", lambda a, b: a and not b)
        add("wrong with memory, right with the text", memory, text, "right", lambda a, b: b and not a)
    else:
        for other, what in ((none, "without"), (text, "with the text")):
            add(f"better with memory than {what}", memory, other, main, lambda a, b: a > b)
            add(f"worse with memory than {what}", memory, other, main, lambda a, b: a < b)
    return filters


def _example(
    report: Report, suite: Mapping[str, Any], example: Mapping[str, Any], systems: Mapping[str, Any]
) -> dict[str, Any]:
    main, unit = suite["main"], report["metrics"][suite["main"]]["unit"]
    return {
        "title": example["question"] or f"Case {example['case']}",
        "filters": [],
        "references": "; ".join(example["references"]),
        "answers": [
            tables.named(systems[answer["system"]])
            | {"text": answer["answer"], "value": amount(answer[main], unit), "right": answer.get("right")}
            for answer in example["answers"]
        ],
        "sources": [_source(source) for source in example["sources"]],
    }


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    notes = ["read" if source["read"] else "not read"]
    if source["rank"] is not None:
        notes.append(f"place {source['rank']}")
    if source["score"] is not None:
        notes.append(f"score {source['score']:.3f}")
    return {"notes": ", ".join(notes), "gold": source["gold"], "text": source["text"]}


def _inside(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = section["table"]
    if table:
        rows = [
            {
                "name": _text(row[0]),
                "control": False,
                "description": "",
                "cells": [tables.plain_cell(_text(cell), "words" if _is_words(cell) else "") for cell in row[1:]],
            }
            for row in table["rows"]
        ]
        table = {"corner": table["columns"][0], "columns": table["columns"][1:], "rows": rows}
    return {
        "id": name,
        "title": section["title"],
        "paragraphs": [text for text in section["text"].split("\n") if text.strip()],
        "table": table,
        "picture": _picture(section["picture"]),
    }


def _picture(picture: str | None) -> str | None:
    """Return a picture as the address of an image, in which no script runs."""
    if picture and picture.lstrip().startswith("<svg"):
        return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()
    if picture and not picture.startswith("data:image/"):
        raise ValueError("a picture is an address of data, or SVG")
    return picture


def _text(cell: Any) -> str:
    if cell is None:
        return NOTHING
    return f"{cell:,.4g}" if isinstance(cell, float) else str(cell)


def _is_words(cell: Any) -> bool:
    return isinstance(cell, str) and any(map(str.isalpha, cell))
