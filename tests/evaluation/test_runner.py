"""A directory of predictions: nothing is asked twice, nothing is lost, nothing is mixed up."""

import dataclasses
import json

import pytest

from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import Prediction, PredictionFile
from clara_jax.evaluation.runner import PLAN, SystemSpec, claimed, prediction_path, read_suites, run, write_plan
from clara_jax.evaluation.systems import Settings
from clara_jax.metrics.cases import Case, Suite
from clara_jax.metrics.controls import CONDITIONS, RANK_CONDITION

SETTINGS = Settings(k=1)
CLARA, GOLD = CONDITIONS["clara"], CONDITIONS["gold_memory"]


def suite(name, count=5, ranked=True):
    cases = (
        Case(f"{i}", "question", f"q{i}", ("a", f"b{i}"), ("x",), (1,) if i % 2 else (), {"t": "u"})
        for i in range(count)
    )
    return Suite(name, ranked, tuple(cases))


SUITES = [suite("one/ranked"), suite("two/read", 3, False)]


class Stub:
    """Answers with the case's id; fails at a case where it is told to."""

    def __init__(self, log, fails_at=None):
        self.log, self.fails_at = log, fails_at

    def predict(self, condition, suite, cases, timed=False):
        self.log += [(suite.name, condition.name, case.id, timed) for case in cases]
        if any(case.id == self.fails_at for case in cases):
            raise RuntimeError("stopped")
        return [Prediction(case.id, answer=case.id) for case in cases]


def specs(log, fails_at=None, fingerprint="f"):
    about = {"fingerprint": fingerprint}
    return [
        SystemSpec("model", about, (CLARA, GOLD), lambda: Stub(log, fails_at)),
        SystemSpec("rank/some", {}, (RANK_CONDITION,), lambda: Stub(log, fails_at)),
    ]


def asked(log):
    return [(name, condition, case) for name, condition, case, _ in log]


def test_everybody_is_asked_what_fits(tmp_path):
    log = []
    run(specs(log), SUITES, SETTINGS, tmp_path, batch=2, progress=False)
    everything = [
        *(("one/ranked", "clara", str(i)) for i in range(5)),
        *(("one/ranked", "gold_memory", i) for i in "13"),
        *(("two/read", "clara", str(i)) for i in range(3)),
        ("two/read", "gold_memory", "1"),
        *(("one/ranked", "rank", str(i)) for i in range(5)),
    ]
    assert asked(log) == everything
    path = prediction_path(tmp_path, "one/ranked", "model/gold_memory")
    assert path.name == "model__gold_memory.jsonl" and list(PredictionFile(path).predictions) == ["1", "3"]
    assert len(PredictionFile(prediction_path(tmp_path, "one/ranked", "rank/some")).predictions) == 5
    del log[:]
    run(specs(log), SUITES, SETTINGS, tmp_path, batch=2, progress=False)
    assert log == []


@pytest.mark.parametrize("fails_at", ["0", "1", "2", "4"])
def test_stopped_work_goes_on_where_it_was(tmp_path, fails_at):
    first, second = [], []
    with pytest.raises(RuntimeError):
        run(specs(first, fails_at), SUITES, SETTINGS, tmp_path, batch=2, progress=False)
    run(specs(second), SUITES, SETTINGS, tmp_path, batch=2, progress=False)
    lost = asked(first)[-2:] if fails_at in "012" else asked(first)[-1:]  # the last batch holds one case
    assert set(asked(first)) & set(asked(second)) == set(lost)
    for name, system, count in (("one/ranked", "model/clara", 5), ("two/read", "model/clara", 3)):
        predictions = PredictionFile(prediction_path(tmp_path, name, system)).predictions
        assert sorted(predictions) == [str(i) for i in range(count)]
        assert all(prediction.answer == case for case, prediction in predictions.items())


def test_a_torn_line_is_asked_again(tmp_path):
    run(specs([]), SUITES, SETTINGS, tmp_path, batch=2, progress=False)
    path = prediction_path(tmp_path, "one/ranked", "model/clara")
    path.write_bytes(path.read_bytes()[:-3])
    log = []
    run(specs(log), SUITES, SETTINGS, tmp_path, batch=2, progress=False)
    assert asked(log) == [("one/ranked", "clara", "4")]
    assert list(PredictionFile(path).predictions) == [str(i) for i in range(5)]


def test_the_first_cases_of_a_suite_of_each_kind_are_timed(tmp_path):
    log = []
    suites = [*SUITES, suite("three/ranked")]
    run(specs(log), suites, SETTINGS, tmp_path, batch=4, timed=2, progress=False)
    timed = [entry[:3] for entry in log if entry[3]]
    assert timed == [
        *(("one/ranked", "clara", i) for i in "01"),
        ("one/ranked", "gold_memory", "1"),
        *(("two/read", "clara", i) for i in "01"),
        ("two/read", "gold_memory", "1"),
        *(("one/ranked", "rank", i) for i in "01"),
    ]


def test_a_plan_is_kept_and_added_to(tmp_path):
    write_plan(tmp_path, specs([]), SUITES[:1], SETTINGS)
    write_plan(tmp_path, specs([])[:1], SUITES, SETTINGS)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["settings"]["k"] == 1 and list(plan["models"]) == ["model", "rank/some"]
    assert read_suites(tmp_path) == SUITES
    assert [suite.digest() for suite in read_suites(tmp_path)] == [suite.digest() for suite in SUITES]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(settings=Settings(k=2)), r"settings: k is not what it was \(1 then, 2 now\)"),
        (dict(fingerprint="other"), "models: model is not what it was"),
        (dict(suites=[suite("one/ranked", 4)]), "suites: one/ranked is not what it was"),
    ],
)
def test_results_of_different_kinds_are_not_mixed_up(tmp_path, change, message):
    write_plan(tmp_path, specs([]), SUITES, SETTINGS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ClaraError, match=f"{message}.*name another --report"):
        write_plan(
            tmp_path,
            specs([], fingerprint=change.get("fingerprint", "f")),
            change.get("suites", SUITES),
            change.get("settings", SETTINGS),
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_process_at_a_time(tmp_path):
    directory = tmp_path / "report"
    with claimed(directory), pytest.raises(ClaraError, match="another process writes this report"):
        with claimed(directory):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="file: cannot be made"):
        with claimed(tmp_path / "file"):
            pass


def test_suites_that_cannot_be_read(tmp_path):
    with pytest.raises(ClaraError, match="suites.json: does not exist"):
        read_suites(tmp_path)
    (tmp_path / "suites.json").write_text('[{"name": 1}]')
    with pytest.raises(ClaraError, match="suites.json: cannot be read"):
        read_suites(tmp_path)


def test_suites_survive_json_whole(tmp_path):
    odd = dataclasses.replace(SUITES[0].cases[0], question='line\nbreak "é" \u2028', references=(), tags={})
    write_plan(tmp_path, specs([]), [Suite("odd", True, (odd,))], SETTINGS)
    assert read_suites(tmp_path) == [Suite("odd", True, (odd,))]


def test_settings_of_a_condition_may_be_added_and_not_changed(tmp_path):
    """Crammed memories: the steps belong to that condition alone, and a report of before there were any goes on."""

    def crammed(steps=None):
        per_condition = {} if steps is None else {"crammed": {"steps": steps}}
        return [dataclasses.replace(specs([])[0], per_condition=per_condition)]

    write_plan(tmp_path, crammed(), SUITES, SETTINGS)
    plan = json.loads((tmp_path / PLAN).read_text())
    assert plan.pop("specs") == {}
    (tmp_path / PLAN).write_text(json.dumps(plan))
    write_plan(tmp_path, crammed(5), SUITES, SETTINGS)
    write_plan(tmp_path, crammed(), SUITES, SETTINGS)
    assert json.loads((tmp_path / PLAN).read_text())["specs"] == {"model/crammed": {"steps": 5}}
    with pytest.raises(ClaraError, match="specs: model/crammed is not what it was; .* name another --report"):
        write_plan(tmp_path, crammed(6), SUITES, SETTINGS)
