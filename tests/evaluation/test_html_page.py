"""The page of a small evaluation by hand: whole, closed to the outside, and nothing in it runs."""

import json
from html.parser import HTMLParser

import pytest

from clara_jax.errors import ClaraError
from clara_jax.evaluation.html_page import render, write
from clara_jax.evaluation.report import build
from tests.evaluation import made_up

VOID = {"meta", "wbr", "img", "line", "circle", "polyline", "input"}
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(2)</script></svg>'
INSIDE = {
    "lens": {
        "title": f"Lens {made_up.SCRIPT}",
        "text": "First.\n\nSecond.",
        "table": {"columns": ["token", "share"], "rows": [["<b>", 0.12345], ["x", None]]},
        "picture": PICTURE,
    },
    "plain": {"title": "Plain", "text": "", "table": None, "picture": None},
}


class Page(HTMLParser):
    """Every element with its attributes, all text; that they are nested well."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def report():
    suites = [made_up.suite(), made_up.suite("needle")]
    predictions = {suite.name: made_up.predictions() for suite in suites}
    return build({"command": made_up.SCRIPT, "models": {"good": {"path": None}}}, suites, predictions, resamples=100)


@pytest.fixture(scope="module")
def page(report):
    return Page(render({**report, "inside": INSIDE}))


def test_it_is_nested_well_and_its_links_lead_somewhere(page):
    assert page.open == []
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a" and "download" not in attributes]
    assert len(set(names)) == len(names) and {link[1:] for link in links} == set(names)


def test_nothing_in_it_runs_or_comes_from_outside(page):
    assert not {"script", "iframe", "object", "link", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "xlink:href", "data"):
            allowed = ("data:text/csv;", "data:text/x-tex;") if "download" in attributes else ("#", "data:image/")
            assert name not in attributes or attributes[name].startswith(allowed), (tag, attributes)
    style = "".join(page.texts)
    assert "url(" not in style and "@import" not in style
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy and "script" not in policy


def test_what_came_from_data_is_text(report):
    text = render({**report, "inside": INSIDE})
    assert "<script" not in text and "alert(2)" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4  # questions, documents, the plan, a section


def test_tables_have_intervals_and_the_best_is_marked(page, report):
    text = " ".join(page.texts)
    good = report["suites"][0]["systems"][0]["metrics"]["f1"]
    assert "75.0" in text and f"{100 * good['low']:.1f}–{100 * good['high']:.1f}" in text
    start = text.index("All suites", text.index("All suites") + 1)
    overview = text[start : text.index("candidates are ranked")]
    assert (
        overview.index("good/clara".replace("/", "/ "))
        < overview.index("good/ no_ memory")
        < overview.index("idle/ clara")
    )
    best = [attributes for tag, attributes in page.elements if tag == "td" and attributes.get("class") == "best"]
    # good/clara in 6 metrics of answers and 5 of ranking, twice; and in the overview. It is better only than its
    # controls and what is no control: base/text_oracle knows more, and is not marked.
    assert len(best) == 2 * (6 + 5) + 2


def test_shares_of_the_texts_lead_have_a_table(report, page):
    text = " ".join(page.texts)
    assert (
        "Teacher-normalised" in text
        and "71.4" in text
        and "effective rate (×)" in text
        and "bytes a passage (B)" in text
    )
    changed = json.loads(json.dumps(report))
    for system in changed["suites"][0]["systems"]:
        for share in system["normalised"]:
            share["metrics"] = {name: dict(mean=None, low=None, high=None, n=8) for name in share["metrics"]}
    assert "text is no better" in render(changed) and "text is no better" not in text


def test_pictures(page):
    charts = [
        attributes["aria-label"]
        for tag, attributes in page.elements
        if tag == "svg" and attributes.get("class") == "chart"
    ]
    assert "Recall@k in needle" in charts and "token F1 against the effective rate in needle" in charts
    strips = [
        attributes
        for tag, attributes in page.elements
        if tag == "svg" and attributes.get("class", "").startswith("strip")
    ]
    assert len(strips) == 2 * 8 and sum("hollow" in attributes["class"] for attributes in strips) == 2 * 4
    heat = [attributes["style"] for tag, attributes in page.elements if "--share" in attributes.get("style", "")]
    assert heat[:4] == [
        "--share: 1.0",
        "--share: 1.0",
        "--share: 0.5",
        "--share: 0.5",
    ]  # good/clara by position and fact


def test_sections_of_others(page):
    text = " ".join(page.texts)
    assert "First." in text and "Second." in text and "0.1235" in text and "–" in text
    (image,) = [attributes for tag, attributes in page.elements if tag == "img"]
    assert image["src"].startswith("data:image/svg+xml;base64,")  # an image, in which scripts do not run
    with pytest.raises(ValueError, match="picture"):
        render_with_picture("https://example.org/a.png")


def render_with_picture(picture):
    empty = build({}, [], {})
    return render({**empty, "inside": {"one": {**INSIDE["plain"], "picture": picture}}})


def test_an_empty_report_is_a_page():
    assert "No model with memories was asked." in render(build({}, [], {}))


def test_written(tmp_path, report):
    write(report, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report
    assert (folder / "report.html").read_text(encoding="utf-8") == render(report)
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="file"):
        write(report, tmp_path / "file")


def test_half_a_pair_of_surrogates_is_written(tmp_path):
    found = {"m/clara": made_up.answers({1}, wrong="\ud800"), "m/no_memory": made_up.answers({0})}
    suite = made_up.suite()
    write(build({}, [suite], {suite.name: found}, resamples=20), tmp_path)
    assert "?" in (tmp_path / "report.html").read_text(encoding="utf-8")
