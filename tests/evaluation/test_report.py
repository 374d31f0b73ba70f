"""The report of a small evaluation by hand."""

import dataclasses
import json
import math

import pytest

from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction
from clara_jax.evaluation.report import build, in_order, is_control, teachers
from clara_jax.evaluation.tables import summary
from clara_jax.metrics.cases import Case, Suite
from tests.evaluation import made_up

NAME = made_up.suite().name


@pytest.fixture(scope="module")
def report():
    return build({"settings": {"k": 2}}, [made_up.suite()], {NAME: made_up.predictions()}, resamples=500)


def system(report, name):
    (found,) = [entry for entry in report["suites"][0]["systems"] if entry["name"] == name]
    return found


def test_means_by_hand(report):
    good = system(report, "good/clara")["metrics"]
    assert good["f1"]["mean"] == good["exact_match"]["mean"] == 0.75 and good["f1"]["n"] == 8
    assert 0 <= good["f1"]["low"] < 0.75 < good["f1"]["high"] <= 1
    assert good["recall@1"]["mean"] == 0.75 and good["recall@3"]["mean"] == 0.75
    assert good["compress_rate"]["mean"] == pytest.approx(160 / 15, abs=1e-6)  # of sums, not of cases
    assert good["effective_rate"]["mean"] == 15 and good["passage_bytes"]["mean"] == 500
    assert "effective_rate" not in system(report, "good/no_memory")["metrics"]
    assert not {"documents", "document_rates", "document_bytes"} & (set(report["metrics"]) | set(good))
    assert good["total_ms"] == {"mean": 20.5, "low": 20.0, "high": 21.0, "n": 2}
    ranker = system(report, "rank/bm25")
    assert ranker["metrics"]["recall@1"]["mean"] == 0.25 and "f1" not in ranker["metrics"]


def test_shares_of_the_texts_lead(report):
    """(0.75 - 0.125) / (1 - 0.125), over the cases of all three; what reads no text's documents is no teacher."""
    (lead,) = system(report, "good/clara")["normalised"]
    assert (lead["to"], lead["none"]) == ("base/text_oracle", "good/no_memory")
    assert lead["metrics"]["f1"]["mean"] == lead["metrics"]["exact_match"]["mean"] == pytest.approx(0.625 / 0.875)
    assert lead["metrics"]["f1"]["low"] < 0.71 < lead["metrics"]["f1"]["high"] and lead["metrics"]["f1"]["n"] == 8
    (other,) = system(report, "good/other_memory")["normalised"]
    assert other["metrics"]["f1"]["mean"] == 0
    for name in ("good/no_memory", "base/text_oracle", "rank/bm25"):
        assert system(report, name)["normalised"] == [], name
    line = f"good/clara: normalised token F1 (%) of base/text_oracle: {100 * 0.625 / 0.875:.1f} ["
    assert line in summary(report)


def test_a_text_that_is_no_better_leaves_the_share_undefined():
    found = made_up.predictions() | {"base/text_oracle": made_up.answers({0})}
    report = build({}, [made_up.suite()], {NAME: found}, resamples=50)
    (lead,) = system(report, "good/clara")["normalised"]
    assert lead["metrics"]["f1"] == {"mean": None, "low": None, "high": None, "n": 8}
    assert "good/clara: normalised token F1 (%) of base/text_oracle: not defined, text is no better" in summary(report)


def test_a_teacher_reads_what_the_system_reads():
    systems = ["m/clara", "m/gold_memory", "a/text_topk", "a/text_oracle", "b/text_oracle", "a/text_top1", "rank/bm25"]
    assert teachers("m/clara", systems) == ["a/text_topk", "b/text_oracle"]
    assert teachers("m/gold_memory", systems) == ["a/text_oracle", "b/text_oracle"]
    assert teachers("m/no_memory", systems) == teachers("a/text_topk", systems) == teachers("rank/bm25", systems) == []


def test_what_the_text_model_follows():
    suite = made_up.suite()
    changed = Suite(suite.name, True, tuple(dataclasses.replace(case, instead_of=("nowhere",)) for case in suite.cases))
    report = build({}, [changed], {NAME: made_up.predictions() | {"base/text_oracle": made_up.answers({0, 1, 2, 6})}})
    good = system(report, "good/clara")
    assert good["metrics"]["followed"]["mean"] == 0.75 and good["metrics"]["kept_original"]["mean"] == 0.25
    (entry,) = good["followed_with"]
    assert entry["to"] == "base/text_oracle" and entry["share"]["mean"] == 0.75 and entry["share"]["n"] == 4
    assert "good/clara: follows of the changed documents that base/text_oracle follows (%): 75.0 [" in summary(report)
    silent = build({}, [changed], {NAME: made_up.predictions() | {"base/text_oracle": made_up.answers(set())}})
    assert system(silent, "good/clara")["followed_with"] == []


def test_differences_are_from_the_models_own_way(report):
    (difference,) = system(report, "good/no_memory")["differences"]
    assert difference["to"] == "good/clara" and difference["metrics"]["f1"]["mean"] == 0.125 - 0.75
    assert difference["metrics"]["f1"]["high"] < 0 and difference["metrics"]["f1"]["p"] < 0.05
    assert "recall@1" not in difference["metrics"]  # the control ranks nothing
    assert [difference["to"] for difference in system(report, "base/text_oracle")["differences"]] == [
        "good/clara",
        "idle/clara",
    ]
    assert [difference["to"] for difference in system(report, "good/clara")["differences"]] == ["idle/clara"]
    ranker = system(report, "rank/bm25")["differences"]
    assert ranker[0]["metrics"]["recall@1"]["mean"] == 0.25 - 0.75


def test_differences_are_of_the_cases_that_both_have():
    found = made_up.predictions()
    found = {"good/clara": found["good/clara"], "good/no_memory": found["good/no_memory"][2:]}
    report = build({}, [made_up.suite()], {NAME: found}, resamples=50)
    (difference,) = system(report, "good/no_memory")["differences"]
    f1 = difference["metrics"]["f1"]
    assert f1["mean"] == pytest.approx(0 - 4 / 6, abs=1e-6) and f1["n"] == 6
    assert system(report, "good/clara")["metrics"]["f1"]["n"] == 8 and system(report, "good/no_memory")["cases"] == 6


def test_groups_of_tags_and_of_two(report):
    groups = {tuple(group["tags"].values()): group for group in system(report, "good/clara")["groups"]}
    assert list(groups) == [
        *(("early",), ("late",), ("name",), ("number",)),
        *(("early", "name"), ("early", "number"), ("late", "name"), ("late", "number")),
    ]
    assert groups[("early",)]["metrics"]["f1"]["mean"] == 1 and groups[("late",)]["metrics"]["f1"]["mean"] == 0.5
    assert groups[("late", "name")]["cases"] == 2 and groups[("late", "name")]["metrics"]["f1"]["n"] == 2


def test_whether_memories_are_used(report):
    good, idle = report["uses_memory"]["good"], report["uses_memory"]["idle"]
    assert good["verdict"] == "yes" and idle["verdict"] == "no"
    (suite,) = good["suites"]
    assert suite["used"] is True and suite["metric"] == "f1" and suite["clara"]["mean"] == 0.75
    assert suite["beats"]["no_memory"]["mean"] == 0.75 - 0.125 and suite["beats"]["no_memory"]["low"] > 0
    assert idle["suites"][0]["beats"]["other_memory"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 8, "p": 1.0}


def test_in_some_suites_only_or_not_known():
    suites = [made_up.suite("one"), made_up.suite("two")]
    good, idle = (
        {f"m/{name}": made_up.predictions()[f"{model}/{name}"] for name in ("clara", "no_memory", "other_memory")}
        for model in ("good", "idle")
    )
    verdict = build({}, suites, {"one": good, "two": idle}, resamples=200)["uses_memory"]["m"]
    assert verdict["verdict"] == "partly" and verdict["says"] == "in 1 of 2 suites"
    del good["m/other_memory"]
    assert build({}, suites, {"one": good}, resamples=50)["uses_memory"]["m"]["verdict"] == "unknown"


def test_controls_follow_what_they_control(report):
    names = [entry["name"] for entry in report["suites"][0]["systems"]]
    assert names == [
        *("good/clara", "good/no_memory", "good/other_memory", "idle/clara", "idle/no_memory", "idle/other_memory"),
        *("base/closed_book", "base/text_oracle", "rank/bm25", "rank/random"),
    ]
    assert in_order(reversed(names))[:2] == ["rank/bm25", "rank/random"]
    assert [name for name in names if is_control(name)] == [*names[1:3], *names[4:6], "rank/random"]


def test_examples_of_both_kinds_with_sources(report):
    examples = report["suites"][0]["examples"]
    assert examples["system"] == "good/clara"
    # Of cases 4 and 5 no other model but the one that is given the right text knows the answer.
    assert [example["case"] for example in examples["wins"]][:2] == ["case 4", "case 5"]
    assert [example["case"] for example in examples["failures"]] == ["case 6", "case 7"]
    failure = examples["failures"][0]
    assert failure["references"] == ["Leeds"]
    assert {answer["system"]: answer["answer"] for answer in failure["answers"]}["base/text_oracle"] == "Leeds"
    read, _, missed = failure["sources"]
    assert (read["document"], read["read"], read["gold"], read["rank"], read["score"]) == (0, True, False, 1, 0.9)
    assert (missed["document"], missed["read"], missed["gold"], missed["rank"], missed["score"]) == (
        1,
        False,
        True,
        4,
        0.125,
    )


def test_it_is_json_and_the_same_again(report):
    text = json.dumps(report, allow_nan=False)
    again = build({"settings": {"k": 2}}, [made_up.suite()], {NAME: made_up.predictions()}, resamples=500)
    assert json.dumps(again, allow_nan=False) == text and json.loads(text) == report


def test_the_order_of_predictions_changes_nothing(report):
    turned = {name: predictions[::-1] for name, predictions in made_up.predictions().items()}
    assert build({"settings": {"k": 2}}, [made_up.suite()], {NAME: turned}, resamples=500) == report


def test_what_is_not_a_number_is_null():
    report = build(
        {"rate": math.nan, "list": [math.inf, 1]}, [made_up.suite()], {NAME: {"m/clara": made_up.answers({1})[:1]}}
    )
    assert report["plan"] == {"rate": None, "list": [None, 1]}
    assert system(report, "m/clara")["metrics"]["f1"] == {"mean": 0.0, "low": None, "high": None, "n": 1}
    json.dumps(report, allow_nan=False)


def test_a_suite_without_references_has_costs_alone():
    suite = made_up.suite()
    suite = Suite(suite.name, True, tuple(dataclasses.replace(case, references=()) for case in suite.cases))
    report = build({}, [suite], {NAME: made_up.predictions()}, resamples=50)
    assert (
        "f1" not in system(report, "good/clara")["metrics"]
        and "prompt_tokens" in system(report, "good/clara")["metrics"]
    )
    assert report["suites"][0]["examples"] is None and report["uses_memory"]["good"]["suites"] == []
    assert report["uses_memory"]["good"]["verdict"] == "unknown"


def test_paraphrases_are_judged_by_rouge():
    documents = ["The tower of Oslo has 12 bells.", "The pier of Porto has 30 boats."]
    suite = Suite(
        "paraphrase", False, tuple(Case(str(i), "paraphrase", "", (text,), ()) for i, text in enumerate(documents))
    )
    told = {"m/clara": documents, "m/no_memory": ["a", "b"], "m/other_memory": documents[::-1]}
    found = {
        name: [Prediction(str(i), text, read=(0,)) for i, text in enumerate(texts)] for name, texts in told.items()
    }
    report = build({}, [suite], {"paraphrase": found}, resamples=200)
    assert report["suites"][0]["main"] == "rougeL" and system(report, "m/clara")["metrics"]["rougeL"]["mean"] == 1
    assert report["uses_memory"]["m"]["verdict"] == "yes"
    assert report["suites"][0]["examples"]["wins"][0]["sources"][0]["text"] == documents[0]


def test_suites_without_predictions_are_left_out():
    report = build({}, [made_up.suite()], {NAME: {"m/clara": []}})
    assert report["suites"] == [] and report["uses_memory"] == {}


def test_a_prediction_of_another_suite_is_named():
    with pytest.raises(ClaraError, match="end_to_end/nq/oracle: m/clara: there is no case 'other'"):
        build({}, [made_up.suite()], {NAME: {"m/clara": [Prediction("other", "text")]}})
    with pytest.raises(ClaraError, match="m/clara: the order .* remove the prediction"):
        build({}, [made_up.suite()], {NAME: {"m/clara": [Prediction("case 1", "text", order=(0, 0, 1, 2))]}})


def test_summary_prints_every_result_with_its_controls(report):
    lines = summary(report).splitlines()
    assert lines[0] == f"{NAME}: 8 cases"
    assert lines[1].split()[:3] == ["token", "F1", "(%)"]
    assert lines[2].startswith("good/clara") and lines[3].startswith("  good/no_memory")
    assert " 75.0 [" in lines[2] and " 12.5 [" in lines[3]
    assert len({len(line) for line in lines[2:5]}) <= 2 and "good: yes, in 1 suite" in lines
