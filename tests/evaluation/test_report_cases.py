"""Every case of a report with its filters, its tables as files, and the page in a real browser."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest

from clara_jax.evaluation import report as reports
from clara_jax.evaluation import table_files, tables
from clara_jax.evaluation.html_page import render
from clara_jax.evaluation.report import build
from tests.browsers import check_axe, launched, needs_browser, opened, picture
from tests.evaluation import made_up

WON = "right with memory, wrong without"


@pytest.fixture(scope="module")
def report():
    suites = [made_up.suite(), made_up.suite("needle")]
    return build({}, suites, {suite.name: made_up.predictions() for suite in suites}, resamples=100)


def test_every_case_has_all_answers_and_says_which_are_right(report):
    found = report["suites"][0]["answers"]
    assert (found["with"], found["without"], found["text"]) == ("good/clara", "good/no_memory", "base/text_oracle")
    assert [case["case"] for case in found["cases"]] == [f"case {i}" for i in range(8)]
    answers = {answer["system"]: answer for answer in found["cases"][6]["answers"]}
    assert set(answers) == {name for name in made_up.predictions() if not name.startswith("rank/")}
    assert (answers["good/clara"]["answer"], answers["good/clara"]["right"]) == ("nowhere", False)
    assert (answers["base/text_oracle"]["answer"], answers["base/text_oracle"]["right"]) == ("Leeds", True)
    assert [source["document"] for source in found["cases"][6]["sources"]] == [0, 2, 1]  # read, read, right


def test_cases_beyond_the_most_are_said_to_be_elsewhere(monkeypatch):
    monkeypatch.setattr(reports, "MOST_CASES", 3)
    suite = made_up.suite()
    found = build({}, [suite], {suite.name: made_up.predictions()}, resamples=20)
    assert len(found["suites"][0]["answers"]["cases"]) == 3
    assert "the others in the predictions" in render(found)


def test_a_report_of_before_has_no_cases(report):
    old = json.loads(json.dumps(report))
    for suite in old["suites"]:
        del suite["answers"]
        for kind in ("wins", "failures"):
            for example in suite["examples"][kind]:
                for answer in example["answers"]:
                    del answer["right"]
    assert "every case" not in render(old)


def test_a_table_as_csv_has_the_numbers_of_the_report(report):
    table = tables.differences(report, report["suites"][0])
    rows = list(csv.DictReader(io.StringIO(table_files.csv_text(table))))
    system = next(one for one in report["suites"][0]["systems"] if one["name"] == "good/no_memory")
    (difference,) = [one["metrics"]["f1"] for one in system["differences"] if one["to"] == "good/clara"]
    (row,) = [row for row in rows if row["system"] == "good/no_memory"]
    assert float(row["minus good/clara"]) == pytest.approx(100 * difference["mean"])
    assert float(row["minus good/clara high"]) == pytest.approx(100 * difference["high"])
    assert float(row["minus good/clara p"]) == pytest.approx(difference["p"])
    assert row["minus idle/clara"] == ""


def test_texts_in_files_do_no_harm():
    table = {
        "corner": "50% & more",
        "columns": ["a_b", "=1+1"],
        "rows": [{"name": "=cmd|'x'", "cells": [tables.plain_cell("@x\n\\input{y}"), tables.plain_cell("−3 × ~")]}],
    }
    rows = list(csv.reader(io.StringIO(table_files.csv_text(table))))
    assert rows == [["50% & more", "a_b", "'=1+1"], ["'=cmd|'x'", "'@x\n\\input{y}", "−3 × ~"]]
    latex = table_files.latex_text(table).splitlines()
    assert latex[3] == r"50\% \& more & a\_b & =1+1 \\"
    assert latex[5] == r"=cmd|'x' & @x \textbackslash{}input\{y\} & $-$3 $\times$ \textasciitilde{} \\"


def test_every_table_of_the_page_has_both_files(report):
    text = render(report)
    files = re.findall(r'<a download="([^"]+)" href="data:text/([^;]+);charset=utf-8;base64,([^"]+)">', text)
    views = text.count("<thead>")
    assert len(files) == 2 * views and len({name for name, _, _ in files}) == len(files)
    assert all(re.fullmatch(r"[\w@.-]+\.(csv|tex)", name) for name, _, _ in files)
    for _, kind, content in files:
        decoded = base64.b64decode(content).decode()
        assert decoded.count("\\begin{tabular}") == (kind == "x-tex") and "script>alert(1)<" not in decoded


@needs_browser
def test_the_page_in_a_browser(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(report), encoding="utf-8")
    with launched() as browser:
        for name, width, scheme in (("desktop", 1280, "light"), ("phone", 360, "dark")):
            with opened(browser, viewport={"width": width, "height": 740}, color_scheme=scheme) as page:
                page.goto(path.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.locator("nav .inner").first.click()
                contents = page.locator("nav").bounding_box()
                assert page.evaluate("scrollY") > 500 and 0 <= contents["y"] < 5  # in view
                section = page.locator("#suite-0-cases")
                cases = section.locator(".example")
                assert not cases.first.is_visible()
                section.locator("summary").first.click()
                assert cases.filter(visible=True).count() == 8
                section.get_by_label(WON).check()
                assert [one.split("?")[0] for one in cases.filter(visible=True).all_inner_texts()] == [
                    f"Where is thing {i}" for i in range(1, 6)
                ]
                cases.nth(1).locator("summary").click()
                assert "Right: Rouen" in cases.nth(1).inner_text() and "nowhere" in cases.nth(1).inner_text()
                with page.expect_download() as download:
                    page.locator("#overview a[download$='.csv']").click()
                assert "good/clara,75.0,50.0,100.0" in Path(download.value.path()).read_text("utf-8")
                section.locator("summary").first.click()
                assert not cases.nth(1).is_visible()  # folded again
                section.locator("summary").first.click()
                picture(page, f"report_{name}")
                check_axe(page)
