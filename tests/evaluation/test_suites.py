"""Suites by name: the released layout, users' files, and one line for whatever is not there."""

import json
import os

import pytest

from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.evaluation.suites import MODES, NAMES, PARTS, SETS, open_suites
from tests.configurations import changed
from tests.evaluation.test_needle import DOCUMENTS
from tests.locations import shared_data

WORLD = SyntheticConfig(
    world=dict(name_words=12, train_partners=8, eval_partners=4), records=dict(eval=20, paraphrase_share=0.0)
)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def questions(*documents, count=3):
    return [{"qid": f"q{i}", "question": f"Q{i}?", "docs": documents, "answer": "A"} for i in range(count)]


def names(suites):
    return [suite.name for suite in suites]


@pytest.fixture
def data(tmp_path):
    """The released layout, not all of it, and a user's files."""
    for place, documents in (("stage1_eval", DOCUMENTS[:5]), ("stage2_eval", DOCUMENTS[:20])):
        for name in ("squad/no_pos", "nq/no_pos", "nq/with_pos"):
            data_set, mode = name.split("/")
            write(tmp_path / "eval" / place / data_set / f"eval_processed_{mode}.jsonl", *questions(*documents))
    write(tmp_path / "mine" / "some.jsonl", *questions("d0", "d1"))
    qa = {"data_type": "qa", "question": ["Q1", "Q2"], "answers": ["A1", "A2"], "docs": ["d"]}
    write(tmp_path / "mine" / "scp.jsonl", qa, {"data_type": "paraphrase", "answers": ["again"], "docs": ["d"]})
    return str(tmp_path)


def test_sets_and_modes_that_are_there(data):
    suites = open_suites(["compressor", "end_to_end"], data, None, None, 0)
    assert names(suites) == [
        f"{kind}/{name}" for kind in ("compressor", "end_to_end") for name in ("nq/normal", "nq/oracle", "squad/normal")
    ]
    assert [(suite.ranked, len(suite.cases[0].documents)) for suite in suites] == [(False, 5)] * 3 + [(True, 20)] * 3
    assert [case.id for case in suites[0].cases] == ["q0", "q1", "q2"]
    assert names(open_suites(["compressor/nq"], data, None, None, 0)) == [
        "compressor/nq/normal",
        "compressor/nq/oracle",
    ]
    (one,) = open_suites(["end_to_end/nq/oracle"], data, 2, None, 0)
    assert one.name == "end_to_end/nq/oracle" and len(one.cases) == 2
    inner = open_suites(["compressor", "end_to_end"], os.path.join(data, "eval"), None, None, 0)
    assert inner == suites


def test_normal_is_as_retrieved_and_oracle_has_the_right_ones(data, tmp_path):
    for file, text in (("eval_processed_no_pos.jsonl", "as retrieved"), ("eval_processed_with_pos.jsonl", "right")):
        write(tmp_path / "eval" / "stage1_eval" / "2wiki" / file, *questions(text))
    suites = open_suites(["compressor/2wiki/oracle", "compressor/2wiki/normal"], data, None, None, 0)
    assert [suite.cases[0].documents for suite in suites] == [("right",), ("as retrieved",)]


def test_files_of_ones_own(data, monkeypatch):
    suites = open_suites(
        ["questions:mine/some.jsonl", "documents:mine/some.jsonl", "scp:mine/scp.jsonl", "paraphrase:mine/scp.jsonl"],
        data,
        None,
        None,
        0,
    )
    assert [(suite.name, suite.ranked, suite.kind, len(suite.cases)) for suite in suites] == [
        ("questions/mine/some", True, "question", 3),
        ("documents/mine/some", False, "question", 3),
        ("scp/mine/scp", False, "question", 2),
        ("paraphrase/mine/scp", False, "paraphrase", 2),
    ]
    monkeypatch.chdir(os.path.join(data, "mine"))
    for folder, file in ((None, "scp.jsonl"), (data, "scp.jsonl"), (None, os.path.join(data, "mine", "scp.jsonl"))):
        assert open_suites([f"scp:{file}"], folder, None, None, 0) == suites[2:3]
    assert [len(suite.cases) for suite in open_suites(["scp:scp.jsonl"], None, 1, None, 0)] == [1]


def test_a_file_in_the_data_folder_comes_first(data, monkeypatch, tmp_path):
    write(tmp_path / "here" / "mine" / "some.jsonl", *questions("other"))
    monkeypatch.chdir(tmp_path / "here")
    (found,) = open_suites(["documents:mine/some.jsonl"], data, None, None, 0)
    assert found.cases[0].documents == ("d0", "d1")


def test_no_suite_comes_twice(data, tmp_path):
    suites = open_suites(["compressor/nq/oracle", "compressor", "compressor/nq"], data, None, None, 0)
    assert names(suites) == ["compressor/nq/oracle", "compressor/nq/normal", "compressor/squad/normal"]
    write(tmp_path / "other" / "mine" / "some.jsonl", *questions("x"))
    with pytest.raises(ClaraError, match="another suite is called 'documents/mine/some', too; rename the file"):
        open_suites(["documents:mine/some.jsonl", "documents:other/mine/some.jsonl"], data, None, None, 0)


def test_windows_and_changed_documents(data, tmp_path):
    towns = ("Oslo", "Rouen", "Lima")
    lines = [
        {
            "data_type": "qa",
            "question": [f"Where was {i}?"],
            "answers": [town],
            "docs": [f"It was in {town} all the day."],
        }
        for i, town in enumerate(towns)
    ]
    write(tmp_path / "mine" / "towns.jsonl", *lines)
    names_and_kinds = [
        (suite.name, suite.ranked, suite.kind, len(suite.cases))
        for suite in open_suites(
            [
                *("autoencode:mine/towns.jsonl", "autoencode/4:mine/towns.jsonl"),
                *("counterfactual:mine/towns.jsonl", "counterfactual/scp:mine/towns.jsonl"),
            ],
            data,
            None,
            None,
            0,
        )
    ]
    assert names_and_kinds == [
        ("autoencode/mine/towns", False, "autoencode", 3),
        ("autoencode/4/mine/towns", False, "autoencode", 3),
        ("counterfactual/mine/towns", False, "question", 3),
        ("counterfactual/scp/mine/towns", False, "question", 3),
    ]
    asked = [line | {"question": line["question"][0], "pos_index": [0], "data_type": None} for line in lines]
    write(tmp_path / "mine" / "asked.jsonl", *asked)
    (ranked,) = open_suites(["counterfactual/questions:mine/asked.jsonl"], data, 2, None, 0)
    assert ranked.ranked and [case.instead_of for case in ranked.cases] == [("Oslo",), ("Rouen",)]
    world = open_suites(["world/counterfactual"], None, None, WORLD, 0)
    assert names(world) == ["world/counterfactual"] and all(case.instead_of for case in world[0].cases)


def test_needles(data, tmp_path):
    (suite,) = open_suites(["needle"], data, 15, None, 0)
    assert (suite.name, suite.ranked, len(suite.cases)) == ("needle", False, 15)
    texts = [case.documents[0] for case in suite.cases]
    assert all(any(text[-60:] in document or text[:60] in document for document in DOCUMENTS) for text in texts)
    (short,) = open_suites(["needle/80"], data, 15, None, 0)
    assert short.name == "needle/80" and all(len(case.documents[0].split()) <= 80 for case in short.cases)
    assert short.digest() != suite.digest()
    assert open_suites(["needle"], data, 15, None, 1)[0].digest() != suite.digest()
    write(tmp_path / "mine" / "long.jsonl", *({"text": text} for text in DOCUMENTS[20:]))
    (needles,) = open_suites(["needle:mine/long.jsonl"], data, 15, WORLD, 0)
    assert needles.name == "needle/mine/long"
    assert names(open_suites(["needle/100:mine/long.jsonl"], data, 15, None, 0)) == ["needle/100/mine/long"]


def test_needles_in_the_documents_of_the_world():
    (suite,) = open_suites(["needle"], None, None, WORLD, 0)
    assert len(suite.cases) == 300
    assert all(case.documents[0].count("This ") + case.documents[0].count(" and ") > 5 for case in suite.cases)


def test_the_world(data):
    suites = open_suites(["world"], None, None, WORLD, 0)
    assert names(suites) == ["world/end_to_end", "world/documents", "world/needle"]
    assert names(open_suites(["world/hard"], data, 3, WORLD, 0)) == ["world/hard"]
    told = changed(WORLD, records=dict(paraphrase_share=0.5))
    assert names(open_suites(["world"], None, 6, told, 0))[3:] == ["world/paraphrase"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("poems", "there is no suite 'poems'; known are compressor"),
        ("", "there is no suite ''; known are"),
        ("compressor/nq/normal/x", "there is no suite"),
        ("compressor:mine/some.jsonl", "there is no suite"),
        ("questions", "there is no suite 'questions'; known are"),
        ("questions:", "there is no suite 'questions:'"),
        ("needle:", "there is no suite"),
        ("world/poems", "there is no suite 'world/poems'"),
        ("world", "world: this model was not trained on a synthetic world"),
        ("compressor/poems", "compressor/poems: 'poems' is unknown; known are nq, hotpotqa, musique, 2wiki, squad"),
        ("compressor/nq/hard", "compressor/nq/hard: 'hard' is unknown; known are normal, oracle"),
        ("compressor/squad/oracle", "stage1_eval has none of squad/eval_processed_with_pos.jsonl"),
        ("compressor/musique", "stage1_eval has none of musique/eval_processed_no_pos.jsonl, musique/"),
        ("needle/10", "needle/10: '10' must be a number of words, at least 60"),
        ("needle/many", "needle/many: 'many' must be a number of words"),
        ("autoencode", "there is no suite 'autoencode'"),
        ("autoencode/1:mine/some.jsonl", "'1' must be a number of words, at least 2"),
        ("autoencode/9:mine/some.jsonl", "the file holds no documents of 9 words"),
        ("counterfactual", "there is no suite 'counterfactual'"),
        ("counterfactual/paraphrase:mine/scp.jsonl", "there is no suite 'counterfactual/paraphrase"),
        ("counterfactual:mine/scp.jsonl", "no question whose answer another one's could take the place of"),
        ("scp:absent.jsonl", "absent.jsonl nor absent.jsonl: no such file"),
        ("scp:mine", "mine: no such file"),
        ("scp:mine/some.jsonl", 'some.jsonl:1: "docs" holds 2 documents; an scp record has exactly one'),
        ("needle:mine/some.jsonl", "needle: no document has 75 words"),
    ],
)
def test_what_is_not_there_is_one_line(data, name, message):
    with pytest.raises(ClaraError) as caught:
        open_suites([name], data, None, None, 0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_folders_and_limits_that_will_not_do(data, tmp_path):
    for arguments, message in (
        ((["compressor"], None, None, None, 0), "compressor: name the folder with the evaluation data"),
        ((["needle"], None, None, None, 0), "needle: name the folder with the evaluation data"),
        ((["compressor"], str(tmp_path / "gone"), None, None, 0), "gone: no such folder"),
        ((["compressor"], str(tmp_path / "mine"), None, None, 0), "there is neither .*stage1_eval nor .*stage1_eval"),
        ((["compressor"], data, 0, None, 0), "limit is 0; it must be at least 1"),
        (([], data, None, None, 0), "no suite is named; known are"),
    ):
        with pytest.raises(ClaraError, match=message):
            open_suites(*arguments)
    (tmp_path / "eval" / "stage1_eval" / "nq" / MODES["normal"]).write_text("\n")
    with pytest.raises(ClaraError, match="eval_processed_no_pos.jsonl: the file holds no questions"):
        open_suites(["compressor"], data, None, None, 0)


def test_the_help_names_every_part():
    assert all(word in NAMES for word in (*SETS, *MODES, *PARTS, "questions:FILE", "paraphrase:FILE", "needle"))


def test_real_data():
    folder = str(shared_data())
    suites = open_suites(["compressor", "end_to_end"], folder, None, None, 0)
    assert names(suites) == [
        f"{kind}/{data_set}/{mode}" for kind in ("compressor", "end_to_end") for data_set in SETS for mode in MODES
    ]
    for suite in suites:
        assert len(suite.cases) >= 150 and len({case.id for case in suite.cases}) == len(suite.cases)
        assert {len(case.documents) for case in suite.cases} == {20 if suite.ranked else 5}
        assert suite.ranked == suite.name.startswith("end_to_end") and all(case.references for case in suite.cases)
        assert "/normal" in suite.name or all(case.positives for case in suite.cases)
    by_name = {suite.name: suite for suite in suites}
    assert sum(not case.positives for case in by_name["compressor/hotpotqa/normal"].cases) > 0  # gold is missing
    assert sum(len(case.references) > 1 for case in by_name["end_to_end/nq/oracle"].cases) > 50
    assert [len(suite.cases) for suite in open_suites(["compressor/nq"], folder, 7, None, 0)] == [7, 7]


def test_real_out_of_domain_sets_and_paraphrases():
    files = [
        "scp:extra/boolq/stage1_pretrain_qa.jsonl",
        "scp:extra/fairytaleqa/stage1_pretrain_qa.dev.jsonl",
        "paraphrase:extra/paraphrase_onestop/stage1_pretrain_paraphrase.dev.jsonl",
        "paraphrase:squad/corpus.jsonl",
    ]
    boolq, tales, told, corpus = open_suites(files, str(shared_data()), 100, None, 0)
    assert boolq.name == "scp/boolq/stage1_pretrain_qa"
    assert {case.references for case in boolq.cases} == {("yes",), ("no",)}
    assert all(len(suite.cases) == 100 for suite in (boolq, tales, told, corpus))
    assert all(case.references for case in told.cases) and not any(case.references for case in corpus.cases)


def test_real_needles():
    (suite,) = open_suites(["needle"], str(shared_data()), 60, None, 0)
    assert len(suite.cases) == 60 and len({case.documents[0] for case in suite.cases}) == 60
    for case in suite.cases:
        assert 75 < len(case.documents[0].split()) <= 150
        assert case.references[0] in case.documents[0]
