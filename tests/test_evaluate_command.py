"""The evaluate command: whole, stopped and resumed, on several processes, against itself, and with mistakes."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from clara_jax import evaluate
from clara_jax.checkpoints import opening
from clara_jax.errors import ClaraError
from clara_jax.evaluation.predictions import PredictionFile
from clara_jax.evaluation.runner import read_suites
from clara_jax.method.clara import ClaraConfig
from tests.locations import ROOT
from tests.tiny import document, write_base

CASES = 6
CODE = "import sys; sys.argv = sys.argv[1:]; from clara_jax import command, evaluate; command.run(evaluate.main)"
OPTIONS = ("--max-new-tokens", "3", "--k", "2", "--batch-size", "2", "--resamples", "200")


@pytest.fixture(scope="module")
def place(tmp_path_factory, mesh):
    """A checkpoint, and data in the released layout."""
    folder = tmp_path_factory.mktemp("place")
    base = write_base(folder / "base")
    clara = ClaraConfig(doc_max_length=64, compress_rate=8, lora_rank=4, max_length=512)
    opening.from_base(str(base), clara, mesh, "float32").save(folder / "run", "end_to_end")
    for stage, count in (("stage1_eval", 2), ("stage2_eval", 4)):
        records = [
            {
                "question": f"Where was number {10 * i + i % count} born?",
                "docs": [document(10 * i + j) for j in range(count)],
                "golden_answers": [document(10 * i + i % count).split()[6]],
                "pos_index": [i % count],
                "qid": f"q{i}",
            }
            for i in range(CASES)
        ]
        path = folder / "data" / "eval" / stage / "nq" / "eval_processed_with_pos.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    changing = ClaraConfig(
        doc_max_length=64, compress_rate=8, lora_rank=4, max_length=512, different_mem_tokens=False, memory_map="affine"
    )
    opening.from_base(str(base), changing, mesh, "float32").save(folder / "affine", "instruct")
    asked = [
        {"data_type": "qa", "question": "Where was he born?", "answers": document(i).split()[6], "docs": [document(i)]}
        for i in range(4)
    ]
    (folder / "data" / "asked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))
    told = [{"data_type": "paraphrase", "question": "", "answers": ["x"], "docs": [document(i)]} for i in range(3)]
    (folder / "data" / "told.jsonl").write_text("".join(json.dumps(record) + "\n" for record in told))
    return folder


def arguments(place, report, *more):
    suites = ("--suite", "compressor", "end_to_end", "paraphrase:told.jsonl")
    named = ("--checkpoint", f"tiny={place}/run", "--report", str(report), "--data", f"{place}/data")
    return ["evaluate", *named, *suites, *OPTIONS, *more]


def call(monkeypatch, argv):
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", argv)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluate.main()
    return printed.getvalue()


def predictions(report):
    """By suite and system: {case: (answer, order, read)}."""
    return {
        str(path.relative_to(report)): {
            case: (prediction.answer, prediction.order, prediction.read)
            for case, prediction in PredictionFile(path).predictions.items()
        }
        for path in sorted((report / "outcomes").rglob("*.jsonl"))
    }


@pytest.fixture(scope="module")
def whole(place):
    """A report made in one go."""
    with pytest.MonkeyPatch.context() as patch:
        printed = call(patch, arguments(place, place / "whole", "--timed", "2", "--inside", "4"))
    return place / "whole", printed


def test_every_result_stands_beside_its_controls(whole):
    report, printed = whole
    found = json.loads((report / "report.json").read_text())
    suites = {suite["name"]: {system["name"] for system in suite["systems"]} for suite in found["suites"]}
    assert list(suites) == ["compressor/nq/oracle", "end_to_end/nq/oracle", "paraphrase/data/told"]
    memory = {f"tiny/{name}" for name in ("clara", "no_memory", "other_memory", "shuffled_memory", "gold_memory")}
    text = {f"base/{condition}" for condition in ("closed_book", "text_top1", "text_topk", "text_oracle")}
    text |= {"base/text_truncated", "base/text_pruned"}
    several = {"tiny/shuffled_within"}
    assert suites["compressor/nq/oracle"] == memory | several | text
    ranked = {"tiny/random_selection", "rank/random", "rank/bm25"}
    assert suites["end_to_end/nq/oracle"] == memory | several | text | ranked
    assert suites["paraphrase/data/told"] == (memory - {"tiny/gold_memory"}) | {"base/text_oracle"}
    for system in found["suites"][1]["systems"]:
        assert system["cases"] == CASES, system["name"]
    bm25 = next(system for system in found["suites"][1]["systems"] if system["name"] == "rank/bm25")
    assert bm25["metrics"]["recall@1"]["mean"] == 1  # only in the right document stands the number that is asked for
    clara = next(system for system in found["suites"][1]["systems"] if system["name"] == "tiny/clara")
    assert clara["metrics"]["first_ms"]["n"] == 2 and clara["metrics"]["f1"]["n"] == CASES
    assert found["plan"]["models"]["tiny"]["compress_rate"] == 8
    assert any(name.startswith("tiny/") for name in found["inside"])
    page = (report / "report.html").read_text()
    for part in ("tiny/no_memory", "end_to_end/nq/oracle", "Is the memory used?"):
        assert part in page + printed, part
    assert f"{report}/report.html" in printed


def test_what_memories_are_worth_beside_text_at_several_rates(place, monkeypatch):
    """A model with a memory map: written-out windows, changed documents, crammed memories, a further rate."""
    report = place / "affine_report"
    suites = ("autoencode/6:asked.jsonl", "counterfactual:asked.jsonl", "scp:asked.jsonl")
    named = ("evaluate", "--checkpoint", f"map={place}/affine", "--report", str(report), "--data", f"{place}/data")
    conditions = (
        "--condition",
        "clara",
        "no_memory",
        "crammed",
        "text_oracle",
        "--timed",
        "0",
        "--inside",
        "0",
        *OPTIONS,
    )
    crammed = ("--cram", "2", "--cram-steps", "3", "--compress-rate", "4")
    printed = call(monkeypatch, [*named, "--suite", *suites, *conditions, *crammed])
    found = json.loads((report / "report.json").read_text())
    windows, changed, asked = ({system["name"]: system for system in suite["systems"]} for suite in found["suites"])
    expected = {f"{name}/{condition}" for name in ("map", "map@4") for condition in ("clara", "no_memory", "crammed")}
    assert set(windows) == expected and set(changed) == set(asked) == expected | {"base/text_oracle"}
    for name, system in windows.items():
        assert "tokens_right" in system["metrics"] and "windows_right" in system["metrics"], name
        assert system["cases"] == (2 if name.endswith("crammed") else 4)
    rates = [asked[name]["metrics"]["effective_rate"]["mean"] for name in ("map/clara", "map@4/clara")]
    assert rates[0] == pytest.approx(2 * rates[1], rel=1e-3)
    memory = [asked[name]["metrics"]["passage_bytes"]["mean"] for name in ("map/clara", "map@4/clara")]
    assert memory == [8 * 64 * 4, 16 * 64 * 4]
    assert {"followed", "kept_original"} <= set(changed["map/clara"]["metrics"])
    for system in ("map/clara", "map@4/crammed"):
        (share,) = asked[system]["normalised"]
        assert share["to"] == "base/text_oracle" and share["none"] == f"{system.partition('/')[0]}/no_memory"
    specs = {"steps": 3, "learning_rate": 0.05}
    assert found["plan"]["specs"] == {"map/crammed": specs, "map@4/crammed": specs}
    assert "normalised token F1" in printed and "Teacher-normalised" in (report / "report.html").read_text()
    with pytest.raises(ClaraError, match="specs: map/crammed is not what it was"):
        call(monkeypatch, [*named, "--suite", *suites, *conditions, "--cram", "2", "--cram-steps", "4"])
    more = call(monkeypatch, [*named, "--suite", *suites, *conditions, "--cram", "3", "--cram-steps", "3"])
    assert "map/crammed" in more
    again = json.loads((report / "report.json").read_text())["suites"][0]["systems"]
    assert {system["name"]: system["cases"] for system in again}["map/crammed"] == 3


def test_a_second_call_asks_nothing_and_a_further_suite_is_added(place, whole, monkeypatch):
    report, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (report / "outcomes").rglob("*.jsonl")}
    first = json.loads((report / "report.json").read_text())["suites"]
    call(
        monkeypatch,
        arguments(
            place,
            report,
            "--inside",
            "0",
            "--suite",
            "documents:eval/stage1_eval/nq/eval_processed_with_pos.jsonl",
            "--condition",
            "no_memory",
        ),
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    second = json.loads((report / "report.json").read_text())["suites"]
    assert second[: len(first)] == first
    assert [system["name"] for system in second[-1]["systems"]] == ["tiny/no_memory"]


def process(place, report, *more, processes=1):
    command = [sys.executable, "-c", CODE, *arguments(place, report, "--timed", "0", "--inside", "0", *more)]
    launcher = [str(ROOT / "launch/local.sh"), str(processes), "--grace", "10"] if processes > 1 else []
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(2 // processes)}
    with open(f"{report}.log", "ab") as log:
        return subprocess.Popen(
            launcher + command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def log(report):
    return open(f"{report}.log", errors="replace").read()


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_evaluation_repeats_and_loses_nothing(place, whole, kills):
    report, rng, hits = place / f"killed{kills}", random.Random(kills), 0
    lines: dict[str, bytes] = {}
    while hits < kills:
        running, begun = process(place, report), len(lines)
        # Some time after something new is on the disk: between two cases, or while one is written.
        while running.poll() is None and sum(map(len, lines.values())) == begun:
            lines |= {str(path): path.read_bytes() for path in report.rglob("outcomes/**/*.jsonl")}
            if sum(content.count(b"\n") for content in lines.values()) > 4 * (hits + 1):
                time.sleep(rng.random())
                break
            time.sleep(0.02)
        if running.poll() is not None:
            assert running.returncode == 0, log(report)
            break
        running.send_signal(signal.SIGKILL)
        running.wait()
        hits += 1
    assert hits, "it was never killed"
    final = process(place, report)
    assert final.wait(600) == 0, log(report)
    # What was whole on the disk is still there, as it was: nothing was asked again.
    for path, content in lines.items():
        kept = content[: content.rfind(b"\n") + 1]
        assert open(path, "rb").read().startswith(kept), path
    asked = {name: found for name, found in predictions(whole[0]).items() if "documents" not in name}
    assert predictions(report) == asked
    assert read_suites(report) == [suite for suite in read_suites(whole[0]) if not suite.name.startswith("documents")]


@pytest.mark.slow
def test_two_processes_give_the_report_of_one(place, whole):
    report = place / "two"
    assert process(place, report, processes=2).wait(900) == 0, log(report)
    assert predictions(report) == {
        name: answers for name, answers in predictions(whole[0]).items() if "documents" not in name
    }
    one, two = (json.loads((path / "report.json").read_text()) for path in (whole[0], report))
    for mine, yours in zip(one["suites"], two["suites"], strict=False):
        for system, other in zip(mine["systems"], yours["systems"], strict=True):
            for metric, value in system["metrics"].items():
                if not metric.endswith("_ms"):
                    np.testing.assert_allclose(value["mean"], other["metrics"][metric]["mean"], rtol=1e-5)


def test_compared_with_itself_nothing_differs(whole, monkeypatch):
    report = str(whole[0])
    found = json.loads(call(monkeypatch, ["evaluate", "compare", report, report, "--json", "--resamples", "50"]))
    assert found["rows"] and all(row["mean"] == 0 for row in found["rows"])
    pair = "tiny/clara=tiny/no_memory"
    text = call(monkeypatch, ["evaluate", "compare", report, report, "--systems", pair, "--resamples", "50"])
    assert "tiny/clara / tiny/no_memory" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--k", "0"], "k is 0"),
        (["--limit", "0"], "--limit: 0 must be at least 1"),
        (["--suite", "nothing"], "nothing"),
        (["--suite", "questions:absent.jsonl"], "absent.jsonl"),
        (["--condition", "clara", "wrong"], "--condition: 'wrong' is unknown"),
        (
            ["--condition", "crammed"],
            "--condition crammed: say how many cases of each suite",
        ),
        (["--cram", "1", "--cram-steps", "0"], "crammed memories: 0 steps"),
        (["--compress-rate", "4"], "--compress-rate: .*run: .*different tokens"),
        (["--retriever", "bm26"], "--retriever: 'bm26' is unknown"),
        (["--checkpoint", "a=x", "a=y"], "two checkpoints have one name"),
        (["--checkpoint", "base=x"], "the name 'base' is not possible"),
        (["--checkpoint", "absent"], "absent: no such directory"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(place, tmp_path, monkeypatch, more, message):
    with pytest.raises(ClaraError, match=message) as error:
        call(monkeypatch, arguments(place, tmp_path / "report", *more))
    assert not (tmp_path / "report").exists()
    if "--suite" not in more:  # where the suites there are may be listed
        assert "\n" not in str(error.value)


def test_without_data_or_world_there_is_nothing_to_evaluate_on(place, tmp_path, monkeypatch):
    with pytest.raises(ClaraError, match="nothing to evaluate on"):
        call(monkeypatch, ["evaluate", "--checkpoint", f"{place}/run", "--report", str(tmp_path / "report")])


def test_a_report_of_other_settings_is_refused(place, whole, monkeypatch):
    with pytest.raises(ClaraError, match="settings: k is not what it was .*name another --report"):
        call(monkeypatch, arguments(place, whole[0], "--k", "3"))
