"""All looks at a tiny model: sections that are JSON, the same each time, and as many as the cases allow."""

import json

import numpy as np
import pytest

from clara_jax.analysis.inside_report import analyze, pick_cases, pick_documents
from clara_jax.errors import ClaraError
from clara_jax.metrics.cases import Case, Suite
from tests.tiny import document

ALL = ["lens", "lens_examples", "geometry", "attention", "gaps", "selection"]


def suite(name, ranked, count, documents=5, known=True, first=0):
    cases = []
    for i in range(first, first + count):
        texts = tuple(document(7 * i + j) for j in range(documents))
        positives = (i % documents,) if known else ()
        cases.append(Case(str(i), "question", f"Where was number {i} born?", texts, ("Oslo",), positives))
    return Suite(name, ranked, tuple(cases))


def paraphrases(count):
    cases = (Case(str(i), "paraphrase", "", (document(i),), (document(i),)) for i in range(count))
    return Suite("again", False, tuple(cases))


def test_all_looks(clara):
    ranked = suite("ranked", True, 6)
    found = analyze(clara, [ranked, suite("read", False, 6, first=9), paraphrases(3)], 5, 0, k=2)
    assert list(found) == ALL
    for section in found.values():
        assert set(section) == {"title", "text", "table", "picture"} and section["title"] and section["text"]
        assert all(len(row) == len(section["table"]["columns"]) for row in section["table"]["rows"])
    json.dumps(found, allow_nan=False)
    stable = {row[0]: row for row in found["selection"]["table"]["rows"]}
    assert stable["an unselected candidate taken away (check)"][1:] == [5, 0, 1]
    assert len(found["attention"]["table"]["rows"]) == 2  # layers
    assert "5 questions" in found["attention"]["text"] and "another question's" in found["attention"]["text"]


def test_memories_that_were_made_before_are_read(clara):
    """With the model's memories all is the same, with others the selection is not."""
    asked, calls = [suite("ranked", True, 4)], []

    def read(ids, change=lambda x: x):
        calls.append(len(ids))
        texts = [clara.bundle.tokenizer.decode(tokens) for tokens in ids]
        return change(clara.compress([text.strip() for text in texts]).array)

    expected = analyze(clara, asked, 4, 3, k=2)
    assert analyze(clara, asked, 4, 3, k=2, read=read) == expected
    assert calls == [20]
    other = analyze(clara, asked, 4, 3, k=2, read=lambda ids: read(ids, lambda x: x[::-1]))
    assert other["gaps"] != expected["gaps"] and other["geometry"] == expected["geometry"]


def test_less_is_looked_at_where_cases_allow_less(clara):
    few = analyze(clara, [suite("read", False, 4, documents=2, known=False)], 4, 0)
    assert list(few) == ["lens", "lens_examples", "geometry", "attention"]
    assert {row[0] for row in few["lens"]["table"]["rows"]} == {"a document"}
    assert list(analyze(clara, [suite("small", True, 3)], 3, 0, k=5)) == ALL[:4]  # nothing is left out of a selection
    assert list(analyze(clara, [paraphrases(4)], 3, 0)) == ALL[:3]
    assert list(analyze(clara, [paraphrases(2)], 3, 0)) == ALL[:2]
    long = suite("long", True, 3, documents=40)  # its prompt does not fit
    assert list(analyze(clara, [long], 3, 0, k=39)) == [*ALL[:3], "gaps", "selection"]


def test_cases_come_from_all_suites_in_turn():
    a, b = suite("a", True, 8), suite("b", True, 2, first=20)
    unknown = Suite("c", True, suite("c", True, 3, known=False, first=30).cases + suite("c", True, 1, first=40).cases)
    twice = suite("d", True, 8)
    ranked, found = pick_cases([a, suite("read", False, 9, first=60), b, unknown, twice], 30, 0)
    assert ranked and len(found) == 8 + 2 + 1
    assert {case.id.split("/")[0] for case in found[:3]} == {"a", "b", "c"}
    assert len({case.question for case in found}) == len({case.id for case in found}) == len(found)
    assert pick_cases([a, b], 4, 0) == pick_cases([a, b], 4, 0) != pick_cases([a, b], 4, 1)
    assert pick_cases([paraphrases(2)], 4, 0) == (False, [])


def test_documents_are_the_right_ones_first():
    cases = suite("a", True, 4).cases
    found = pick_documents(cases, [], 6, 0)
    assert found[:4] == [case.documents[case.positives[0]] for case in cases]
    assert len(set(found)) == 6 and set(found) <= {text for case in cases for text in case.documents}
    assert len(pick_documents([], [paraphrases(5)], 3, 0)) == 3


@pytest.mark.parametrize(
    ("suites", "limit", "message"), [([], 1, "no cases"), ([suite("a", True, 1)], 0, "limit is 0")]
)
def test_mistakes(clara, suites, limit, message):
    with pytest.raises(ClaraError, match=message):
        analyze(clara, suites, limit, 0)


def test_a_single_question_is_enough(clara):
    found = analyze(clara, [suite("a", True, 1)], 1, 0, k=2)
    assert list(found)[:2] == ALL[:2] and "control" not in found["attention"]["text"]
    assert np.all([row[1] >= 0 for row in found["gaps"]["table"]["rows"]])
