"""The HTML page of a report of `clara_jax.evaluation.report`; writes both to the disk."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from clara_jax import pages
from clara_jax.errors import ClaraError
from clara_jax.evaluation import html_plots, html_tables
from clara_jax.evaluation.formatting import NOTHING, amount, interval, titled
from clara_jax.files import replaced_when_whole
from clara_jax.metrics.controls import NO_MEMORY, OTHER_MEMORY

REPORT, PAGE = "report.json", "report.html"
MISUSES = {NO_MEMORY: "without memories", OTHER_MEMORY: "with another case's"}
KINDS = {"question": "questions", "paraphrase": "documents to paraphrase", "autoencode": "windows to write out"}
Report = Mapping[str, Any]  # see `clara_jax.evaluation.report.build`


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
        {"breakable": _breakable},
        title=f"Evaluation of {', '.join(models)}" if models else "Evaluation",
        about=_about(report),
        level=f"{100 * report['level']:g}%" if report["level"] else "no",
        memory=[_memory(report, model) for model in models],
        overview=html_tables.overview(report),
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


def _memory(report: Report, model: str) -> dict[str, Any]:
    """Return a model's verdict on the use of its memories, with a row for each suite."""
    verdict = report["uses_memory"][model]
    rows = []
    for found in verdict["suites"]:
        unit = report["metrics"][found["metric"]]["unit"]
        beats = [html_tables.lead(found["beats"].get(condition), unit) for condition in MISUSES]
        cells = [html_tables.cell(found["clara"], unit), *beats]
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
                html_tables.normalised(report, suite),
                html_tables.followed(suite),
                html_tables.differences(report, suite),
                *(html_tables.family(report, suite, title) for title in html_tables.QUALITY),
            )
            if table
        ],
        "costs": [table for title in html_tables.COST if (table := html_tables.family(report, suite, title))],
        "charts": [chart for chart in (_curves(report, suite), _rates(report, suite)) if chart],
        "tags": html_tables.by_tag(report, suite),
        "heats": html_tables.heats(report, suite),
        "examples": _examples(report, suite),
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
            html_tables.named(system)
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


def _example(
    report: Report, suite: Mapping[str, Any], example: Mapping[str, Any], systems: Mapping[str, Any]
) -> dict[str, Any]:
    main, unit = suite["main"], report["metrics"][suite["main"]]["unit"]
    return {
        "title": example["question"] or f"Case {example['case']}",
        "references": "; ".join(example["references"]),
        "answers": [
            html_tables.named(systems[answer["system"]])
            | {"text": answer["answer"], "value": amount(answer[main], unit)}
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
                "cells": [html_tables.plain_cell(_text(cell), "words" if _is_words(cell) else "") for cell in row[1:]],
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
