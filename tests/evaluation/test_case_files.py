"""Cases from files: every question and document once, under a name that stays, whatever is missing."""

import gzip
import json

import pytest

from clara_jax.errors import ClaraError
from clara_jax.evaluation.case_files import (
    paraphrase_cases,
    question_cases,
    read_documents,
    scp_cases,
    window_cases,
)
from clara_jax.input_pipeline.drawn import drawn

QUESTION = {"question": "Who?", "docs": ["d0", "d1"], "answer": "Ann"}
QA = {"data_type": "qa", "question": ["Q1", "Q2"], "answers": ["A1", "A2"], "docs": ["d"]}
PARAPHRASE = {"data_type": "paraphrase", "question": "", "answers": ["paraphrased"], "docs": ["d"]}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_questions(tmp_path):
    many = {"golden_answers": ["A", "B"], "gold_answer": "B", "pos_index": [1], "qid": "first", "docs": ["x"] * 7}
    path = write(tmp_path / "a.jsonl", QUESTION | many, "", QUESTION)
    first, second = question_cases(path)
    assert (first.id, first.kind, first.question, first.tags) == ("first", "question", "Who?", {})
    assert (first.documents, first.references, first.positives) == (("x",) * 7, ("A", "B"), (1,))
    assert (second.id, second.references, second.positives) == ("line 3", ("Ann",), ())


def test_names_are_unique_and_stay(tmp_path):
    names = ["a", None, "a", "line 2", 7, "a (2)", "a"]
    lines = [QUESTION | {"qid": name} for name in names]
    cases = question_cases(write(tmp_path / "a.jsonl", *lines))
    assert [case.id for case in cases] == ["a", "line 2", "a (2)", "line 2 (2)", "7", "a (2) (2)", "a (3)"]
    (tmp_path / "moved").mkdir()
    moved = write(tmp_path / "moved" / "b.jsonl", *lines)
    assert question_cases(moved) == cases
    assert [question_cases(moved, limit) for limit in range(1, 9)] == [tuple(drawn(cases, n)) for n in range(1, 9)]


@pytest.mark.parametrize("nothing", [{}, {"answer": None}, {"answer": ""}, {"golden_answers": []}])
def test_no_answer_is_no_reference(tmp_path, nothing):
    path = write(tmp_path / "a.jsonl", {"question": "Who?", "docs": ["d"]} | nothing, QUESTION)
    assert [case.references for case in question_cases(path)] == [(), ("Ann",)]
    path = write(tmp_path / "b.jsonl", {"data_type": "qa", "question": ["Q1", "Q2"], "docs": ["d"]} | nothing)
    assert [(case.question, case.references) for case in scp_cases(path)] == [("Q1", ()), ("Q2", ())]
    path = write(tmp_path / "c.jsonl", {"data_type": "paraphrase", "docs": ["d"]} | nothing)
    assert [case.references for case in paraphrase_cases(path)] == [()]


def test_scp_questions_are_cases_of_one_document(tmp_path):
    single = QA | {"question": "Q", "answers": "A", "qid": "q"}
    path = write(tmp_path / "a.jsonl", QA, PARAPHRASE, single)
    cases = scp_cases(path)
    assert [(case.id, case.question, case.references) for case in cases] == [
        ("line 1 question 1", "Q1", ("A1",)),
        ("line 1 question 2", "Q2", ("A2",)),
        ("q", "Q", ("A",)),
    ]
    assert all((case.kind, case.documents, case.positives) == ("question", ("d",), ()) for case in cases)
    assert scp_cases(path, 1) == cases[:1]


def test_documents_are_told_again(tmp_path):
    lines = [
        PARAPHRASE | {"answers": ["one", "two"], "qid": "p"},
        QUESTION | {"docs": ["d0", "d1", "d0"], "qid": 0},  # a right answer does not tell a document
        QA | {"docs": ["d1"]},
        {"context": ["d2"]},
        {"id": "c#1", "title": "Ulm", "text": "A town."},
        {"content": "a passage"},
        PARAPHRASE,  # of a document that came before, but with a reference
    ]
    path = write(tmp_path / "a.jsonl", *lines)
    cases = paraphrase_cases(path)
    assert [(case.id, case.documents, case.references) for case in cases] == [
        ("p", ("d",), ("one", "two")),
        ("0 document 1", ("d0",), ()),
        ("0 document 2", ("d1",), ()),
        ("line 4", ("d2",), ()),
        ("c#1", ("Ulm\nA town.",), ()),
        ("line 6", ("a passage",), ()),
        ("line 7", ("d",), ("paraphrased",)),
    ]
    assert all((case.kind, case.question) == ("paraphrase", "") for case in cases)
    assert paraphrase_cases(path, 2) == tuple(drawn(cases, 2))
    assert list(read_documents(path)) == ["d", "d0", "d1", "d0", "d1", "d2", "Ulm\nA town.", "a passage", "d"]


def test_compressed_files(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(QUESTION).encode()))
    assert question_cases(str(path))[0].documents == ("d0", "d1")


@pytest.mark.parametrize(
    ("read", "lines", "message"),
    [
        (question_cases, [], "a.jsonl: the file holds no questions over documents"),
        (scp_cases, [PARAPHRASE], 'a.jsonl: the file holds no records of "data_type": "qa"'),
        (paraphrase_cases, [""], "a.jsonl: the file holds no documents"),
        (question_cases, [QUESTION, QUESTION | {"docs": []}], 'a.jsonl:2: "docs" is empty'),
        (question_cases, [QUESTION, "{"], "a.jsonl:2: column 1: not JSON"),
        (question_cases, [QA], 'a.jsonl:1: "question" is a list'),
        (question_cases, [QUESTION | {"answer": 3}], 'a.jsonl:1: "answer" is a number'),
        (scp_cases, [QUESTION | {"docs": ["a", "b"]}], 'a.jsonl:1: "docs" holds 2 documents'),
        (paraphrase_cases, [PARAPHRASE | {"docs": ["a", "b"]}], 'a.jsonl:1: "docs" holds 2 documents'),
        (paraphrase_cases, [{"question": "Who?"}], 'a.jsonl:1: "text" is missing'),
        (paraphrase_cases, ["[]"], "a.jsonl:1: the line holds a list"),
    ],
)
def test_bad_files_are_named(tmp_path, read, lines, message):
    path = write(tmp_path / "a.jsonl", *lines)
    with pytest.raises(ClaraError) as caught:
        read(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(tmp_path))


def test_a_limit_is_a_draw_from_the_whole_file(tmp_path):
    lines = [QUESTION | {"qid": f"{article}-{i}"} for article in range(10) for i in range(30)]
    cases = question_cases(write(tmp_path / "a.jsonl", *lines), 30)
    assert len(cases) == 30 and len({case.id.partition("-")[0] for case in cases}) >= 8
    with pytest.raises(ClaraError, match="a.jsonl:301"):
        question_cases(write(tmp_path / "a.jsonl", *lines, "{"), 1)


def test_windows_are_written_out(tmp_path):
    texts = [" ".join(f"w{i}-{j}" for j in range(6)) for i in range(20)]
    path = write(tmp_path / "a.jsonl", *({"text": text} for text in texts), {"text": "too short"})
    whole = window_cases(path)
    assert [case.documents for case in whole] == [(text,) for text in (*texts, "too short")]
    assert all((case.kind, case.question, case.references) == ("autoencode", "", ()) for case in whole)
    windows = window_cases(path, words=4)
    assert len(windows) == 20 and windows == window_cases(path, words=4) != window_cases(path, words=4, seed=1)
    places = {text.find(case.documents[0]) for case, text in zip(windows, texts, strict=True)}
    assert all(len(case.documents[0].split()) == 4 for case in windows) and -1 not in places and len(places) > 1
    assert window_cases(path, 3, words=4) == tuple(drawn(windows, 3))
    with pytest.raises(ClaraError, match="the file holds no documents of 7 words"):
        window_cases(path, words=7)
